"""Where and with what a number was made: versions, device, commit and a hash of the code."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from dynllava._version import __version__
from dynllava.records.schema import Environment

PACKAGES = ("torch", "transformers", "lmms-eval", "accelerate", "datasets", "numpy", "pillow")
# Parts of the package that read results and cannot change an answer.
_NOT_ANSWERING = ("analysis", "commands", "paper", "profiling", "records", "training")


def capture(
    device: Any = "cpu",
    dtype: Any = None,
    attention: str | None = None,
    image_processor: Any = None,
) -> Environment:
    """Return the environment of a run on ``device``.

    Parameters
    ----------
    device : str or torch.device
        A CUDA device is stored with the name of the card.
    dtype : str or torch.dtype, optional
        Of the weights.
    attention : str, optional
        Attention implementation that ran.
    image_processor : optional
        Processor or image processor that made the pixels; without it, the back-end that
        transformers would choose here is stored.
    """
    import torch

    return Environment(
        versions=versions(),
        device=_device_name(torch.device(device)),
        dtype=None if dtype is None else str(dtype).removeprefix("torch."),
        attention=attention,
        image_backend=image_backend(image_processor),
        threads=torch.get_num_threads(),
        commit=git_commit(),
        dirty=git_dirty(),
    )


def versions() -> dict[str, str]:
    """Return the versions of Python, dynllava and the installed ones of :data:`PACKAGES`."""
    found = {"python": platform.python_version(), "dynllava": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def image_backend(image_processor: Any = None) -> str:
    """Return ``"PIL"`` or ``"torchvision"``: which library resizes and normalises the images."""
    image_processor = getattr(image_processor, "image_processor", image_processor)
    if image_processor is not None:
        names = [cls.__name__ for cls in type(image_processor).__mro__]
        return "PIL" if any("Pil" in name for name in names) else "torchvision"
    from transformers.utils import is_torchvision_available

    return "torchvision" if is_torchvision_available() else "PIL"


def git_commit() -> str | None:
    """Return the commit of the checkout that the package runs from, None if it is no checkout."""
    return _git("rev-parse", "HEAD") if _tracked() else None


def git_dirty() -> bool | None:
    """Return whether tracked files differ from the commit, None if this is no checkout."""
    if not _tracked():
        return None
    return bool(_git("status", "--porcelain", "--untracked-files=no"))


def code_version() -> str:
    """Return ``<version>+<hash>``: changes whenever code that can change an answer does.

    The hash runs over the Python sources of the library (model, methods, data) and of the
    lmms-eval plugin, and over the embedded model's files.
    """
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for folder in (root, *_plugin_folders()):
        for path in sorted(folder.rglob("*")):
            relative = path.relative_to(folder)
            if relative.parts[0] in _NOT_ANSWERING or not path.is_file():
                continue
            if path.suffix in (".py", ".json", ".yaml", ".safetensors"):
                digest.update(f"{relative.as_posix()}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"{__version__}+{digest.hexdigest()[:12]}"


def _plugin_folders() -> list[Path]:
    # find_spec does not run the plugin, whose modules import lmms-eval.
    from importlib.util import find_spec

    spec = find_spec("lmms_eval_dynllava")
    return [Path(item) for item in (spec.submodule_search_locations or [])] if spec else []


def _device_name(device: Any) -> str:
    import torch

    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return str(device.type)


def _tracked() -> bool:
    """Return whether git knows this file: a virtual environment inside a checkout is none."""
    return _git("ls-files", "--error-unmatch", Path(__file__).name) is not None


def _git(*arguments: str) -> str | None:
    """Return what ``git`` prints in the package's folder, None if it fails or is missing."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


if __name__ == "__main__":
    print(code_version())
