"""dynllava: benchmark and analysis toolkit around Dynamic-LLaVA.

The import is light: nothing heavier than this file is loaded until it is used.
"""

from dynllava._version import __version__

_LAZY = {
    "DynamicLlavaConfig": "dynllava.models.config",
    "DynamicLlavaForConditionalGeneration": "dynllava.models.modeling",
    "load_model": "dynllava.models.loading",
    "wrap": "dynllava.models.wrapping",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> object:
    """Import the heavy parts of the library on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module 'dynllava' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)
