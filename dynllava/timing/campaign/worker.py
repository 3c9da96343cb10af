"""One process of a campaign, started by the runner.

``python -m dynllava.timing.campaign.worker``
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dynllava.errors import UserError

from . import extras, timed
from .journal import Journal
from .session import Session, Stopped, device_clock, failure
from .shapes import load_shape
from .steps import planned

STOPPED, FAILED = 3, 4
"""Exit codes: the time was up; a step failed and the device may be in any state."""

KINDS = {
    "smoke": extras.run_smoke,
    "prefill": timed.run_prefill,
    "step": timed.run_step,
    "nocache": timed.run_nocache,
    "memory": extras.run_memory,
    "training": extras.run_training,
    "generation": extras.run_generation,
    "further": timed.run_further,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Do the named steps in order until the deadline; return an exit code."""
    parser = argparse.ArgumentParser()
    for name in ("--folder", "--shape", "--device", "--dtype"):
        parser.add_argument(name, required=True)
    parser.add_argument("--deadline", type=float, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--steps", nargs="+", required=True)
    args = parser.parse_args(argv)
    shape, folder = load_shape(args.shape), Path(args.folder)
    journal = Journal(folder)
    session = Session(folder, shape, args.device, args.dtype, args.deadline, args.parent, journal)
    steps = {step.key: step for step in planned(shape)}
    for key in args.steps:
        start = time.time()
        clock = device_clock() if session.cuda else None
        journal.add("start", key, at=start, sm_clock=clock, versions=session.environment().versions)
        try:
            session.check()
            KINDS[steps[key].kind](session, steps[key])
        except Stopped:
            journal.add("stopped", key)
            return STOPPED
        except UserError as error:  # nothing is wrong with the device
            journal.add("failed", key, error=failure(error))
            print(f"{key}: failed: {failure(error)}", flush=True)
            continue
        except Exception as error:  # one line in the journal; the next steps still have their turn
            journal.add("failed", key, error=failure(error))
            print(f"{key}: failed: {failure(error)}", flush=True)
            return FAILED
        journal.add("done", key, seconds=round(time.time() - start, 3))
        print(f"{key}: done in {time.time() - start:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
