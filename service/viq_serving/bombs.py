"""Files that cost far more than the picture they claim: refused by what stands in them, before it is unpacked.

Limits on bytes and pixels do not see them: a scan, a tile, a tag or a comment that takes a few bytes of the file takes
milliseconds or megabytes of whoever reads it.
"""

from __future__ import annotations

import io
import re
import struct

from PIL import ImageFile, TiffImagePlugin

from viq.pixels import EXIF_LIMIT
from viq_serving.avif import coded_pixels, is_avif
from viq_serving.errors import InvalidInput, TooLarge

_SCANS = 100
"""Passes over a JPEG picture. Encoders make about ten; libvips and libtiff stop at as many."""

_EXIF_PARTS = 64
_COMMENTS = 1024
_TAG_VALUES = 2**16
_HIDDEN = 16
"""Times the pixels of a picture that may be decoded to show it: tiles stand out over its edges, alpha is a frame."""

_FREE_PIXELS, _FREE_READS = 2**22, 4096
_BYTES_A_READ = 64

_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)
_SCAN, _END = 0xDA, 0xD9
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}

_TIFF = re.compile(rb"(?:II|MM)(?:[*+]\x00|\x00[*+])", re.DOTALL)
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


class MeteredFile(io.BytesIO):
    """A file that says `TooLarge` when it is read in more pieces than the decoder of any sound file has use for.

    Pillow reads headers a few bytes at a time; a file of millions of empty blocks holds Python's lock for minutes.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._allowed = self._left = _FREE_READS + len(data) // _BYTES_A_READ

    def allow(self, reads: int) -> None:
        """That many more."""
        self._allowed += reads
        self._left += reads

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file; raises `TooLarge` from the first read on that is one too many."""
        self._left -= 1
        if self._left < 0:
            raise TooLarge(
                f"image is in small pieces: its {len(self.getbuffer())} bytes take more than {self._allowed} reads"
            )
        return super().read(size)


def refuse_before_opening(data: bytes) -> None:
    """Raise `TooLarge` or `InvalidInput` for what would cost much already to open, or says so in its bytes."""
    if data.startswith(b"\xff\xd8"):
        _refuse_scans(data)
    elif _TIFF.match(data):
        _refuse_tags(data)
    elif is_avif(data):
        coded_pixels(data)
    elif data.startswith((b"P1", b"P2", b"P3")):
        comments = data.count(b"#")
        if comments > _COMMENTS:
            raise TooLarge(f"PPM image has {comments} comments, the limit is {_COMMENTS}")


def refuse_before_loading(image: ImageFile.ImageFile, data: bytes) -> None:
    """Raise `TooLarge` or `InvalidInput` if more is to be decoded than an open image claims to be."""
    width, height = image.size
    limit = max(_HIDDEN * width * height, _FREE_PIXELS)
    exif = image.info.get("exif", b"")
    if len(exif) > EXIF_LIMIT:
        raise TooLarge(f"image has {len(exif)} bytes of EXIF, the limit is {EXIF_LIMIT}")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _refuse_tiles(image, limit)
    elif image.format == "AVIF":
        pixels = coded_pixels(data)
        if pixels > limit:
            raise TooLarge(f"AVIF image of {width}x{height} has {pixels} pixels in its frames, the limit is {limit}")
    elif image.format in ("BMP", "PPM") and isinstance(image.fp, MeteredFile):
        image.fp.allow(4 * width * height)  # some kinds are read pixel by pixel


def _refuse_scans(data: bytes) -> None:
    parts = data.count(b"Exif\0\0")
    if parts > _EXIF_PARTS:  # Pillow joins them
        raise TooLarge(f"JPEG image has EXIF in {parts} parts, the limit is {_EXIF_PARTS}")
    if data.count(bytes((0xFF, _SCAN))) <= _SCANS:
        return  # which is nearly all; what follows takes time
    scans, at = 0, 2
    while found := _MARKER.search(data, at):
        kind, at = found[1][0], found.end()
        if kind == _END:
            return
        if kind in _WITHOUT_LENGTH:
            continue
        at += max(2, int.from_bytes(data[at : at + 2]))
        scans += kind == _SCAN
        if scans > _SCANS:
            raise TooLarge(f"JPEG image has more than {_SCANS} scans")


def _refuse_tags(data: bytes) -> None:
    """Numbers and bytes of the first directory's tags. Pillow makes an object of each strip; older ones read more."""
    order, large = ("<" if data[:2] == b"II" else ">"), b"+" in data[2:4]
    entry, start, count = (f"{order}HHQ8s", "Q", "Q") if large else (f"{order}HHL4s", "L", "H")
    try:
        (at,) = struct.unpack_from(order + start, data, 8 if large else 4)
        (entries,) = struct.unpack_from(order + count, data, at)
    except (struct.error, OverflowError):
        raise InvalidInput("TIFF image is cut off before its tags") from None
    at += struct.calcsize(order + count)
    size = struct.calcsize(entry)
    whole, outside = data[at : at + size * min(entries, 2**16)], 0
    for tag, kind, values, _ in struct.iter_unpack(entry, whole[: len(whole) // size * size]):
        unit = _TIFF_SIZES.get(kind, 0)
        if tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH) and kind not in (3, 4):
            raise InvalidInput(f"TIFF image: the tiles' size is of type {kind}, expected 3 or 4")  # Pillow skips some
        if values * unit > len(data):
            continue  # Pillow leaves it out
        outside += values * unit
        if kind not in (1, 2, 6, 7) and unit and values > _TAG_VALUES:
            raise TooLarge(f"TIFF image: tag {tag} has {values} values, the limit is {_TAG_VALUES}")
    if outside > 4 * len(data):
        raise TooLarge(f"TIFF image of {len(data)} bytes has tags of {outside} bytes, one on top of the other")


def _refuse_tiles(image: TiffImagePlugin.TiffImageFile, limit: int) -> None:
    tags = (
        TiffImagePlugin.IMAGEWIDTH,
        TiffImagePlugin.TILEWIDTH,
        TiffImagePlugin.IMAGELENGTH,
        TiffImagePlugin.TILELENGTH,
    )
    sides = [image.tag_v2.get(tag) for tag in tags]
    if sides[1] is None and sides[3] is None:
        return  # in strips, which end where the image does
    wide, across, high, down = (side if isinstance(side, int) else 0 for side in sides)
    if not (across > 0 and down > 0):
        raise InvalidInput(f"TIFF image of {wide}x{high} is in tiles of {sides[1]}x{sides[3]}")
    pixels = -(-wide // across) * across * -(-high // down) * down
    if pixels > limit:
        raise TooLarge(
            f"TIFF image of {wide}x{high} has {pixels} pixels in tiles of {across}x{down}, the limit is {limit}"
        )
