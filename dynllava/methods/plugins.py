"""Methods that are not part of this package: files given with ``--plugin``, and entry points.

A file that defines a :class:`~dynllava.methods.base.Method` dataclass with a ``name`` is enough; an
installed package announces its classes (or modules) under the entry-point group
``dynllava.methods``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import warnings
from importlib.machinery import SourceFileLoader
from importlib.metadata import entry_points
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any

from dynllava.errors import UserError

if TYPE_CHECKING:
    from .base import Method

GROUP = "dynllava.methods"

_FILES: dict[Path, tuple[str, list[type[Method]]]] = {}
_INSTALLED: dict[str, type[Method]] = {}
_SEARCHED: list[str] = []


def load_file(path: str | Path) -> list[type[Method]]:
    """Import a Python file and register the methods it defines; loading it again does nothing.

    Raises
    ------
    UserError
        If the file cannot be read or imported, defines no method, or uses a name that is taken.
    """
    from . import register

    file = Path(path).expanduser().resolve()
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"plugin {path}: cannot be read ({error.strerror})") from None
    digest = hashlib.sha256(content).hexdigest()
    if file in _FILES and _FILES[file][0] == digest:
        return _FILES[file][1]
    module = _execute(file, digest)
    classes = methods_in(module)
    if not classes:
        raise UserError(
            f"plugin {path}: defines no method; accepted is a file with a subclass of "
            "dynllava.methods.base.Method that has a name (see dynllava new-method)"
        )
    for cls in classes:
        register(cls)
    _FILES[file] = digest, classes
    return classes


def loaded_files() -> dict[str, str]:
    """Return {path: SHA-256 of the content} of the plugin files in use."""
    return {str(path): digest for path, (digest, _) in _FILES.items()}


def installed() -> dict[str, type[Method]]:
    """Return name -> class of the methods that other packages announce; one that fails is named.

    A broken package costs its own methods and one warning, not the rest.
    """
    if not _SEARCHED:
        _SEARCHED.append(GROUP)
        for point in entry_points(group=GROUP):
            try:
                found = point.load()
                classes = methods_in(found) if isinstance(found, ModuleType) else [found]
                _INSTALLED.update({cls.name: cls for cls in classes})
            except Exception as error:  # foreign code may raise anything
                warnings.warn(
                    f"methods of entry point {point.name} ({point.value}) are left out: "
                    f"{type(error).__name__}: {error}",
                    stacklevel=2,
                )
    return _INSTALLED


def methods_in(module: ModuleType) -> list[type[Method]]:
    """Return the method classes that a module itself defines."""
    from .base import Method

    found: list[Any] = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    ]
    return [cls for cls in found if issubclass(cls, Method) and cls.name]


class _SourceOnly(SourceFileLoader):
    """Compiles the file each time: nothing is left beside it, and no stale bytecode is read."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _execute(file: Path, digest: str) -> ModuleType:
    name = f"dynllava_plugin_{file.stem}_{digest[:8]}"
    spec = importlib.util.spec_from_file_location(name, file, loader=_SourceOnly(name, str(file)))
    if spec is None or spec.loader is None:
        raise UserError(f"plugin {file}: accepted is a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their own module up while it is being executed.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except UserError:
        del sys.modules[name]
        raise
    except Exception as error:
        del sys.modules[name]
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"plugin {file}: cannot be imported ({line})") from error
    return module
