"""What the device made, as it is answered: features as arrays, pictures as files; and what went wrong in its place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from viq.codes import Codes
from viq_serving.errors import Internal, ViQError
from viq_serving.images import encode_picture
from viq_serving.types import FeatureDtype, Features, Picture, PictureFormat

if TYPE_CHECKING:
    import torch

log = logging.getLogger("viq.tokenizer")

A = TypeVar("A")
B = TypeVar("B")


def picture_of(format: PictureFormat, pixels: npt.NDArray[np.uint8]) -> Picture:
    """The file of `pixels` `(H, W, 3)`."""
    return Picture(encode_picture(pixels, format), format, (pixels.shape[0], pixels.shape[1]))


def features_of(dtype: FeatureDtype, pair: tuple[torch.Tensor, Codes]) -> Features:
    """Features `(h*w, C)` in `dtype`, of their own memory, and the codes they were made of."""
    import torch

    tensor, codes = pair[0].to(getattr(torch, dtype), copy=True), pair[1]  # not the whole pack's memory with it
    if dtype == "bfloat16":  # numpy has no such type: its bits travel as uint16
        return Features(tensor.view(torch.int16).numpy().view(np.uint16), dtype, codes.grid, codes.image_size)
    return Features(tensor.numpy(), dtype, codes.grid, codes.image_size)


def paired(left: Sequence[A | ViQError], right: Sequence[B | ViQError]) -> list[tuple[A, B] | ViQError]:
    """Both of each place; an error on either side takes it."""
    pairs: list[tuple[A, B] | ViQError] = []
    for a, b in zip(left, right, strict=True):
        pairs.append(a if isinstance(a, ViQError) else b if isinstance(b, ViQError) else (a, b))
    return pairs


def or_error(work: Callable[[A], B], item: A | ViQError) -> B | ViQError:
    """What `work` makes of `item`, or the error that it ends with or that `item` is."""
    if isinstance(item, ViQError):
        return item
    try:
        return work(item)
    except ViQError as error:
        return error.bare()
    except Exception:
        log.exception("an image of a request could not be worked on")
        return Internal()
