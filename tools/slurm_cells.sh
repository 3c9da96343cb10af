#!/bin/bash
#SBATCH --job-name=cells
#SBATCH --array=0-2
#SBATCH --cpus-per-task=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=cells-%a.log

# One method a job, all into one store: sbatch tools/slurm_cells.sh OUT
methods=(full fastv dynamic_llava)
dynllava compare --pretrained embedded --methods "${methods[$SLURM_ARRAY_TASK_ID]}" \
    --budgets 96 --tasks embedded_attribute embedded_existence embedded_counting \
    --limit 200 --batch-size 8 --device cpu --out "$1"
