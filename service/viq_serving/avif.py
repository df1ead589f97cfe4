"""What an AVIF file asks of its decoder, read from its boxes and AV1's headers. Nothing is decoded.

The size that the container claims binds nobody: the decoder makes each frame as large as the AV1 headers say, and then
scales it to what the container says of that part. So both are read here, of all that the file could be shown from.
Sources: ISO/IEC 14496-12 (boxes), ISO/IEC 23008-12 (items).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from viq.pixels import EXIF_LIMIT
from viq_serving.av1 import frame_pixels
from viq_serving.errors import InvalidInput, TooLarge

_BOXES, _PARTS = 8_192, 4_096
"""Boxes and places of parts that are looked at. No picture has so many."""

_LINKS = {b"ipma": 2**15, b"iref": 2**14}
"""Bytes of boxes whose every number libavif looks for among all that came before: of 4,000 tiles they have fewer."""

_KINDS, _RUNS, _CHUNKS, _SAMPLES = 16, 2**12, 2**14, 2**16
"""Of a track: kinds of samples, runs of chunks, chunks, and samples, of each of which libavif makes an object."""

_FREE_BYTES = 2**24
_SAMPLE_ENTRY = 78  # bytes of a kind of samples before its boxes

_ONCE = {b"meta", b"iinf", b"iloc", b"idat", b"iprp", b"ipco", b"mdia", b"minf", b"stbl"}
_ONCE |= {b"tkhd", b"stsd", b"stco", b"co64", b"stsz", b"stsc"}


def is_avif(data: bytes) -> bool:
    """Whether a decoder of AVIF would look at `data`: its first box says what files like it do."""
    if data[4:8] != b"ftyp":
        return False
    end = int.from_bytes(data[:4])
    brands = data[8 : end if end > 1 else None]
    return b"avif" in brands or b"avis" in brands


def coded_pixels(data: bytes) -> int:
    """Pixels of all frames that the first picture of an AVIF file could be made of, or those scaled if that is more.

    Items (tiles of a grid, alpha, thumbnails) and the first sample of every track count. Raises `InvalidInput` if
    that cannot be told and `TooLarge` for more of anything in it than a picture needs.
    """
    file = _File(data)
    pixels = sum(max(frame_pixels(part, file.count), area) for part, area in file.parts())
    if not pixels:
        raise InvalidInput("AVIF image has no AV1 picture in it")
    return pixels


class _File:
    """The boxes of a file; what is looked at is counted."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._seen = Counter[str]()

    def count(self, what: str, limit: int, by: int = 1) -> None:
        """Note so many more of something; raises `TooLarge` once there are more than `limit`."""
        self._seen[what] += by
        if self._seen[what] > limit:
            raise TooLarge(f"AVIF image has more than {limit} {what}")

    def parts(self) -> Iterator[tuple[bytes, int]]:
        """Bytes of each picture, of every item that is AV1 and the first sample of every track; pixels when scaled."""
        for kind, start, end in self._boxes(0, len(self._data), outermost=True):
            if kind == b"meta":
                yield from self._items(start + 4, end)
            elif kind == b"moov":
                for inner, at, stop in self._boxes(start, end):
                    if inner == b"trak":
                        yield from self._first_sample(at, stop)

    def _boxes(self, at: int, end: int, *, outermost: bool = False) -> Iterator[tuple[bytes, int, int]]:
        """Type, start and end of what is in each box. Behind the outermost boxes may stand anything."""
        once: set[bytes] = set()
        while at < end and not (outermost and end - at < 16):
            self.count("boxes", _BOXES)
            size, kind, start = self._number(at, 4), self._data[at + 4 : at + 8], at + 8
            if size == 1:
                size, start = self._number(start, 8), start + 8
            stop = end if size == 0 else at + size
            if not start <= stop <= end:
                if outermost:
                    return
                raise InvalidInput(f"AVIF image: box {kind!r} of {size} bytes does not fit where it stands")
            if kind in once:
                raise InvalidInput(f"AVIF image: there are two boxes {kind!r} where one may be")
            once |= {kind} & _ONCE
            if kind in _LINKS:
                self.count(f"bytes of {kind!r}", _LINKS[kind], stop - start)
            yield kind, start, stop
            at = stop

    def _number(self, at: int, size: int) -> int:
        digits = self._data[at : at + size]
        if len(digits) < size:
            raise InvalidInput("AVIF image is cut off in its header")
        return int.from_bytes(digits)

    def _items(self, at: int, end: int) -> Iterator[tuple[bytes, int]]:
        inside = {kind: (start, stop) for kind, start, stop in self._boxes(at, end)}
        areas = self._areas(*inside.get(b"iprp", (0, 0)))
        if b"iinf" not in inside or b"iloc" not in inside:
            return
        pictures: set[int] = set()
        exifs: set[int] = set()
        start, stop = inside[b"iinf"]
        start += 6 if self._number(start, 1) == 0 else 8
        for kind, info, _ in self._boxes(start, stop):
            if kind != b"infe":
                continue
            wide = self._number(info, 1) >= 3
            item, after = self._number(info + 4, 4 if wide else 2), info + (10 if wide else 8)
            {b"av01": pictures, b"Exif": exifs}.get(self._data[after : after + 4], set()).add(item)
        for item, extents in self._places(*inside[b"iloc"], inside.get(b"idat", (0, 0))[0]):
            size = sum(size for _, size in extents)
            if item in exifs and size > EXIF_LIMIT:
                raise TooLarge(f"AVIF image has over {EXIF_LIMIT} bytes of EXIF")
            if item in pictures and size:
                yield self._joined(extents), areas.get(item, 0)

    def _areas(self, at: int, end: int) -> dict[int, int]:
        """Pixels of items by their number, as `iprp` claims them: the largest of each."""
        inside = list(self._boxes(at, end))
        claims, areas = [0], Counter[int]()
        for kind, start, stop in inside:
            if kind == b"ipco":
                for claim, place, _ in self._boxes(start, stop):
                    sized = claim == b"ispe"
                    claims.append(self._number(place + 4, 4) * self._number(place + 8, 4) if sized else 0)
        for kind, start, stop in inside:
            if kind != b"ipma":
                continue
            wide, long = (4 if self._number(start, 1) else 2), 1 + (self._number(start + 3, 1) & 1)
            entries, at = self._number(start + 4, 4), start + 8
            for _ in range(entries):
                if at >= stop:
                    raise InvalidInput("AVIF image: box b'ipma' is cut off")
                item, count, at = self._number(at, wide), self._number(at + wide, 1), at + wide + 1
                for _ in range(count):
                    index, at = self._number(at, long) & (2 ** (8 * long - 1) - 1), at + long
                    areas[item] = max(areas[item], claims[index] if index < len(claims) else 0)
        return areas

    def _places(self, at: int, end: int, idat: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """Of each item in `iloc`: its number, and start and size of its extents."""
        version, sizes = self._number(at, 1), self._number(at + 4, 2)
        wide = 4 if version >= 2 else 2
        of_offset, of_length, of_base = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
        of_index = sizes & 15 if version else 0
        count, at = self._number(at + 6, wide), at + 6 + wide
        for _ in range(count):
            self.count("places of parts", _PARTS)
            item, at = self._number(at, wide), at + wide
            in_idat = version > 0 and self._number(at, 2) & 15 == 1
            at += 4 if version else 2
            base, at = self._number(at, of_base), at + of_base
            base += idat if in_idat else 0
            extents, extent_count, at = [], self._number(at, 2), at + 2
            self.count("places of parts", _PARTS, extent_count)
            for _ in range(extent_count):
                at += of_index
                start = base + self._number(at, of_offset)
                size = self._number(at + of_offset, of_length) if of_length else 0
                at += of_offset + of_length
                extents.append((start, size))
            yield item, extents
        if at > end:
            raise InvalidInput("AVIF image: box b'iloc' is cut off")

    def _first_sample(self, at: int, end: int) -> Iterator[tuple[bytes, int]]:
        """What a track begins with, if its pictures are AV1, and what is in its own `meta`."""
        area = 0
        for inner in (b"mdia", b"minf", b"stbl"):
            inside = {kind: (start, stop) for kind, start, stop in self._boxes(at, end)}
            if b"meta" in inside:
                yield from self._items(inside[b"meta"][0] + 4, inside[b"meta"][1])
            if b"tkhd" in inside:
                start = inside[b"tkhd"][0]
                start += 88 if self._number(start, 1) == 1 else 76  # of the sides, in 65,536ths of a pixel
                area = (self._number(start, 4) >> 16) * (self._number(start + 4, 4) >> 16)
            if inner not in inside:
                return
            at, end = inside[inner]
        inside = {kind: (start, stop) for kind, start, stop in self._boxes(at, end)}
        if b"stsd" not in inside or not self._is_av1(*inside[b"stsd"]):
            return
        table = {kind: start for kind, (start, _) in inside.items()}
        if not {b"stsz", b"stsc"} <= table.keys() or not table.keys() & {b"stco", b"co64"}:
            return
        if {b"stco", b"co64"} <= table.keys():
            raise InvalidInput("AVIF image: a track has both b'stco' and b'co64'")
        wide = b"co64" in table
        chunks = table[b"co64" if wide else b"stco"]
        runs = self._number(table[b"stsc"] + 4, 4)
        self.count("runs of chunks", _RUNS, runs)
        self.count("chunks", _CHUNKS, self._number(chunks + 4, 4))
        longest = max((self._number(table[b"stsc"] + 12 + 12 * run, 4) for run in range(runs)), default=0)
        self.count("samples", _SAMPLES, self._number(chunks + 4, 4) * longest)
        size = self._number(table[b"stsz"] + 4, 4) or self._number(table[b"stsz"] + 12, 4)
        yield self._joined([(self._number(chunks + 8, 8 if wide else 4), size)]), area

    def _is_av1(self, at: int, end: int) -> bool:
        """Whether a kind of samples is AV1; what is in all of them is counted, too."""
        self.count("kinds of samples", _KINDS, self._number(at + 4, 4))
        kinds = list(self._boxes(at + 8, end))
        for _, start, stop in kinds:
            for _ in self._boxes(start + _SAMPLE_ENTRY, stop):
                pass
        return any(kind == b"av01" for kind, _, _ in kinds)

    def _joined(self, extents: list[tuple[int, int]]) -> bytes:
        self.count("bytes in its parts", max(4 * len(self._data), _FREE_BYTES), sum(size for _, size in extents))
        return b"".join(self._data[start : start + size] for start, size in extents)
