"""Where files are: this machine's disk, or any file system that fsspec knows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from viq_serving.extract.errors import PlaceError
from viq_serving.extract.steady import SteadyFile, steady

_OBJECT_STORES = frozenset(("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci", "r2", "hf", "memory"))
"""Where a file that is written appears whole or not at all. Elsewhere it is written under another name first."""


class Place(Protocol):
    """A file system. Paths are strings with `/` between their parts; all methods may raise `OSError`."""

    def entries(self, folder: str) -> Iterator[tuple[str, bool]]:
        """Name of each entry of `folder`, in no order, and whether it is a folder."""

    def is_folder(self, path: str) -> bool:
        """Whether there is a folder at `path`."""

    def open(self, path: str) -> IO[bytes]:
        """The file at `path`, to read and to seek in."""

    def size(self, path: str) -> int | None:
        """Bytes of the file at `path`, None if there is none."""

    def put(self, local: Path, path: str) -> None:
        """Make the finished file `local` appear at `path` in one step, in place of what was there; `local` is gone."""

    def put_first(self, local: Path, path: str) -> bool:
        """As `put`, unless there is something at `path`: then nothing is done, and the answer is False.

        Of several who do so at once, on a disk one puts it; elsewhere each may believe so, and must look again.
        """

    def remove(self, path: str) -> None:
        """Remove the file at `path` if there is one."""

    def make_folder(self, path: str) -> None:
        """Make a folder and those above it, if they are missing."""


class Disk:
    """This machine's file system."""

    def entries(self, folder: str) -> Iterator[tuple[str, bool]]:
        """Links to folders are left out, as they may lead in circles."""
        with os.scandir(folder) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    yield entry.name, True
                elif entry.is_file():
                    yield entry.name, False

    def is_folder(self, path: str) -> bool:
        """Whether there is a folder at `path`."""
        return Path(path).is_dir()

    def open(self, path: str) -> IO[bytes]:
        """The file at `path`."""
        return Path(path).open("rb")

    def size(self, path: str) -> int | None:
        """Bytes of the file."""
        try:
            return Path(path).stat().st_size
        except FileNotFoundError:
            return None

    def put(self, local: Path, path: str) -> None:
        """Rename, so that it holds also after a crash of the machine."""
        with local.open("rb") as file:
            os.fsync(file.fileno())
        local.replace(path)
        folder = os.open(Path(path).parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def put_first(self, local: Path, path: str) -> bool:
        """Link, which fails where there is a file, then as `put`."""
        if Path(path).exists():
            return False
        with local.open("rb") as file:
            os.fsync(file.fileno())
        try:
            Path(path).hardlink_to(local)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            pass
        self.put(local, path)
        return True

    def remove(self, path: str) -> None:
        """Remove the file."""
        Path(path).unlink(missing_ok=True)

    def make_folder(self, path: str) -> None:
        """Make the folder."""
        Path(path).mkdir(parents=True, exist_ok=True)


class Remote:
    """A file system of fsspec. What fails in passing is tried again, then it is a `PlaceError`."""

    def __init__(self, protocol: str, system: Any) -> None:
        self._system = system
        self._whole = protocol in _OBJECT_STORES

    def entries(self, folder: str) -> Iterator[tuple[str, bool]]:
        """As the file system lists them, afresh."""
        for entry in steady(folder, lambda: self._system.ls(folder, detail=True, refresh=True)):
            name = str(entry["name"]).rstrip("/").rpartition("/")[2]
            if name and str(entry["name"]).rstrip("/") != folder.rstrip("/"):  # stores list the folder itself, too
                yield name, entry["type"] == "directory"

    def is_folder(self, path: str) -> bool:
        """Whether there is a folder at `path`."""
        return bool(steady(path, lambda: self._system.isdir(path)))

    def open(self, path: str) -> IO[bytes]:
        """The file at `path`."""
        opened: IO[bytes] = SteadyFile(path, steady(path, lambda: self._system.open(path, "rb")))  # type: ignore[assignment]
        return opened

    def size(self, path: str) -> int | None:
        """Bytes of the file."""

        def asked() -> int:
            try:
                return int(self._system.info(path, refresh=True)["size"])
            except TypeError:  # a file system whose info takes no options
                return int(self._system.info(path)["size"])

        try:
            return steady(path, asked)
        except FileNotFoundError:
            return None

    def put(self, local: Path, path: str) -> None:
        """Upload; where a half-written file could be seen, under another name first."""

        def uploaded() -> None:
            if self._whole:
                self._system.put_file(str(local), path)
            else:
                self._system.put_file(str(local), f"{path}.part")
                self._system.mv(f"{path}.part", path)

        steady(path, uploaded)
        local.unlink()

    def put_first(self, local: Path, path: str) -> bool:
        """Look, then upload."""
        if self.size(path) is not None:
            return False
        self.put(local, path)
        return True

    def remove(self, path: str) -> None:
        """Remove the file."""
        if self._system.exists(path):
            self._system.rm_file(path)

    def make_folder(self, path: str) -> None:
        """Make the folder, where there is such a thing."""
        steady(path, lambda: self._system.makedirs(path, exist_ok=True))


def place_of(address: str) -> tuple[Place, str]:
    """The file system that `address` is on, and its path there; raises `PlaceError` if it cannot be reached."""
    if "://" not in address:
        return Disk(), address
    try:
        import fsspec
    except ImportError:
        raise PlaceError(f"{address}: this needs fsspec: pip install 'viq-serving[extract]'") from None
    try:
        system, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError, OSError) as error:
        raise PlaceError(f"{address}: {error}") from None
    protocol = address.partition("://")[0]
    return (Disk() if protocol in ("file", "local") else Remote(protocol, system)), str(path)


def joined(folder: str, name: str) -> str:
    """The path of `name` in `folder`."""
    return f"{folder}/{name}" if folder and not folder.endswith("/") else f"{folder}{name}"


def drop(folder: Path) -> None:
    """Remove a local folder of unfinished files."""
    shutil.rmtree(folder, ignore_errors=True)
