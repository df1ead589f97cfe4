"""Files that cost far more than the picture they claim: refused by what stands in them, before it is unpacked.

Limits on bytes and pixels do not see them: a scan, a tile, a tag or a comment that takes a few bytes of the file takes
milliseconds or megabytes of whoever reads it.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from contextlib import suppress

from PIL import ImageFile, TiffImagePlugin

from viq.pixels import EXIF_LIMIT
from viq_serving.avif import coded_pixels, is_avif
from viq_serving.claims import JPEG_START, jpeg_size
from viq_serving.errors import InvalidInput, TooLarge

_SCANS = 100
"""Passes over a JPEG picture. Encoders make about ten; libvips and libtiff stop at as many."""

_EXIF_PARTS = 16
_PACKED_TEXTS = 64
_FILLING = b"\xff" * 2**20
_COMMENTS = 1024
_TAGS, _TAG_VALUES = 4096, 2**16
_HIDDEN = 16
"""Times the pixels of a picture that may be decoded to show it: tiles stand out over its edges, alpha is a frame."""

_FREE_PIXELS, _FREE_BYTES, _FREE_READS = 2**22, 2**20, 4096
_BYTES_A_READ = 32

_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])", re.DOTALL)
"""One that ends pixels or has a length; libjpeg goes past the others."""

_EXIF_PART = re.compile(rb"\xff\xe1..Exif\0\0", re.DOTALL)
_SCAN, _END = 0xDA, 0xD9

_TIFF = re.compile(rb"(?:II|MM)(?:[*+]\x00|\x00[*+])", re.DOTALL)
_BIG_TIFF_BACKWARDS = b"MM\x00+"
_DIRECTORIES = {34665, 34853, 40965}
"""Tags whose value is the place of more: EXIF, GPS and, within EXIF, interoperability."""

_MOST_DIRECTORIES = 16
_JPEG_IN_TIFF = (6, 7)
_JPEG_BLOCK = 16  # sides are rounded up to it
_JPEG_PLACE = 513  # of a stream in the older kind
_JPEG_SEGMENTS = 32  # looked at in each of many

_PLACES = {3: "H", 4: "L", 8: "H", 9: "L", 13: "L", 16: "Q"}
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


class MeteredFile(io.BytesIO):
    """A file that says `TooLarge` when it is read in more pieces than what encoders make has use for.

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


def refuse_before_opening(data: bytes) -> int | None:
    """Raise `TooLarge` or `InvalidInput` for what would cost much already to open, or says so in its bytes.

    Of AVIF, the pixels that are to be decoded.
    """
    if data.startswith(JPEG_START):
        _refuse_scans(data)
    elif _TIFF.match(data):
        _refuse_tags(data)
    elif is_avif(data):
        return coded_pixels(data)
    elif data.startswith(b"\x89PNG"):
        texts = sum(data.count(kind) for kind in (b"iCCP", b"iTXt", b"zTXt"))  # each unpacks to up to a megabyte
        if texts > _PACKED_TEXTS:
            raise TooLarge(f"PNG image has {texts} packed texts and profiles, the limit is {_PACKED_TEXTS}")
    elif data.startswith((b"P1", b"P2", b"P3")):
        comments = data.count(b"#")
        if comments > _COMMENTS:
            raise TooLarge(f"PPM image has {comments} comments, the limit is {_COMMENTS}")
    return None


