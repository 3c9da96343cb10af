"""Where a checkpoint's files are: a folder, a hub name or its cache, or the embedded model.

Hub names go through ``huggingface_hub`` itself, so its cache, its offline switch
(``HF_HUB_OFFLINE=1``) and its login are those of every other tool.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dynllava.errors import UserError

from .files import LICENCE_PREFIXES

#: The shipped model with trained predictors, and the dense one it was trained from.
EMBEDDED = ("embedded", "embedded-dense")
#: What is read before any weights are: fetched first, a few MB at most.
SMALL_FILES = (
    "*.json", "*.jinja", "*.model", "*.txt", "*.md",
    *(f"{form}*" for name in LICENCE_PREFIXES for form in (name, name.upper(), name.capitalize())),
)  # fmt: skip


@dataclass(frozen=True)
class Location:
    """A checkpoint's folder.

    Attributes
    ----------
    name : str
        As the caller wrote it.
    folder : Path
    source : str
        ``"embedded"``, ``"folder"`` or ``"hub"``.
    cache_dir : Path or None
        The hub cache that the folder lies in.
    """

    name: str
    folder: Path
    source: str
    cache_dir: Path | None = None


def locate(pretrained: str | Path, cache_dir: Path | None = None) -> Location:
    """Return where ``pretrained`` is; of a hub model only the small files are fetched.

    Parameters
    ----------
    pretrained : str or Path
        ``"embedded"``, ``"embedded-dense"``, a folder, a snapshot or repository folder of a hub
        cache, or a hub name.
    cache_dir : Path, optional
        Hub cache; default: huggingface_hub's own.

    Raises
    ------
    UserError
        If there is no such folder, and no such model at the hub or in its cache.
    """
    name = str(pretrained)
    if name in EMBEDDED:
        from dynllava import embedded

        folder = embedded.dynamic_path() if name == "embedded" else embedded.model_path()
        return Location(name, folder, "embedded")
    folder = Path(pretrained).expanduser()
    if folder.is_dir():
        folder = _snapshot_of_repository(folder)
        return Location(name, folder, "folder", _cache_around(folder))
    if folder.exists():
        raise UserError(f"{name}: no such folder, it is a file; accepted are folders and hub names")
    if folder.is_absolute() or name.startswith((".", "~")):
        raise UserError(f"{name}: no such folder")
    return Location(name, fetch(name, SMALL_FILES, cache_dir), "hub", cache_dir)


def fetch(repository: str, patterns: tuple[str, ...], cache_dir: Path | None = None) -> Path:
    """Return the snapshot folder of a hub model with the files of ``patterns`` in it.

    Raises
    ------
    UserError
        In one line: unknown name, no login for a gated model, not in the cache while offline.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError

    try:
        found = snapshot_download(repository, allow_patterns=list(patterns), cache_dir=cache_dir)
        return Path(found)
    except HFValidationError:
        raise UserError(
            f"{repository}: neither a folder nor a hub name; accepted are folders and OWNER/NAME"
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        cause = error if isinstance(error, GatedRepoError) else error.__cause__
        if isinstance(cause, GatedRepoError):
            raise UserError(
                f"{repository}: is a gated model; accept its licence at "
                f"https://huggingface.co/{repository} and log in with 'hf auth login'"
            ) from None
        where = "not in the hub's cache, and the hub is not asked (HF_HUB_OFFLINE=1)"
        reason = where if offline() else f"not found at the hub or in its cache ({_line(error)})"
        raise UserError(
            f"{repository}: no such folder, and {reason}; download it with "
            f"'hf download {repository}' or give a folder"
        ) from None


def missing_sizes(repository: str, names: tuple[str, ...]) -> dict[str, int | None]:
    """Return {file: bytes} of files that would have to be downloaded (None: size not known)."""
    sizes: dict[str, int | None] = dict.fromkeys(names)
    if offline() or not names:
        return sizes
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError, HfHubHTTPError

    try:
        planned = snapshot_download(repository, allow_patterns=list(names), dry_run=True)
    except (DryRunError, HfHubHTTPError, OSError, ValueError):
        return sizes
    return sizes | {item.filename: item.file_size for item in planned if item.will_download}


def download_hint(repository: str, source: str) -> str:
    """Return what to do where a hub model's weights are not in the cache."""
    return f"; download them with 'hf download {repository}'" if source == "hub" else ""


def offline() -> bool:
    """Return whether huggingface_hub may not use the network."""
    from huggingface_hub import constants

    return bool(constants.is_offline_mode())


def _snapshot_of_repository(folder: Path) -> Path:
    """Return the snapshot of a hub cache's ``models--OWNER--NAME`` folder; others as they are."""
    snapshots = folder / "snapshots"
    if (folder / "config.json").is_file() or not snapshots.is_dir():
        return folder
    main = folder / "refs" / "main"
    if main.is_file() and (snapshots / main.read_text().strip()).is_dir():
        return snapshots / main.read_text().strip()
    found = [item for item in snapshots.iterdir() if item.is_dir()]
    if len(found) == 1:
        return found[0]
    raise UserError(
        f"{folder}: holds {len(found)} snapshots and no refs/main; accepted is one of {snapshots}/*"
    )


def _cache_around(folder: Path) -> Path | None:
    """Return the hub cache that a snapshot folder lies in, if any."""
    parts = folder.absolute().parts
    if len(parts) >= 4 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return Path(*parts[:-3])
    return None


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
