"""The released sizes: one table row each. Widths and depths follow from the tensors, not from here."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from viq.errors import InvalidInput, UnknownModel

PATCH = 16
"""Side of a patch in pixels."""

CODES_PER_PATCH = 4
"""Sub-tokens, hence codes, of one patch."""

GRID = 128
"""Side of the released position grid, in patches."""

PREPROCESSING = "1"
"""Version of the pixel pipeline (bytes to normalised patches); enters every fingerprint."""


@dataclass(frozen=True)
class Variant:
    """One size of the model: the FSQ levels per dimension (model.md, "Sizes")."""

    size: str
    levels: tuple[int, ...]

    @property
    def codebook_size(self) -> int:
        """Number of distinct codes, `prod(levels)`."""
        return prod(self.levels)


VARIANTS = {
    v.size: v
    for v in (
        Variant("2k", (8, 8, 4, 3, 3)),
        Variant("4k", (8, 8, 4, 4, 4)),
        Variant("8k", (8, 8, 8, 4, 4)),
        Variant("16k", (8, 8, 8, 6, 5)),
        Variant("64k", (8, 8, 8, 5, 5, 5)),
        Variant("nano", (8, 8, 8, 5, 5, 5)),
    )
}


def variant(size: str) -> Variant:
    """The table row of `size`; raises `UnknownModel` naming the sizes there are."""
    try:
        return VARIANTS[size]
    except KeyError:
        raise UnknownModel(f"no size {size!r}; sizes: {', '.join(VARIANTS)}") from None


def grid_of(height: int, width: int) -> tuple[int, int]:
    """Patch grid `(h, w)` of an image of `height` x `width` pixels, padded up to whole patches."""
    if height < 1 or width < 1:
        raise InvalidInput(f"image size {height}x{width} (height x width) has no pixels")
    return -(-height // PATCH), -(-width // PATCH)