def refuse_before_loading(image: ImageFile.ImageFile, data: bytes, coded: int | None) -> None:
    """Raise `TooLarge` or `InvalidInput` if more is to be decoded than an open image claims to be.

    `coded` is what `refuse_before_opening` gave.
    """
    width, height = image.size
    limit = max(_HIDDEN * width * height, _FREE_PIXELS)
    exif = image.info.get("exif", b"")
    if len(exif) > EXIF_LIMIT:
        raise TooLarge(f"image has {len(exif)} bytes of EXIF, the limit is {EXIF_LIMIT}")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _refuse_tiles(image, limit)
        _refuse_shared(image, data)
        if image.tag_v2.get(TiffImagePlugin.COMPRESSION) in _JPEG_IN_TIFF:
            _refuse_tall(image, data)
        _allow(image, 4 * len(image.tile))
    elif image.format == "AVIF":
        pixels = coded_pixels(data) if coded is None else coded
        if pixels > limit:
            raise TooLarge(f"AVIF image of {width}x{height} has {pixels} pixels in its frames, the limit is {limit}")
    elif image.format in ("BMP", "PPM"):
        _allow(image, 2 * (width + 1) * height)  # some kinds are read pixel by pixel


def _allow(image: ImageFile.ImageFile, reads: int) -> None:
    if isinstance(image.fp, MeteredFile):
        image.fp.allow(reads)


def _refuse_scans(data: bytes) -> None:
    parts = data.count(b"Exif\0\0")
    if parts > _EXIF_PARTS and (parts := len(_EXIF_PART.findall(data))) > _EXIF_PARTS:  # Pillow joins them
        raise TooLarge(f"JPEG image has EXIF in {parts} parts, the limit is {_EXIF_PARTS}")
    if _FILLING in data:  # libjpeg goes back to its start for each block of the file that continues it
        raise TooLarge(
            f"JPEG image has {len(_FILLING)} bytes of filling in one piece, the limit is {len(_FILLING) - 1}"
        )
    if data.count(bytes((0xFF, _SCAN))) <= _SCANS:
        return  # which is nearly all; what follows takes time
    scans = markers = at = 0
    most = _FREE_READS + len(data) // _BYTES_A_READ
    while found := _MARKER.search(data, at + 2):
        kind, at = found[1][0], found.start()
        if kind == _END:
            return
        scans, markers = scans + (kind == _SCAN), markers + 1
        if scans > _SCANS or markers > most:
            raise TooLarge(f"JPEG image has more than {_SCANS} scans or more than {most} markers")
        at += max(2, int.from_bytes(data[at + 2 : at + 4]))


def _refuse_tags(data: bytes) -> None:
    """Of the tags that Pillow reads: it makes an object of each number, and older ones read also what overlaps."""
    if data.startswith(_BIG_TIFF_BACKWARDS):  # Pillow takes it for a small one, others do not
        raise InvalidInput("TIFF image is a BigTIFF with the high byte first, which cannot be read")
    order, large = ("<" if data[:2] == b"II" else ">"), data[2:3] == b"+"
    try:
        (at,) = struct.unpack_from(order + ("Q" if large else "L"), data, 8 if large else 4)
        tags = list(_tags_at(at, data, order, large=large))
    except (struct.error, OverflowError):
        raise InvalidInput("TIFF image is cut off before its tags") from None
    outside, count, seen = 0, 0, {at}
    while count < len(tags):
        tag, kind, values, place = tags[count]
        count += 1
        unit = _TIFF_SIZES.get(kind, 0)
        if tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH) and kind not in (3, 4):
            raise InvalidInput(f"TIFF image: the tiles' size is of type {kind}, expected 3 or 4")  # Pillow skips some
        if values * unit > len(data):
            continue  # Pillow leaves it out
        outside += values * unit
        if kind not in (1, 2, 6, 7) and unit and values > _TAG_VALUES:
            raise TooLarge(f"TIFF image: tag {tag} has {values} values, the limit is {_TAG_VALUES}")
        if tag in _DIRECTORIES and kind in _PLACES and values == 1:
            if unit > len(place):
                raise InvalidInput(f"TIFF image: the place of the directory of tag {tag} is of type {kind}, expected 4")
            with suppress(struct.error, OverflowError):  # nothing is there
                (at,) = struct.unpack_from(order + _PLACES[kind], place)
                if at not in seen:
                    tags += _tags_at(at, data, order, large=large)
                    seen.add(at)
            if len(seen) > _MOST_DIRECTORIES:
                raise TooLarge(f"TIFF image has more than {_MOST_DIRECTORIES} directories of EXIF")
    if outside > 4 * len(data):
        raise TooLarge(f"TIFF image of {len(data)} bytes has tags of {outside} bytes, one on top of the other")


