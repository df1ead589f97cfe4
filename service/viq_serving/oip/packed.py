"""The codes of several images in a few tensors: one after the other, with where each ends and its shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import cast

import numpy as np
import numpy.typing as npt

from viq.codes import Codes
from viq.config import CODES_PER_PATCH
from viq_serving.errors import InvalidInput, TooLarge, ViQError
from viq_serving.oip.tensors import Output, Tensor


def pack(codes: Sequence[Codes]) -> list[Output]:
    """The outputs of viq-encode."""
    return [
        Output("codes", "UINT16", np.concatenate([one.flat for one in codes])),
        ends([one.flat.size for one in codes]),
        Output("grid_hw", "INT32", np.asarray([one.grid for one in codes], np.int32)),
        Output("image_hw", "INT32", np.asarray([one.image_size for one in codes], np.int32)),
    ]


def ends(lengths: Sequence[int]) -> Output:
    """Where each image begins and the last one ends."""
    return Output("cu_seqlens", "INT32", np.array([*accumulate(lengths, initial=0)], np.int32))


def unpack(inputs: Mapping[str, Tensor], size: str, fingerprint: str, max_patches: int) -> list[Codes]:
    """The codes of each image from `codes`, `grid_hw` and, where it is there, `image_hw`.

    Raises `InvalidInput`, naming the image, for what does not fit together, and `TooLarge` over `max_patches` of one
    image, before anything is unpacked.
    """
    grids = _pairs(inputs["grid_hw"])
    lengths = [_codes_in(index, h, w, max_patches) for index, (h, w) in enumerate(grids)]
    flat = cast(npt.NDArray[np.uint16], inputs["codes"].numbers())
    if flat.size != sum(lengths):
        raise InvalidInput(f"codes has {flat.size} elements, the grids in grid_hw take {sum(lengths)}")
    pixels: Sequence[tuple[int, int] | None] = [None] * len(grids)
    if "image_hw" in inputs:
        pixels = _pairs(inputs["image_hw"])
    if len(pixels) != len(grids):
        raise InvalidInput(f"image_hw has {len(pixels)} rows, grid_hw has {len(grids)}")
    images, begin = [], 0
    for index, (grid, length) in enumerate(zip(grids, lengths, strict=True)):
        try:
            images.append(Codes.from_flat(flat[begin : begin + length], grid, size, pixels[index], fingerprint))
        except ViQError as error:
            raise of_image(index, error) from None
        begin += length
    return images


def of_image(index: int, error: ViQError) -> ViQError:
    """`error`, saying which image it is about."""
    named = type(error).__new__(type(error))  # errors differ in what their constructors take
    named.__dict__.update(error.__dict__)
    named.args = (f"image {index}: {error}",)
    return named


def _pairs(tensor: Tensor) -> list[tuple[int, int]]:
    return cast(list[tuple[int, int]], tensor.numbers().reshape(-1, 2).tolist())


def _codes_in(index: int, h: int, w: int, max_patches: int) -> int:
    """How many codes a grid of `h` x `w` patches has."""
    if h < 1 or w < 1:
        raise InvalidInput(f"image {index}: grid {h}x{w} has no patches")
    if h * w > max_patches:
        raise TooLarge(f"image {index}: grid {h}x{w} is {h * w} patches, the limit is {max_patches}")
    return CODES_PER_PATCH * h * w
