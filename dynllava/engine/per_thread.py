"""A value of which every thread has its own."""

from __future__ import annotations

import threading
import weakref
from typing import Any


class PerThread:
    """Holds one value a thread, None where a thread has set none.

    Unlike ``threading.local`` it can be copied and pickled with the object it belongs to; a copy
    starts empty.
    """

    def __init__(self) -> None:
        self._values: weakref.WeakKeyDictionary[threading.Thread, Any] = weakref.WeakKeyDictionary()

    def get(self) -> Any:
        """Return this thread's value."""
        return self._values.get(threading.current_thread())

    def set(self, value: Any) -> None:
        """Set this thread's value."""
        self._values[threading.current_thread()] = value

    def __reduce__(self) -> tuple[type[PerThread], tuple[()]]:
        return PerThread, ()
