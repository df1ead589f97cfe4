"""What each key of a file may do: the lines of that file. Keys are told apart by their digests alone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast, get_args

from viq_serving.types import Priority

LANES: frozenset[Priority] = frozenset(get_args(Priority))

_KEY = re.compile(r"[\x21-\x7e]+")  # what a header can carry, and no space
_LANES, _PATCHES, _REQUESTS = "lanes", "max-patches", "max-requests"
_OPTIONS = (_LANES, _PATCHES, _REQUESTS)
_MAX_DIGITS = 12


@dataclass(frozen=True)
class Rights:
    """Lanes that a key opens, and the patches and requests that it may have under way (None: no limit of its own)."""

    lanes: frozenset[Priority] = LANES
    max_patches: int | None = None
    max_requests: int | None = None


def digest_of(key: str) -> bytes:
    """What is kept of a key; raises `ValueError`, which does not show it, for one that no header can carry."""
    if not _KEY.fullmatch(key):
        raise ValueError("it holds a character that no header can carry")
    return digest_of_shown(key)


def digest_of_shown(key: str) -> bytes:
    """The digest of whatever a caller shows as its key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def rights_of(text: str) -> Mapping[bytes, Rights]:
    """The rights of each key in a file, one a line: `KEY [lanes=bulk] [max-patches=N] [max-requests=N]`.

    A `#` starts a comment where a word could start. Raises `ValueError`, which names the line and shows nothing of
    it: what stands there may be a secret with a space in it.
    """
    rights: dict[bytes, Rights] = {}
    for number, (key, *options) in _lines(text):
        try:
            if key.partition("=")[0] in _OPTIONS:
                raise ValueError("it begins with a limit, the key comes first")
            digest, found = digest_of(key), _parsed(options)
            if rights.setdefault(digest, found) != found:
                raise ValueError("a line before it gives the same key other limits")
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    return rights


def _lines(text: str) -> Iterator[tuple[int, Sequence[str]]]:
    """The words of each line that has some, and its number."""
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        comment = next((index for index, word in enumerate(words) if word.startswith("#")), len(words))
        if comment:
            yield number, words[:comment]


def _parsed(options: Sequence[str]) -> Rights:
    given: dict[str, str] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or name not in _OPTIONS:
            raise ValueError(f"after the key come only {', '.join(f'{one}=' for one in _OPTIONS)} or # and a comment")
        if name in given:
            raise ValueError(f"{name} is given twice")
        given[name] = value
    lanes = frozenset(given[_LANES].split(",")) if _LANES in given else LANES
    if not lanes <= LANES:
        raise ValueError(f"{_LANES} are {' and '.join(sorted(LANES))}, with a comma between if it is both")
    return Rights(cast("frozenset[Priority]", lanes), _number(given, _PATCHES), _number(given, _REQUESTS))


def _number(given: Mapping[str, str], name: str) -> int | None:
    text = given.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS and int(text) > 0):
        raise ValueError(f"{name} is a whole number from 1 on")
    return int(text)
