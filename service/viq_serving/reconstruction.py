"""Images through codes and back, and how much of them is left."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter

from viq.codes import Codes
from viq_serving.errors import ViQError
from viq_serving.images import ImageLimits, decode, encode_picture
from viq_serving.similarity import psnr, ssim
from viq_serving.tokenizer import Tokenizer
from viq_serving.types import ImageFile, ModelInfo, Picture, PictureFormat, Results, Terms, Timings

_UNLIMITED = ImageLimits(max_bytes=sys.maxsize, max_patches=sys.maxsize)  # for what we have made ourselves


@dataclass(frozen=True)
class Reconstruction:
    """What the codes of one image, of `grid` `(h, w)`, become, and how like the image that is.

    `psnr` is in dB, infinity if nothing is lost; `ssim` is NaN for images with a side shorter than its window. Both
    are of the decoded pixels, before a lossy picture format.
    """

    picture: Picture
    grid: tuple[int, int]
    psnr: float
    ssim: float

    @property
    def image_size(self) -> tuple[int, int]:
        """`(H, W)` in pixels."""
        return self.picture.image_size


async def reconstruct(
    tokenizer: Tokenizer, images: Sequence[ImageFile], model: ModelInfo, format: PictureFormat, terms: Terms
) -> Results[Reconstruction]:
    """Encode and decode `images`, one item each. Raises what encoding and decoding raise."""
    encoded = await tokenizer.encode(images, model, terms)
    # Once half of the work is done, a full queue is waited for and does not waste it.
    decoded = await tokenizer.decode(encoded.items, model, "png", terms=replace(terms, patient=True))
    begun, steps = perf_counter(), zip(images, encoded.items, decoded.items, strict=True)
    made = [
        codes if isinstance(codes, ViQError) else picture if isinstance(picture, ViQError) else (image, codes, picture)
        for image, codes, picture in steps
    ]
    items = await tokenizer.beside(partial(_compared, format, tokenizer.limits), made, terms)
    compared = Timings(postprocess=1000 * (perf_counter() - begun))
    return Results(model, items, encoded.timings + decoded.timings + compared)


def _compared(format: PictureFormat, limits: ImageLimits, made: tuple[ImageFile, Codes, Picture]) -> Reconstruction:
    image, codes, picture = made
    before = decode(image.data, limits, exif=image.options.exif, alpha=image.options.alpha)
    after = decode(picture.data, _UNLIMITED)
    if format != "png":
        picture = Picture(encode_picture(after, format), format, picture.image_size)
    return Reconstruction(picture, codes.grid, psnr(before, after), ssim(before, after))
