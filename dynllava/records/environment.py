"""Where and with what a number was made: versions, device, commit and a hash of the code."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from dynllava._version import __version__

from .schema import Environment

PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "tokenizers",
    "sentencepiece",
    "flash-attn",
    "lmms-eval",
    "accelerate",
    "datasets",
    "numpy",
    "pillow",
)
"""Libraries whose version can change an answer."""
PACKAGE = Path(__file__).resolve().parents[1]
"""Where the library is imported from."""
# Parts of the package that read results and cannot change an answer.
_NOT_ANSWERING = (
    "analysis",
    "commands",
    "costs",
    "output",
    "paper",
    "published",
    "records",
    "studies",
    "timing",
    "training",
)


def capture(
    device: Any = "cpu",
    dtype: Any = None,
    attention: str | None = None,
    image_processor: Any = None,
    image_aspect: str | None = None,
    template: str | None = None,
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
    image_aspect : str, optional
        ``pad``, ``crop`` or ``checkpoint``: how pictures became square.
    template : str, optional
        Name of the conversation template.
    """
    import torch

    return Environment(
        versions={**versions(), "code": code_version()},
        device=_device_name(torch.device(device)),
        dtype=None if dtype is None else str(dtype).removeprefix("torch."),
        attention=attention,
        image_backend=image_backend(image_processor),
        image_aspect=image_aspect,
        template=template,
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


# Variables in which continuous integration names a commit, and the repository it is of.
_BUILDS = (
    ("GITHUB_SHA", "GITHUB_REPOSITORY"),
    ("CI_COMMIT_SHA", "CI_PROJECT_NAME"),
    ("BUILD_SOURCEVERSION", "BUILD_REPOSITORY_NAME"),
    ("BITBUCKET_COMMIT", "BITBUCKET_REPO_SLUG"),
)


def git_commit() -> str | None:
    """Return the commit that the running code is of, None if nothing says it.

    Asked in this order: the checkout that the package runs from; what pip noted when it installed
    from a repository; the variables of continuous integration (which checks a commit out and may
    install it without its history), unless they are of another repository.
    """
    if _tracked():
        return _git("rev-parse", "HEAD")
    return _installed_commit() or _build_commit()


def git_dirty() -> bool | None:
    """Return whether the code differs from the commit, None if this is no checkout.

    It does if a tracked file was changed, or a file that git does not know lies in a package: a
    new method counts as soon as it is there.
    """
    if not _tracked():
        return None
    if _git("status", "--porcelain", "--untracked-files=no"):
        return True
    root = Path(_git("rev-parse", "--show-toplevel") or "")
    folders = [str(item) for item in _package_folders() if item.is_relative_to(root)]
    return bool(_git("status", "--porcelain", "--untracked-files=all", "--", *folders))


def _package_folders() -> list[Path]:
    """Return the folders that the installed packages are imported from."""
    from importlib.util import find_spec

    found = [PACKAGE]
    for name in ("dynllava.analysis", "dynllava.paper", "lmms_eval_dynllava"):
        spec = find_spec(name)
        found += [Path(item).resolve() for item in (spec and spec.submodule_search_locations) or ()]
    return found


def _installed_commit() -> str | None:
    """Return the commit in pip's ``direct_url.json`` (``pip install git+https://...``)."""
    try:
        text = metadata.distribution("dynllava").read_text("direct_url.json")
        commit = json.loads(text or "{}").get("vcs_info", {}).get("commit_id")
    except (metadata.PackageNotFoundError, ValueError, AttributeError):
        return None
    return commit if isinstance(commit, str) else None


def _build_commit() -> str | None:
    for variable, repository in _BUILDS:
        name = os.environ.get(repository, "").rpartition("/")[2]
        commit = os.environ.get(variable, "")
        if name in ("", "dynllava") and re.fullmatch(r"[0-9a-f]{40,64}", commit):
            return commit
    return None


def code_version() -> str:
    """Return ``<version>+<hash>``: changes whenever code that can change an answer does.

    The hash runs over the Python sources of the library (model, methods, data) and of the
    lmms-eval plugin, and over the embedded model's files.
    """
    digest = hashlib.sha256()
    for folder in (PACKAGE, *_plugin_folders()):
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
    return _git("ls-files", "--error-unmatch", "records/environment.py") is not None


def _git(*arguments: str) -> str | None:
    """Return what ``git`` prints in the package's folder, None if it fails or is missing."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=PACKAGE,
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
