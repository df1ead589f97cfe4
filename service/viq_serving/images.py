"""Bytes of image files to checked pixels, and pixels back to bytes. CPU only, safe to call from many threads."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError

from viq.config import grid_of
from viq.pixels import UNDECODABLE, to_rgb
from viq_serving.bombs import MeteredFile, refuse_before_loading, refuse_before_opening
from viq_serving.claims import PNG_START, claimed_size
from viq_serving.errors import InvalidInput, TooLarge, ViQError
from viq_serving.types import Alpha, PictureFormat

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""The Pillow formats that are opened; never one that runs a program, as EPS does."""

_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)
_WEBP_SIDE, _JPEG_SIDE = 16_383, 65_535

_BROKEN = (*UNDECODABLE, AttributeError, ArithmeticError, UserWarning, zlib.error)
"""What Pillow raises on broken headers, too; warnings count where the process makes them errors."""


@dataclass(frozen=True)
class ImageLimits:
    """What one image may be: bytes of the file, pixels, and 16x16 patches."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 50_000_000
    max_patches: int = 16_384


@dataclass(frozen=True)
class ImageHeader:
    """What the header says: Pillow's name of the format, pixels as they will be after EXIF orientation, patches."""

    format: str
    width: int
    height: int
    patches: int


def over_limit(height: int, width: int, limits: ImageLimits) -> str | None:
    """Which limit an image of `height` x `width` pixels is over, with value and limit, or None."""
    h, w = grid_of(height, width)
    if height * width > limits.max_pixels:
        return f"max_pixels: {width}x{height} is {height * width} pixels, the limit is {limits.max_pixels}"
    if h * w > limits.max_patches:
        return f"max_patches: {width}x{height} is {h * w} patches, the limit is {limits.max_patches}"
    return None


def probe(data: bytes, limits: ImageLimits, *, exif: bool = True) -> ImageHeader:
    """Read the header of an image file and hold it against `limits`; no pixel is decoded.

    Raises `InvalidInput` for what is no image of the known formats, `TooLarge` over a limit. An
    orientation that a PNG states only after its pixels is not seen here.
    """
    with _open(data, limits) as image:
        width, height = image.size
        # Pillow gives the size of a TIFF as it is after orientation, that of all others as stored.
        if _orientation(image) in _QUARTER_TURNS and exif != (image.format == "TIFF"):
            width, height = height, width
        h, w = grid_of(height, width)
        return ImageHeader(image.format or "", width, height, h * w)


def claimed_patches(data: bytes, limits: ImageLimits) -> int | None:
    """Patches by the size that a PNG or JPEG file claims, found without opening it; None if that is not easy.

    Opening a hostile file may take long; these few bytes are read at once. Raises as `probe` does.
    """
    _refuse_bytes(data, limits)
    claimed = claimed_size(data)
    if claimed is None or not all(claimed):
        return None
    _refuse_over(*claimed, limits)
    h, w = grid_of(*claimed)
    return h * w


def decode(data: bytes, limits: ImageLimits, *, exif: bool = True, alpha: Alpha = "white") -> npt.NDArray[np.uint8]:
    """Pixels `(H, W, 3)` of an image file within `limits`.

    Raises `InvalidInput` for what cannot be decoded whole, `TooLarge` over a limit, before any pixel is decoded.
    """
    with _open(data, limits) as image:
        try:
            return to_rgb(image, exif=exif, alpha=alpha)
        except ViQError:
            raise
        except Image.DecompressionBombError as error:
            raise TooLarge(f"image unpacks to too much: {error}") from None
        except _BROKEN as error:
            raise InvalidInput(f"{image.format} image cannot be decoded: {error}") from None


def encode_picture(pixels: npt.NDArray[np.uint8], format: PictureFormat) -> bytes:
    """The file of `pixels` `(H, W, 3)`: png without loss, jpeg and webp at high quality.

    Raises `InvalidInput` if a side is longer than the format can hold.
    """
    side, longest = max(pixels.shape[:2]), {"webp": _WEBP_SIDE, "jpeg": _JPEG_SIDE}.get(format)
    if longest is not None and side > longest:
        raise InvalidInput(f"{format} holds at most {longest} pixels a side, this picture has {side}; ask for png")
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if format == "png":
        image.save(buffer, "PNG", compress_level=3)
    elif format == "jpeg":
        image.save(buffer, "JPEG", quality=95, subsampling=0)
    else:
        image.save(buffer, "WEBP", quality=95)
    return buffer.getvalue()


def _open(data: bytes, limits: ImageLimits) -> ImageFile.ImageFile:
    """The image with only its header read, within `limits`."""
    _refuse_bytes(data, limits)
    if data.startswith(PNG_START):
        # Pillow opens a PNG only when all that stands before the pixels is sound; its claim is read first.
        _refuse_over(int.from_bytes(data[20:24]), int.from_bytes(data[16:20]), limits)
    coded = refuse_before_opening(data)
    try:
        image = Image.open(MeteredFile(data), formats=FORMATS)
    except ViQError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"image header: {error}; the limit is {limits.max_pixels} pixels") from None
    except UnidentifiedImageError:
        raise InvalidInput(f"not an image of a known format ({', '.join(FORMATS)})") from None
    except _BROKEN as error:
        # Pillow says so, as a ValueError, of text chunks that unpack to more than it will hold.
        kind = TooLarge if "too large" in str(error) else InvalidInput
        raise kind(f"image header cannot be read: {error}") from None
    _refuse_over(image.height, image.width, limits)
    refuse_before_loading(image, data, coded)
    return image


def _refuse_bytes(data: bytes, limits: ImageLimits) -> None:
    if not data:
        raise InvalidInput("image is empty (0 bytes)")
    if len(data) > limits.max_bytes:
        raise TooLarge(f"image is {len(data)} bytes, the limit is {limits.max_bytes}")


def _refuse_over(height: int, width: int, limits: ImageLimits) -> None:
    over = over_limit(height, width, limits)
    if over is not None:
        raise TooLarge(f"image is over {over}")


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # getexif() would decode the pixels to look behind them
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _BROKEN:
        return 1
    return value if isinstance(value, int) else 1
