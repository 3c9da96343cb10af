"""Train predictors and language model, or a model under another method."""

from __future__ import annotations

import argparse

from dynllava.training.arguments import configure

HELP = "train predictors (or a model under another method)"
EXAMPLE = "dynllava train embedded --dry-run"
RESUMES = True
"""Started again, it goes on where it was stopped."""

__all__ = ["HELP", "configure", "run"]


def run(args: argparse.Namespace) -> int:
    """Plan or carry out the run that the configuration describes."""
    from dynllava.training.run import run as train

    return train(args)
