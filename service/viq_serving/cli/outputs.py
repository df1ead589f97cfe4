"""Files that a command writes in the end: whether it will be able to is found out first."""

from __future__ import annotations

import os
from pathlib import Path

from viq_serving.cli.failures import UsageError


def unfinished(path: Path) -> Path:
    """Where a file is written that then takes the place of `path`: a reader sees the old one or the new, never half."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def check_output(path: Path, *, make_folder: bool = False) -> None:
    """Raise `UsageError` naming `path` if it is a folder or cannot be written; its folder is made if wanted."""
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a folder, expected a file to write")
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        unfinished(path).touch()
        unfinished(path).unlink()
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None