def _tags_at(at: int, data: bytes, order: str, *, large: bool) -> Iterator[tuple[int, int, int, bytes]]:
    """Number, type, count of values, and value or place, of each tag of the directory at `at`."""
    entry, count = (f"{order}HHQ8s", f"{order}Q") if large else (f"{order}HHL4s", f"{order}H")
    (entries,) = struct.unpack_from(count, data, at)
    if entries > _TAGS:
        raise TooLarge(f"TIFF image has {entries} tags in one directory, the limit is {_TAGS}")
    at, size = at + struct.calcsize(count), struct.calcsize(entry)
    whole = data[at : at + size * entries]
    return struct.iter_unpack(entry, whole[: len(whole) // size * size])


def _refuse_tiles(image: TiffImagePlugin.TiffImageFile, limit: int) -> None:
    sides = image.tag_v2.get(TiffImagePlugin.TILEWIDTH), image.tag_v2.get(TiffImagePlugin.TILELENGTH)
    if sides == (None, None):
        return  # in strips, which end where the image does
    wide, high = (_number(image, tag, 0) for tag in (TiffImagePlugin.IMAGEWIDTH, TiffImagePlugin.IMAGELENGTH))
    across, down = (side if isinstance(side, int) else 0 for side in sides)
    if not (across > 0 and down > 0):
        raise InvalidInput(f"TIFF image of {wide}x{high} is in tiles of {sides[0]}x{sides[1]}")
    pixels = -(-wide // across) * across * -(-high // down) * down
    if pixels > limit:
        raise TooLarge(
            f"TIFF image of {wide}x{high} has {pixels} pixels in tiles of {across}x{down}, the limit is {limit}"
        )


def _refuse_shared(image: TiffImagePlugin.TiffImageFile, data: bytes) -> None:
    """A decoder goes through all bytes of a strip, also of many strips that are the same bytes."""
    for tag in (TiffImagePlugin.STRIPBYTECOUNTS, TiffImagePlugin.TILEBYTECOUNTS):
        size = sum(_numbers(image, tag))
        if size > max(4 * len(data), _FREE_BYTES):
            raise TooLarge(f"TIFF image of {len(data)} bytes has strips or tiles of {size} bytes")


def _refuse_tall(image: TiffImagePlugin.TiffImageFile, data: bytes) -> None:
    """libtiff takes JPEG that is higher than its strip, and the memory for all of it."""
    high = _number(image, TiffImagePlugin.IMAGELENGTH, 0)
    rows = _number(image, TiffImagePlugin.TILELENGTH, min(_number(image, TiffImagePlugin.ROWSPERSTRIP, high), high))
    for tag in (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.TILEOFFSETS, _JPEG_PLACE):
        most = (high if tag == _JPEG_PLACE else rows) + _JPEG_BLOCK
        for place in set(_numbers(image, tag)):
            if not data.startswith(JPEG_START, place):
                continue
            claimed = jpeg_size(data, place, _JPEG_SEGMENTS)
            if claimed is None:
                raise InvalidInput("TIFF image has JPEG that does not begin with its size")
            if claimed[0] > most:
                raise TooLarge(f"TIFF image has JPEG of {claimed[0]} rows where {most} are the limit")


def _numbers(image: TiffImagePlugin.TiffImageFile, tag: int) -> tuple[int, ...]:
    value = image.tag_v2.get(tag, ())
    return tuple(one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, int) and one >= 0)


def _number(image: TiffImagePlugin.TiffImageFile, tag: int, default: int) -> int:
    return next(iter(_numbers(image, tag)), default)
