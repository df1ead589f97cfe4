"""Which file becomes which, and writing it whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from viq.errors import TooLarge
from viq_serving.cli.failures import UsageError


@dataclass(frozen=True)
class Job:
    """One input file and the output file it becomes."""

    source: Path
    target: Path


def jobs_for(sources: Sequence[str], folder: Path, suffix: str, *, keep: bool = False) -> list[Job]:
    """A job for each of `sources`, its target being the stem with `suffix` in `folder`, which is made.

    Raises `UsageError` if two targets are the same, a target is an input, or the folder cannot be made; with
    `keep`, also if a target exists.
    """
    jobs = [Job(Path(source), folder / f"{Path(source).stem}{suffix}") for source in sources]
    taken: dict[Path, Path] = {}
    for job in jobs:
        if job.target in taken:
            raise UsageError(f"{taken[job.target]} and {job.source} would both become {job.target}")
        taken[job.target] = job.source
    inputs = {job.source.resolve() for job in jobs}
    for job in jobs:
        if job.target.resolve() in inputs:
            raise UsageError(f"{job.target} is an input and would be replaced")
        if keep and job.target.exists():
            raise UsageError(f"{job.target} exists; --overwrite replaces it, -o writes elsewhere")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"output folder {folder}: {error.strerror}") from None
    return jobs


def read(path: Path, max_bytes: int) -> bytes:
    """The bytes of a file; raises `OSError`, and `TooLarge` for more than `max_bytes` before reading on."""
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise TooLarge(f"file is larger than the limit of {max_bytes} bytes")
    return data


def head(path: Path) -> bytes:
    """The first bytes of a file, enough to tell codes; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError:
        return b""


def write(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step: whoever reads it finds the old contents or the new ones."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
