"""Any picture to the 8-bit RGB pixels that codes are computed from. Needs numpy and Pillow only.

The rules: EXIF orientation, 16-bit to 8-bit, the colour model to RGB, alpha over white. ICC profiles
are ignored, so equal stored samples give equal codes.
"""

from __future__ import annotations

import io
import struct
import sys
import zlib
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin

from viq.errors import InvalidInput, TooLarge

Pixels: TypeAlias = npt.NDArray[np.uint8]
"""uint8 `(H, W, 3)`."""

ALPHA_RULES = ("white", "drop")

EXIF_LIMIT = 2**18
"""Bytes of EXIF that are looked through for the orientation. Pillow makes an object of each number in it."""

UNDECODABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, RuntimeError),
    *(struct.error, zlib.error, AssertionError),
)
"""What Pillow's decoders raise on damaged files."""

_DEEP_LAYOUTS = {f"{bands};16{order}" for bands in ("RGB", "RGBA", "RGBX") for order in "BLN"} | {"LA;16B"}
"""Pillow's names for the 16-bit colour that it reduces to 8 bits while loading."""

_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}

_KEY_SCALE = {"L;2": 85, "L;4": 17}
"""Pillow widens 2- and 4-bit grey to 8 bits, but not the transparent value beside it."""

_TURNS = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}
"""EXIF orientation to steps along rows and columns; from 5 on the sides are swapped first."""

_TURNED_BACK = {6: 8, 8: 6}


def to_rgb(image: Image.Image | npt.NDArray[np.uint8], *, exif: bool = True, alpha: str = "white") -> Pixels:
    """The pixels of `image`, uint8 `(H, W, 3)`, C-contiguous, possibly read-only.

    A uint8 array `(H, W, 3)` is used as it is; `(H, W, 4)` has alpha; `(H, W)` and `(H, W, 1)` are grey.
    A Pillow image gives the frame it stands at: the first one, of a file just opened. `exif=False` keeps
    the stored orientation. `alpha="white"` lays the picture over white, `"drop"` keeps the colours and
    forgets the alpha; palette and colour-key transparency is alpha too.

    16-bit samples are divided by 257, rounded to nearest, before alpha applies. For 16-bit colour the image
    must not have been loaded yet: once loaded, only the high bytes are left. Of 16-bit CMYK, and of TIFF that
    is premultiplied or stores its bands apart, Pillow gives no more than that. Mode I counts as 16-bit.

    Raises `TooLarge` for a decompression bomb and for more than `EXIF_LIMIT` bytes of EXIF. Raises `InvalidInput`
    for damaged files, other types and shapes, samples without a defined range (floating point, or mode I outside 0
    to 65535), and the one layout that Pillow reads wrongly: uncompressed 16-bit TIFF with bands stored apart.
    """
    if alpha not in ALPHA_RULES:
        raise InvalidInput(f"alpha={alpha!r}; there are {' and '.join(ALPHA_RULES)}")
    if isinstance(image, np.ndarray):
        return _from_array(image, alpha)
    if not isinstance(image, Image.Image):
        raise InvalidInput(f"image is {type(image).__name__}, expected a Pillow image or a uint8 array")
    if 0 in image.size:
        raise InvalidInput(f"image of {image.width}x{image.height} (width x height) has no pixels")
    try:
        return np.ascontiguousarray(_from_image(image, exif, alpha))
    except (InvalidInput, TooLarge):
        raise
    except Image.DecompressionBombError as error:
        raise TooLarge(f"image cannot be decoded: {error}") from None
    except UNDECODABLE as error:
        raise InvalidInput(f"image cannot be decoded: {error}") from None


def _from_array(array: npt.NDArray[np.uint8], alpha: str) -> Pixels:
    shaped = array[..., None] if array.ndim == 2 else array
    if array.dtype != np.uint8 or shaped.ndim != 3 or shaped.shape[2] not in (1, 3, 4) or 0 in shaped.shape:
        shapes = "(H, W, 3), (H, W, 4), (H, W, 1) or (H, W)"
        raise InvalidInput(f"image array is {array.dtype} of shape {array.shape}, expected uint8 {shapes}")
    if shaped.shape[2] == 1:
        return np.repeat(shaped, 3, axis=2)
    return np.ascontiguousarray(shaped) if shaped.shape[2] == 3 else _laid_over_white(shaped, alpha)


def _from_image(image: Image.Image, exif: bool, alpha: str) -> Pixels:
    layouts = _layouts(image)
    if layouts & {"R", "G", "B"} and 16 in getattr(image, "tag_v2", {}).get(TiffImagePlugin.BITSPERSAMPLE, ()):
        raise InvalidInput("image is an uncompressed 16-bit TIFF with bands stored apart, which cannot be read")
    low_bytes = _low_bytes(image, layouts)
    # Pillow turns a TIFF while it loads it, and then forgets the tag; other formats keep both.
    before = _orientation(image) if image.format == "TIFF" and layouts else 1
    image.load()
    after = _orientation(image)
    undo = _TURNED_BACK.get(before, before) if after == 1 else 1
    turn = after if exif else undo
    if low_bytes is not None:
        pixels = _deep_colour(image, low_bytes, alpha)
    elif image.mode in ("I", "F") or image.mode.startswith("I;16"):
        pixels = _deep_grey(image, 4095 if layouts == {"I;12"} else 65535, alpha)
    else:
        pixels = _shallow(image, layouts, alpha)
    if turn == 1:
        return pixels
    rows, columns = _TURNS[turn]
    return (pixels.transpose(1, 0, 2) if turn >= 5 else pixels)[::rows, ::columns]


