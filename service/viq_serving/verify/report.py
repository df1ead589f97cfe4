"""What was compared with what, and what came of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from viq.codes import Codes
from viq.errors import ViQError


@dataclass(frozen=True)
class Check:
    """One way of encoding all pictures against each by itself; `wrong` says what differs, a line for each picture."""

    name: str
    pictures: int
    codes: int
    different: int
    wrong: Sequence[str]

    @property
    def equal(self) -> bool:
        """Whether nothing differs, down to sizes and fingerprints."""
        return not self.wrong


@dataclass
class Proof:
    """All that was verified of one model; checks are added as they are made, `not_checked` says what was left out."""

    size: str
    fingerprint: str
    pictures: Sequence[str]
    digest: str = ""
    expected: str | None = None
    checks: list[Check] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    images_a_batch: float | None = None

    @property
    def holds(self) -> bool:
        """Whether nothing differs."""
        return all(check.equal for check in self.checks) and self.expected in (None, self.digest)


def compare(name: str, pictures: Sequence[str], expected: Sequence[Codes], found: Sequence[Codes | ViQError]) -> Check:
    """Hold what was `found` for `pictures`, given by name, against what is `expected` of them."""
    different, wrong = 0, []
    for picture, one, other in zip(pictures, expected, found, strict=True):
        count, reason = _difference(one, other)
        different += count
        if reason:
            wrong.append(f"{picture}: {reason}")
    return Check(name, len(expected), sum(one.array.size for one in expected), different, wrong)


def digest(codes: Sequence[Codes]) -> str:
    """SHA-256 over image sizes, grids and codes, in their order; the same on machines of any byte order."""
    held = hashlib.sha256()
    for one in codes:
        held.update(np.array([*one.image_size, *one.grid], "<u4").tobytes())
        held.update(one.to_bytes())
    return held.hexdigest()


def _difference(one: Codes, other: Codes | ViQError) -> tuple[int, str]:
    """How many codes differ, all of them where there are none to compare, and in words what does; empty if nothing."""
    if isinstance(other, ViQError):
        return one.array.size, f"{other.code}: {other}"
    if (other.image_size, other.grid) != (one.image_size, one.grid):
        return one.array.size, f"{other.image_size} pixels in a grid {other.grid}, not {one.image_size} in {one.grid}"
    count = int((one.array != other.array).sum())
    if count:
        return count, f"{count} of {one.array.size} codes differ"
    for what, ours, theirs in (("size", one.size, other.size), ("fingerprint", one.fingerprint, other.fingerprint)):
        if ours != theirs:
            return 0, f"{what} is {theirs or 'missing'}, not {ours}"
    return 0, ""
