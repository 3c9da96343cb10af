"""dynllava: benchmark and analysis toolkit around Dynamic-LLaVA.

The import is light: nothing heavier than this file is loaded until it is used.
"""

from dynllava._version import __version__

__all__ = ["__version__"]
