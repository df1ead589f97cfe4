"""Images one after another, always in the same order, from folders, patterns, tar shards or Parquet files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from viq.errors import InvalidInput, TooLarge, ViQError
from viq_serving.extract.errors import PlaceError
from viq_serving.extract.names import expanded, in_order, is_image, is_pattern, matcher, shown, split_pattern
from viq_serving.extract.places import Place, joined, place_of
from viq_serving.extract.steady import OF_THE_SYSTEM

Kind: TypeAlias = Literal["images", "tar", "parquet"]
Wanted: TypeAlias = Callable[[int], bool]
"""Whether the item at a position is to come with its contents; of others only the key is of use."""

_TRIES = 3


@dataclass
class Item:
    """One image on its way. `content` gives the file's bytes or raises; it may be called from any thread.

    `fields` travel along to the output. `done` is how far into the source this item is, in units of `Source.total`.
    """

    position: int
    key: str
    content: Callable[[], bytes]
    fields: Mapping[str, Any] = field(default_factory=dict)
    done: float = 0.0
    held: int = 0
    """Bytes that the item holds before anything is asked of it."""


class Source(Protocol):
    """Something that images come from. Equal sources give equal items in equal order."""

    kind: Kind
    total: float | None
    """How much there is, if that is known by now."""

    def items(self, wanted: Wanted) -> Iterator[Item]:
        """All items in order. Raises `PlaceError` if the source itself cannot be read."""


@dataclass(frozen=True)
class Reading:
    """How items are read: bytes of a file at most, fields to take along (None: what comes by itself), and names."""

    max_bytes: int = 64 * 2**20
    fields: Sequence[str] | None = None
    image_field: str | None = None
    key_field: str | None = None


class Pictures:
    """Image files in folders, by patterns, or named one by one. The key is the path below the folder named."""

    kind: Kind = "images"

    def __init__(self, addresses: Sequence[str], reading: Reading) -> None:
        self._addresses, self._reading = addresses, reading
        self.total: float | None = None

    def count(self, stop: Callable[[], bool]) -> None:
        """Find out `total` by walking through all names; meant for a thread of its own."""
        count = 0
        for _ in self._found():
            count += 1
            if stop():
                return
        self.total = count

    def items(self, wanted: Wanted) -> Iterator[Item]:
        """Each image file; fields are the files beside it of the same name and the suffixes asked for."""
        for position, (place, path, key) in enumerate(self._found()):
            yield Item(position, key, _Read(place, path, self._reading.max_bytes), self._beside(place, path), position)

    def _found(self) -> Iterator[tuple[Place, str, str]]:
        try:
            yield from self._walked()
        except OSError as error:
            raise PlaceError(f"{error.filename or ' '.join(self._addresses)}: {error.strerror or error}") from None

    def _walked(self) -> Iterator[tuple[Place, str, str]]:
        roots = [one for address in self._addresses for one in expanded(address)]
        for address in roots:
            place, path = place_of(address)
            prefix = ""
            if _is_pattern_here(place, path):
                root, pattern = split_pattern(path)
                match, depth = matcher(pattern), None if "**" in pattern else pattern.count("/")
                prefix = _prefix(root) if len(roots) > 1 else ""
                for name in walked(place, root, depth):
                    if match.fullmatch(name):
                        yield place, joined(root, name), f"{prefix}{shown(name)}"
            elif place.is_folder(path):
                prefix = _prefix(path) if len(roots) > 1 else ""
                for name in walked(place, path, None):
                    if is_image(name):
                        yield place, joined(path, name), f"{prefix}{shown(name)}"
            elif place.size(path) is None:
                raise PlaceError(f"{address}: no such file or folder")
            else:
                yield place, path, shown(path.rpartition("/")[2])

    def _beside(self, place: Place, path: str) -> Mapping[str, Any]:
        if not self._reading.fields:
            return {}
        stem = path.rpartition(".")[0]
        return {name: _Beside(place, f"{stem}.{name}", self._reading.max_bytes) for name in self._reading.fields}


class _Read:
    """Reads one file, trying again where the system fails in passing.

    Raises `InvalidInput` for what is wrong with that file, `PlaceError` where any other would fare no better now.
    """

    def __init__(self, place: Place, path: str, max_bytes: int) -> None:
        self._place, self._path, self._max_bytes = place, path, max_bytes

    def __call__(self) -> bytes:
        for left in reversed(range(_TRIES)):
            try:
                with self._place.open(self._path) as file:
                    return bounded(file.read(self._max_bytes + 1), self._max_bytes)
            except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
                raise InvalidInput(f"cannot be read: {error.strerror or error}") from None
            except OSError as error:
                if left:
                    continue
                if error.errno in OF_THE_SYSTEM:
                    raise PlaceError(f"{self._path}: {error.strerror or error}") from None
                raise InvalidInput(f"cannot be read: {error.strerror or error}") from None
        raise AssertionError("unreachable")


class _Beside(_Read):
    """Reads a file that need not be there: then there is no such field."""

    def __call__(self) -> bytes | None:  # type: ignore[override]
        return super().__call__() if self._place.size(self._path) is not None else None


def failing(error: ViQError) -> Callable[[], bytes]:
    """The content of an item that has none."""

    def content() -> bytes:
        raise error

    return content


def bounded(data: bytes, max_bytes: int) -> bytes:
    """`data`; raises `TooLarge` if it is more than `max_bytes`."""
    if len(data) > max_bytes:
        raise TooLarge(f"file is larger than the limit of {max_bytes} bytes")
    return data


def walked(place: Place, root: str, depth: int | None) -> Iterator[str]:
    """Names of all files below `root`, folders inside in their place by name; at most `depth` folders down.

    What begins with a dot is left out.
    """
    for name, folder in in_order(place.entries(root)):
        if name.startswith("."):
            continue
        if not folder:
            yield name
        elif depth is None or depth > 0:
            below = walked(place, joined(root, name), None if depth is None else depth - 1)
            yield from (f"{name}/{one}" for one in below)


def containers(addresses: Sequence[str]) -> Iterator[tuple[Place, str]]:
    """The files that addresses of tar shards or Parquet files name, in order; raises `PlaceError` as `Source.items`."""
    for address in (one for pattern in addresses for one in expanded(pattern)):
        place, path = place_of(address)
        if not _is_pattern_here(place, path):
            yield place, path
            continue
        root, pattern = split_pattern(path)
        match, depth = matcher(pattern), None if "**" in pattern else pattern.count("/")
        try:
            yield from ((place, joined(root, name)) for name in walked(place, root, depth) if match.fullmatch(name))
        except OSError as error:
            raise PlaceError(f"{error.filename or address}: {error.strerror or error}") from None


def names_file(addresses: Sequence[str], file: str) -> bool:
    """Whether a pattern among `addresses` stands for the file at the address `file`, if there were one."""
    place, target = _absolute(file)
    for address in (one for pattern in addresses for one in expanded(pattern)):
        there, path = _absolute(address)
        if there == place and is_pattern(path):
            root, pattern = split_pattern(path)
            root = "" if root == "/" else root
            if target.startswith(f"{root}/") and matcher(pattern).fullmatch(target[len(root) + 1 :]):
                return True
    return False


def _absolute(address: str) -> tuple[str, str]:
    protocol, mark, path = address.partition("://")
    return (protocol, path) if mark and protocol != "file" else ("", str(Path(path or address).resolve()))


def _is_pattern_here(place: Place, path: str) -> bool:
    """Whether `path` has wildcards, and is not the name of something itself: `[2020] trip`."""
    if not is_pattern(path):
        return False
    try:
        return place.size(path) is None and not place.is_folder(path)
    except OSError:
        return True


def _prefix(root: str) -> str:
    name = root.rstrip("/").rpartition("/")[2]
    return "" if name in ("", ".", "..") else f"{shown(name)}/"


def size_of(place: Place, path: str) -> float:
    """Bytes of a file; raises `PlaceError` if there is none, or it cannot be told."""
    try:
        size = place.size(path)
    except OSError as error:
        raise PlaceError(f"{path}: {error.strerror or error}") from None
    if size is None:
        raise PlaceError(f"{path}: no such file")
    return float(size)


def source_of(addresses: Sequence[str], reading: Reading) -> Source:
    """The source that `addresses` name, by their endings; raises `InvalidInput` if they are of several kinds."""
    kinds = {_kind(address) for address in addresses}
    if len(kinds) > 1:
        raise InvalidInput(f"sources of several kinds at once ({', '.join(sorted(kinds))}): extract each by itself")
    if kinds == {"tar"}:
        from viq_serving.extract.tar_source import Tars

        return Tars(addresses, reading)
    if kinds == {"parquet"}:
        from viq_serving.extract.parquet_source import Rows

        return Rows(addresses, reading)
    return Pictures(addresses, reading)


def _kind(address: str) -> Kind:
    if address.endswith((".tar", ".tar.gz", ".tgz")):
        return "tar"
    return "parquet" if address.endswith((".parquet", ".pq")) else "images"
