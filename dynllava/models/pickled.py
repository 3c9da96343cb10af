"""Names and shapes of the tensors in a ``.bin`` file, read without torch and without running it."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

#: Bytes of a pickled dictionary that are looked at (a 70B model's is below 1 MB).
_LIMIT = 8_000_000
#: Pickles in front of the tensors' in files of torch before 1.6: magic number, protocol, system.
_LEGACY_HEAD = 3


class _Reader(pickle.Unpickler):
    """Builds dictionaries of shapes; every other class in the file is refused.

    What stands for a class is made anew each time, since a pickle can set attributes on it.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            # Not dict itself: state_dict() hangs an attribute on its dictionary.
            return type("Tensors", (dict,), {})
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, *rest: tuple(int(length) for length in size)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *rest: data
        if module == "torch" and name.endswith("Storage"):
            return name
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> None:
        """Tensors' memory: not looked at."""


def pickled_shapes(path: Path) -> dict[str, tuple[int, ...]] | None:
    """Return {tensor: shape} of a ``.bin`` file; None if it is no plain dictionary of tensors.

    Torch has the last word on such a file: it is loaded with ``weights_only=True``.
    """
    try:
        with path.open("rb") as file:
            found = _Reader(_pickle_of(file)).load()
    except Exception:
        # A torn or hostile pickle fails in any way; the loader says what is wrong with it.
        return None
    if not isinstance(found, dict):
        return None
    if not all(isinstance(k, str) and isinstance(v, tuple) for k, v in found.items()):
        return None
    return dict(found)


def _pickle_of(file: BinaryIO) -> BinaryIO:
    """Return a stream that begins with the pickled dictionary."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            name = next(item for item in archive.namelist() if item.endswith("/data.pkl"))
            with archive.open(name) as part:
                return io.BytesIO(part.read(_LIMIT))
    file.seek(0)
    head = io.BytesIO(file.read(_LIMIT))
    for _ in range(_LEGACY_HEAD):
        _Reader(head).load()
    return head
