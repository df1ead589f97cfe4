"""Mixes of image sizes: named ones, lists, histogram files; how many pictures of each size follow from one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from viq.errors import InvalidInput

Size = tuple[int, int]
"""Width and height in pixels."""

MAX_SIDE, MAX_PIXELS = 65_500, 50_000_000
"""What a JPEG's side can be; the pixels that a server takes by default."""

_MAX_FILE_BYTES, _MAX_SIZES, _SHOWN = 2**20, 10_000, 80
_ITEM = re.compile(r"([1-9][0-9]{0,4})[xX×]([1-9][0-9]{0,4})(?:\*([0-9]{1,9}(?:\.[0-9]{1,9})?))?")
_LINE = re.compile(r"([1-9][0-9]{0,4})[xX×]([1-9][0-9]{0,4})[\s,;]+([0-9]{1,18}(?:\.[0-9]{1,9})?)")

# Chosen, not surveyed: sizes that pictures of these kinds commonly have, heavier where they are commoner.
_NAMED = {
    "photos": "640x480*3,480x640,800x600*3,600x800,1024x768*3,768x1024,1024x683*3,683x1024,1280x720*2,1280x960",
    "documents": "595x842*2,827x1169*4,850x1100*2,1240x1754*2,960x540*1,1280x720*1",
    "thumbnails": "64x64*1,96x96*1,128x128*3,150x150*2,160x120*2,120x160*1,200x150*2,192x256*1,256x192*1,256x256*2",
}
_UNIFORM = (64, 1024)
NAMES = (*_NAMED, "uniform")
"""Mixes with a name; `uniform` has both sides anywhere from 64 to 1024, each by itself."""


@dataclass(frozen=True)
class Mix:
    """Sizes with weights; or, where `sides` is set, any size between those two, both included."""

    name: str
    sizes: tuple[Size, ...] = ()
    weights: tuple[float, ...] = ()
    sides: tuple[int, int] | None = None

    @property
    def content(self) -> str:
        """What its pictures show unless told otherwise: "document" or "photo"."""
        return "document" if self.name.startswith("documents") else "photo"

    def scaled(self, factor: float) -> Mix:
        """The same with all sides times `factor`, at least a pixel each; raises `InvalidInput` if that is too large."""
        if not (math.isfinite(factor) and 0 < factor <= 100):
            raise InvalidInput(f"scale {factor}, expected more than 0 and at most 100")
        if factor == 1:
            return self
        sizes = tuple((_side(width, factor), _side(height, factor)) for width, height in self.sizes)
        sides = None if self.sides is None else (_side(self.sides[0], factor), _side(self.sides[1], factor))
        return _checked(replace(self, sizes=sizes, sides=sides))

    def draw(self, count: int, seed: int) -> list[Size]:
        """`count` sizes in a shuffled order that follows from `seed`, as near to the mix as so few can be.

        Sizes get the share of their weights but for one picture; drawn freely, two seeds would be two loads.
        """
        rng = np.random.default_rng([seed, 1])
        steps = (np.arange(count) + rng.uniform()) / count
        if self.sides is not None:
            least, most = self.sides
            width, height = (least + rng.permutation(steps) * (most - least + 1) for _ in range(2))
            return [(int(w), int(h)) for w, h in zip(width, height, strict=True)]
        ends = np.cumsum(self.weights) / sum(self.weights)
        chosen = rng.permutation(np.minimum(np.searchsorted(ends, steps, side="right"), len(self.sizes) - 1))
        return [self.sizes[index] for index in chosen]

    def apart(self) -> list[Mix]:
        """A mix for each size; raises `InvalidInput` where there is no list of them."""
        if not self.sizes:
            raise InvalidInput(f"mix {self.name} has no list of sizes to take one at a time")
        return [Mix(f"{width}x{height}", ((width, height),), (1.0,)) for width, height in self.sizes]


def mix_of(text: str) -> Mix:
    """The mix of that name, of a list `512x512,1024x768*3` (weights after the asterisk), or of a histogram file.

    Raises `InvalidInput` saying what is wrong with it.
    """
    if text == "uniform":
        return Mix("uniform", sides=_UNIFORM)
    if text in _NAMED:
        return _listed(text, _NAMED[text])
    path = Path(text)
    if not all(_ITEM.fullmatch(item.strip()) for item in text.split(",")) and _is_file(path):
        return _histogram(path)
    if _ITEM.match(text):
        return _listed(text, text)
    raise InvalidInput(
        f"mix {text[:_SHOWN]!r} is none of {', '.join(NAMES)}, no list like 512x512,1024x768*3, and no histogram file"
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def _listed(name: str, text: str) -> Mix:
    rows = []
    for item in text.split(","):
        match = _ITEM.fullmatch(item.strip())
        if match is None:
            raise InvalidInput(f"mix {name!r}: {item!r} is no size, expected WIDTHxHEIGHT or WIDTHxHEIGHT*WEIGHT")
        rows.append((int(match[1]), int(match[2]), float(match[3] or 1)))
    return _weighted(name, rows)


def _histogram(path: Path) -> Mix:
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise InvalidInput(f"{path}: {path.stat().st_size} bytes, the limit for a histogram is {_MAX_FILE_BYTES}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is no text file") from None
    rows = []
    for number, line in enumerate(lines, 1):
        said = line.partition("#")[0].strip()
        match = _LINE.fullmatch(said)
        if match is not None:
            rows.append((int(match[1]), int(match[2]), float(match[3])))
        elif said:
            raise InvalidInput(f"{path}, line {number}: {said[:80]!r}, expected WIDTHxHEIGHT COUNT")
    return _weighted(path.name, rows)


def _weighted(name: str, rows: Iterable[tuple[int, int, float]]) -> Mix:
    """The mix of `rows` of width, height and weight; equal sizes are one, those of weight 0 none."""
    weights: dict[Size, float] = {}
    for width, height, weight in rows:
        if weight > 0:
            weights[width, height] = weights.get((width, height), 0.0) + weight
    if not weights:
        raise InvalidInput(f"mix {name!r} holds no size")
    if len(weights) > _MAX_SIZES:
        raise InvalidInput(f"mix {name!r} holds {len(weights)} sizes, the limit is {_MAX_SIZES}")
    return _checked(Mix(name, tuple(weights), tuple(weights.values())))


def _checked(mix: Mix) -> Mix:
    for width, height in (*mix.sizes, *([] if mix.sides is None else [(mix.sides[1], mix.sides[1])])):
        if max(width, height) > MAX_SIDE:
            raise InvalidInput(f"mix {mix.name}: {width}x{height} has a side over the limit of {MAX_SIDE} pixels")
        if width * height > MAX_PIXELS:
            raise InvalidInput(f"mix {mix.name}: {width}x{height} is over the limit of {MAX_PIXELS} pixels")
    return mix


def _side(side: int, factor: float) -> int:
    return max(1, round(side * factor))
