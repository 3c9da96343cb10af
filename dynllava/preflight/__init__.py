"""What a run will do, and whether it can start, said before anything is loaded."""

from .findings import Finding, Preflight
from .model import Wanted, check_model
from .tasks import check_tasks

__all__ = ["Finding", "Preflight", "Wanted", "check_model", "check_tasks"]
