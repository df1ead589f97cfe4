"""From what a user names (`/weights`, `hf:ORG/REPO`, nothing) to one folder of one size."""

from __future__ import annotations

import re
from pathlib import Path

from viq.config import VARIANTS, variant
from viq.errors import UnknownModel, WeightsError

_HUB = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?P<folder>(?:/[\w.-]+)*)/?(?:@(?P<revision>[\w./-]+))?")
_WANTED = ("*.safetensors", "*.pth", "viq.json")

PACKAGED = Path(__file__).with_name("weights")
"""The weights root that ships with the package: it holds `nano` and nothing else."""


def folder_of(root: str | Path | None, size: str | None) -> tuple[Path, str]:
    """The folder `converted_<size>` under `root` and the size.

    Without a root it is the packaged one; without `size` the root must hold exactly one. Raises `UnknownModel` for
    a size that does not exist, or that the package does not bring; `WeightsError` for a root that cannot be used,
    naming what it holds.
    """
    if size is not None:
        variant(size)
    if root is None:
        if size not in (None, "nano"):
            raise UnknownModel(f"size {size!r} needs a weights root (--weights-root or VIQ_WEIGHTS_ROOT)")
        root = PACKAGED
    if str(root).startswith("hf:"):
        root = _from_hub(str(root), size)
    base = Path(root)
    if not base.is_dir():
        raise WeightsError(f"weights root {base}: no such folder")
    found = sorted(s for s in VARIANTS if (base / f"converted_{s}").is_dir())
    held = f"it holds {', '.join(found) or 'no converted_<size> folder'}"
    if size is None:
        if len(found) != 1:
            raise WeightsError(f"weights root {base}: name a size; {held}")
        return base / f"converted_{found[0]}", found[0]
    if size not in found:
        raise WeightsError(f"weights root {base}: no folder converted_{size}; {held}")
    return base / f"converted_{size}", size


def _from_hub(name: str, size: str | None) -> Path:
    match = _HUB.fullmatch(name)
    if match is None or ".." in name:
        raise WeightsError(f"weights root {name!r}: expected hf:ORG/REPO[/SUBDIR][@REV]")
    # Imported here so that local weights work without the hub's client.
    from huggingface_hub import snapshot_download

    repo, revision = match["repo"], match["revision"]
    folder = f"{match['folder'].removeprefix('/')}/" if match["folder"] else ""
    try:
        sizes = _sizes_on_hub(repo, revision, folder) if size is None else (size,)
        # Said before gigabytes of several sizes are fetched; where the hub cannot be asked, what is at hand decides.
        if sizes is not None and len(sizes) != 1:
            held = f"it holds {', '.join(sizes) or 'no converted_<size> folder'}"
            raise WeightsError(f"weights root {name}: name a size; {held}")
        patterns = [f"{folder}converted_{s}/{wanted}" for s in sizes or () for wanted in _WANTED]
        local = snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=sizes is None)
    except WeightsError:
        raise
    except Exception as error:  # noqa: BLE001 - the client passes on errors of an HTTP library that varies by version
        raise WeightsError(f"weights root {name}: could not be fetched ({error})") from None
    return Path(local) / folder


def _sizes_on_hub(repo: str, revision: str | None, folder: str) -> tuple[str, ...] | None:
    """The sizes that a hub folder holds; `None` if the hub is out of reach."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        # Not list_repo_files, which tries for half a minute before it gives up.
        files = [file.rfilename for file in HfApi().model_info(repo, revision=revision).siblings or ()]
    except (HfHubHTTPError, ValueError):
        raise
    except Exception:  # noqa: BLE001 - no connection, in the words of whichever HTTP library
        return None
    return tuple(s for s in VARIANTS if any(file.startswith(f"{folder}converted_{s}/") for file in files))
