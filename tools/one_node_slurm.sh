#!/usr/bin/env bash
# A Slurm cluster of this machine alone, to try job scripts on: two CPUs, no systemd, no cgroups.
#
#   apt-get install slurm-wlm munge
#   tools/one_node_slurm.sh start FOLDER      # then: export SLURM_CONF=FOLDER/slurm.conf
#   tools/one_node_slurm.sh stop FOLDER
#
# Needs root. All that it writes lies in FOLDER (a short path: sockets), also the munge key; other
# munge or Slurm daemons of the machine are left alone.
set -euo pipefail

usage() { echo "usage: $0 start|stop FOLDER" >&2; exit 2; }
[ $# -eq 2 ] || usage
mkdir -p "$2"
folder=$(cd "$2" && pwd)
export SLURM_CONF=$folder/slurm.conf
PATH=$PATH:/usr/sbin:/sbin
daemons="munged slurmctld slurmd"

stop() {
    local daemon pid
    for daemon in slurmd slurmctld munged; do
        pid=$(cat "$folder/$daemon.pid" 2>/dev/null) || continue
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
        kill -9 "$pid" 2>/dev/null || true
        rm -f "$folder/$daemon.pid"
    done
}

start() {
    local daemon host port
    for daemon in $daemons scontrol sbatch; do
        command -v "$daemon" >/dev/null || { echo "$daemon is not installed" >&2; exit 1; }
    done
    [ "$(id -u)" = 0 ] || { echo "the daemons need root" >&2; exit 1; }
    [ ! -e "$folder/slurmctld.pid" ] || { echo "$folder: a cluster runs here already" >&2; exit 1; }
    host=$(hostname -s)
    port=$((20000 + RANDOM % 10000 * 2))
    mkdir -p "$folder/state" "$folder/spool"
    # munge and Slurm refuse a key or a state that others could have written.
    chmod 755 "$folder"
    (umask 077 && dd if=/dev/urandom of="$folder/munge.key" bs=1024 count=1 status=none)
    cat > "$SLURM_CONF" <<CONF
ClusterName=onenode
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$folder/munge.socket
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
# Without cgroups, which containers and small machines often lack.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=1,sched_interval=5
ReturnToService=2
KillWait=2
# The machine may have fewer or more.
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
        --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" \
        --seed-file="$folder/munge.seed"
    slurmctld -f "$SLURM_CONF"
    slurmd -f "$SLURM_CONF"
    for _ in $(seq 100); do
        if sinfo -h -o %T 2>/dev/null | grep -q idle; then
            echo "export SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep 0.3
    done
    tail -n 5 "$folder"/*.log >&2
    stop
    echo "the node did not become idle; the logs are in $folder" >&2
    exit 1
}

case $1 in start) start ;; stop) stop ;; *) usage ;; esac
