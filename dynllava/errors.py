"""Errors that a user can cause: one clear line, no traceback."""

from __future__ import annotations


class UserError(Exception):
    """What was wrong, where, and what is accepted, in one line.

    Parameters
    ----------
    message : str
        One line, without a trailing full stop or traceback.
    exit_code : int
        2 for wrong usage (the default), 1 for a failure while working.
    """

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code
