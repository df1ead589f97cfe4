"""Names of files: patterns, the order they come in, and the keys that tar shards may have.

Tar shards follow WebDataset: files that follow one another and share what stands before the first dot of their
name are one sample, and what follows that dot says what each is. https://github.com/webdataset/webdataset
"""

from __future__ import annotations

import heapq
import json
import re
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO

IMAGE_SUFFIXES = frozenset(
    (
        *("png", "apng", "jpg", "jpeg", "jpe", "jfif", "webp", "gif", "bmp", "dib"),
        *("tif", "tiff", "ppm", "pgm", "pbm", "pnm", "avif"),
    )
)
"""Lower-case suffixes of files that are taken for images, of the formats that are decoded."""

_RUN = 200_000  # names sorted in memory at a time
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAGIC = re.compile(r"[*?[]")


def expanded(pattern: str) -> Iterator[str]:
    """What braces stand for, in order: `{000..127}` and `{train,val}`."""
    found = _BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    before, after = pattern[: found.start()], pattern[found.end() :]
    numbers = _RANGE.fullmatch(found[1])
    if numbers is None:
        choices: Iterable[str] = found[1].split(",")
    else:
        first, last = numbers[1], numbers[2]
        choices = (f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1))
    for choice in choices:
        yield from expanded(f"{before}{choice}{after}")


def is_pattern(path: str) -> bool:
    """Whether `path` has wildcards."""
    return bool(_MAGIC.search(path))


def split_pattern(pattern: str) -> tuple[str, str]:
    """The folder that all matches are in, and the rest of the pattern."""
    parts = pattern.split("/")
    fixed = next(i for i, part in enumerate(parts) if _MAGIC.search(part))
    return "/".join(parts[:fixed]) or ("/" if pattern.startswith("/") else "."), "/".join(parts[fixed:])


def matcher(pattern: str) -> re.Pattern[str]:
    """A pattern with `*`, `?`, `[…]` within names and `**` over any number of folders."""
    out = []
    for part in re.findall(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]/]*\]|.", pattern, re.DOTALL):
        if part == "**/":
            out.append("(?:[^/]+/)*")
        elif part == "**":
            out.append(".*")
        elif part == "*":
            out.append("[^/]*")
        elif part == "?":
            out.append("[^/]")
        elif part.startswith("[") and len(part) > 1:
            inside = part[1:-1].replace("\\", "\\\\")
            out.append(f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]")
        else:
            out.append(re.escape(part))
    return re.compile("".join(out), re.DOTALL)


def suffix_of(name: str) -> str:
    """What follows the last dot, in lower case; empty without a dot."""
    return name.rpartition(".")[2].lower() if "." in name else ""


def is_image(name: str) -> bool:
    """Whether the suffix is that of an image."""
    return suffix_of(name) in IMAGE_SUFFIXES


def sample_of(member: str) -> tuple[str, str] | None:
    """Key and field of a member of a tar shard, by WebDataset's rule; None for what belongs to no sample."""
    folder, slash, name = member.rpartition("/")
    base, dot, field = name.partition(".")
    if not base or not dot or not field or (base.startswith("__") and field.endswith("__")):
        return None
    return f"{folder}{slash}{base}", field.lower()


def member_key(key: str) -> str:
    """`key` as the name of a sample in a tar: what a name may not hold, or would mean something else, is written %XX.

    Dots of the last part end a sample's name, and ~ tells equal ones apart.
    """
    *folders, name = key.replace("%", "%25").replace("\0", "%00").split("/")
    name = name.replace(".", "%2E").replace("~", "%7E")
    parts = [one.replace(".", "%2E") if one in (".", "..") else one for one in folders]
    if parts and not parts[0]:  # it would be a place in the file system
        return "%2F" + "/".join([*parts[1:], name])
    return "/".join([*parts, name or "%"])


def member_field(field: str) -> str:
    """`field` as what follows the first dot of a member's name, which may hold no slash."""
    return field.replace("%", "%25").replace("/", "%2F").replace("\0", "%00") if {*"/\0"} & {*field} else field


def shown(name: str) -> str:
    """A file's name as text: bytes that are no UTF-8 as `\\xNN`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def in_order(entries: Iterable[tuple[str, bool]], run: int = _RUN) -> Iterator[tuple[str, bool]]:
    """Entries of a folder sorted by name; of a very large one, sorted runs wait on disk."""
    spilled: list[IO[str]] = []
    held: list[tuple[str, bool]] = []
    try:
        for entry in entries:
            held.append(entry)
            if len(held) == run:
                spilled.append(_spill(sorted(held)))
                held = []
        yield from heapq.merge(*map(_lines, spilled), sorted(held))
    finally:
        for file in spilled:
            file.close()


def _spill(entries: list[tuple[str, bool]]) -> IO[str]:
    file = tempfile.TemporaryFile("w+", encoding="ascii")  # noqa: SIM115  # closed by the one who reads it
    file.writelines(json.dumps(entry) + "\n" for entry in entries)
    file.seek(0)
    return file


def _lines(file: IO[str]) -> Iterator[tuple[str, bool]]:
    for line in file:
        name, folder = json.loads(line)
        yield name, folder