def _shallow(image: Image.Image, layouts: set[str], alpha: str) -> Pixels:
    """An image of 8 bits a sample or fewer."""
    if image.mode == "La":
        image = image.convert("LA")  # Pillow knows no direct way from premultiplied grey
    if not image.has_transparency_data:
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    key = image.info.get("transparency")
    scale = max(_KEY_SCALE.get(layout, 1) for layout in layouts or {""})
    if image.mode == "L" and isinstance(key, int) and scale > 1:
        image = image.copy()
        image.info["transparency"] = key * scale
    # To drop alpha, RGBA is the way too: the colours are the same and Pillow has nothing to warn of.
    return _laid_over_white(np.asarray(image.convert("RGBA")), alpha)


def _laid_over_white(rgba: Pixels, alpha: str) -> Pixels:
    if alpha == "drop":
        return np.ascontiguousarray(rgba[..., :3])
    opacity = rgba[..., 3].astype(np.uint16)
    # At most 255 * 255 + 127, which fits 16 bits; an odd divisor knows no ties, so this rounds correctly.
    white = 255 * (255 - opacity) + 127
    laid = np.empty((*opacity.shape, 3), np.uint8)
    for band in range(3):
        mixed = rgba[..., band] * opacity
        mixed += white
        laid[..., band] = mixed // 255
    return laid


def _deep_grey(image: Image.Image, top: int, alpha: str) -> Pixels:
    if image.mode == "F":
        raise InvalidInput("image holds floating-point samples (mode F), whose range is not defined; make them 8 bits")
    samples = np.asarray(image)
    low, high = int(samples.min()), int(samples.max())
    if low < 0 or high > 65535:
        value = low if low < 0 else high
        raise InvalidInput(f"image holds the sample {value} (mode {image.mode}), expected 0 to 65535")
    grey = _narrowed(samples, top)
    key = image.info.get("transparency")
    if isinstance(key, int) and alpha == "white":
        grey[samples == key] = 255
    return np.repeat(grey[..., None], 3, axis=2)


def _deep_colour(image: Image.Image, low_bytes: Pixels, alpha: str) -> Pixels:
    """16-bit colour: the high bytes are in `image`, which is loaded."""
    samples = np.asarray(image).astype(np.uint16) << 8 | low_bytes
    colours = _narrowed(samples)
    if colours.shape[2] == 4:
        return _laid_over_white(colours, alpha)
    key = image.info.get("transparency")
    if isinstance(key, tuple) and alpha == "white":
        colours[(samples == np.array(key, np.uint16)).all(axis=2)] = 255
    return colours


def _narrowed(samples: npt.NDArray[np.generic], top: int = 65535) -> Pixels:
    """Samples from 0 to `top` as 8 bits, rounded to nearest; with 65535 that is division by 257."""
    scaled = (samples.astype(np.uint32) * 255 + top // 2) // top
    return np.minimum(scaled, 255).astype(np.uint8)


def _low_bytes(image: Image.Image, layouts: set[str]) -> Pixels | None:
    """The low bytes of 16-bit colour, `(H, W, bands)` as Pillow arranges them; None if `image` is nothing such.

    Pillow has no 16-bit colour modes: it keeps the high byte of every sample. Told that the byte order is
    the other one, it keeps the low byte, so the file is decoded a second time under that name.
    """
    if not isinstance(image, ImageFile.ImageFile) or image.mode not in ("RGB", "RGBA") or image.fp is None:
        return None
    if len(layouts) != 1 or not layouts <= _DEEP_LAYOUTS:
        return None
    (layout,) = layouts
    position = image.fp.tell()
    image.fp.seek(0)
    twin = Image.open(io.BytesIO(image.fp.read()), formats=[image.format or ""])
    image.fp.seek(position)
    twin.seek(image.tell())
    grey = layout == "LA;16B"
    # 16-bit grey with alpha has the four bytes of an 8-bit RGBA pixel: both halves of both samples.
    other = "RGBA" if grey else layout[:-1] + _OTHER_ORDER[layout[-1]]
    twin.tile = [t._replace(args=(other, *t.args[1:]) if isinstance(t.args, tuple) else other) for t in twin.tile]
    halves = np.asarray(twin)
    return halves[..., [1, 1, 1, 3]] if grey else halves


def _layouts(image: Image.Image) -> set[str]:
    """Pillow's names for how the samples lie in the file; empty once the image is loaded."""
    if not isinstance(image, ImageFile.ImageFile):
        return set()
    arguments = (tile.args for tile in image.tile)
    return {a if isinstance(a, str) else str(a[0]) for a in arguments if a}


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 if there is none or the metadata is damaged."""
    if len(image.info.get("exif", b"")) > EXIF_LIMIT:
        raise TooLarge(f"image has {len(image.info['exif'])} bytes of EXIF, the limit is {EXIF_LIMIT}")
    try:
        turn = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (*UNDECODABLE, UserWarning):  # Pillow warns of damage, and warnings may be errors
        return 1
    return turn if turn in _TURNS else 1
