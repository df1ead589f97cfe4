"""The compact file of one image's codes, `.viq`: 60 bytes that say what it is, then the codes. docs/code-file.md.

Codes are packed at the fewest bits that hold the codebook (12 for 2k and 4k, 13 for 8k, 14 for 16k, 16 for 64k and
nano), or compressed by Zstandard as 16-bit numbers where that is shorter. Needs numpy only, and the package zstandard
for files that are compressed.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from viq.config import CODES_PER_PATCH, Variant, variant
from viq.errors import InvalidInput, TooLarge

MAGIC, VERSION, SUFFIX = b"\x89ViQ", 1, ".viq"
HEADER_BYTES = 60

Compress: TypeAlias = Literal["auto", "never", "always"]

_HEADER = struct.Struct("<4sBBBB8s8sIIII8s4sI")  # and the CRC after it
_PLAIN, _ZSTD = 0, 1
_FAMILY, _MODE = 1, 2
_WHOLE_BITS = 16
_LEVEL = 19  # the slowest but for those that want much memory: some milliseconds for an image, and read as fast as any
_FINGERPRINT = re.compile(r"([0-9a-f]{16})(?:\.([0-9a-f]{8}))?")


@dataclass(frozen=True)
class Contents:
    """What a file holds; `flat` is uint16, `(4*h*w,)`."""

    flat: npt.NDArray[np.uint16]
    grid: tuple[int, int]
    image_size: tuple[int, int]
    size: str
    fingerprint: str


@dataclass(frozen=True)
class _Header:
    bits: int
    compression: int
    size: str
    image_size: tuple[int, int]
    grid: tuple[int, int]
    fingerprint: str
    payload: int

    @property
    def codes(self) -> int:
        return CODES_PER_PATCH * self.grid[0] * self.grid[1]


def bits_of(row: Variant) -> int:
    """The fewest bits that hold every code of a size."""
    return (row.codebook_size - 1).bit_length()


def written(contents: Contents, compress: Compress = "auto") -> bytes:
    """The file of `contents`, which must be right in themselves, as those of a `Codes` are.

    `auto` compresses what becomes shorter by it, where zstandard is installed. Raises `InvalidInput` for a fingerprint
    that is not of this project's form, and for `always` without zstandard.
    """
    if compress not in ("auto", "never", "always"):
        raise InvalidInput(f"compress={compress!r}; there are auto, never and always")
    bits, compression = bits_of(variant(contents.size)), _PLAIN
    payload = packed(contents.flat, bits)
    zstandard = None if compress == "never" else _zstandard(needed=compress == "always")
    if zstandard is not None:
        shorter: bytes = zstandard.ZstdCompressor(level=_LEVEL).compress(packed(contents.flat, _WHOLE_BITS))
        if compress == "always" or len(shorter) < len(payload):
            payload, bits, compression = shorter, _WHOLE_BITS, _ZSTD
    head = _head(contents, bits, compression, len(payload))
    return head + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))) + payload


def read(data: bytes, max_bytes: int, what: str = ".viq file") -> Contents:
    """What a file holds; `what` names it in messages. Every field and the CRC are looked at.

    Raises `InvalidInput` for anything that `written` does not write, `TooLarge` if the codes take more than
    `max_bytes`, `UnknownModel` for a size there is not.
    """
    if data[:4] != MAGIC:
        raise InvalidInput(f"{what}: no .viq file (it begins with {data[:4]!r}, not {MAGIC!r})")
    if len(data) > 4 and data[4] != VERSION:
        raise InvalidInput(
            f"{what}: of version {data[4]} of the .viq form, this program reads version {VERSION}: "
            "update viq-serving, or encode the image again"
        )
    if len(data) < HEADER_BYTES:
        raise InvalidInput(f"{what}: {len(data)} bytes, a .viq file has {HEADER_BYTES} and its codes: it is cut short")
    payload_bytes, crc = struct.unpack_from("<II", data, HEADER_BYTES - 8)
    if len(data) != HEADER_BYTES + payload_bytes:
        wrong = "is cut short" if len(data) < HEADER_BYTES + payload_bytes else "goes on after its end"
        raise InvalidInput(f"{what}: {len(data)} bytes, by its header {HEADER_BYTES + payload_bytes}: it {wrong}")
    payload = memoryview(data)[HEADER_BYTES:]
    if zlib.crc32(payload, zlib.crc32(data[: HEADER_BYTES - 4])) != crc:
        raise InvalidInput(f"{what}: its CRC is not that of its contents: it is damaged, encode the image again")
    header = _header(data, what)
    if 2 * header.codes > max_bytes:
        raise TooLarge(f"{what}: codes of a {header.grid[0]}x{header.grid[1]} grid are more than {max_bytes} bytes")
    flat = unpacked(_plain(payload, header, what), header.bits, header.codes, what)
    return Contents(flat, header.grid, header.image_size, header.size, header.fingerprint)


def packed(flat: npt.NDArray[np.uint16], bits: int) -> bytes:
    """Codes one after another as `bits` bits each, the lowest first, from the lowest bit of the first byte on."""
    if bits == _WHOLE_BITS:
        return flat.astype("<u2", copy=False).tobytes()
    each = np.unpackbits(flat.astype("<u2").view(np.uint8).reshape(-1, 2), axis=1, bitorder="little")
    return np.packbits(each[:, :bits], bitorder="little").tobytes()


def unpacked(payload: bytes | memoryview, bits: int, count: int, what: str = "codes") -> npt.NDArray[np.uint16]:
    """The inverse of `packed`; raises `InvalidInput` unless `payload` is as long as `count` codes and ends in zeros."""
    expected = -(-count * bits // 8)
    if len(payload) != expected:
        raise InvalidInput(f"{what}: {len(payload)} bytes of codes, expected {expected}: {count} codes of {bits} bits")
    if bits == _WHOLE_BITS:
        return np.frombuffer(payload, "<u2").astype(np.uint16, copy=False)
    stream = np.unpackbits(np.frombuffer(payload, np.uint8), bitorder="little")
    if stream[count * bits :].any():
        raise InvalidInput(f"{what}: bits are set after the last code")
    each = np.zeros((count, _WHOLE_BITS), np.uint8)
    each[:, :bits] = stream[: count * bits].reshape(count, bits)
    return np.packbits(each, axis=1, bitorder="little").view("<u2").reshape(-1).astype(np.uint16, copy=False)


def _head(contents: Contents, bits: int, compression: int, payload: int) -> bytes:
    """All of the header but the CRC."""
    family, mode, there = b"", b"", 0
    if contents.fingerprint:
        parts = _FINGERPRINT.fullmatch(contents.fingerprint)
        if parts is None:
            raise InvalidInput(
                f"fingerprint {contents.fingerprint!r} cannot be put into a .viq file: "
                "expected 16 hex digits, or 16, a dot and 8"
            )
        family, mode = bytes.fromhex(parts[1]), bytes.fromhex(parts[2] or "")
        there = _FAMILY | (_MODE if mode else 0)
    levels = bytes(variant(contents.size).levels)
    name = contents.size.encode("ascii")
    (height, width), (h, w) = contents.image_size, contents.grid
    try:
        return _HEADER.pack(
            *(MAGIC, VERSION, bits, compression, there, name, levels, height, width, h, w, family, mode, payload)
        )
    except struct.error:
        raise InvalidInput(f"{payload} bytes of codes are more than a .viq file can hold") from None


def _header(data: bytes, what: str) -> _Header:
    """The header, each field looked at; grid and image size are held against each other where `Codes` are made."""
    fields = _HEADER.unpack_from(data)
    bits, compression, there = fields[2:5]
    name, levels, family, mode = fields[5], fields[6], fields[11], fields[12]
    size = name.rstrip(b"\0").decode("ascii", "backslashreplace")
    row = variant(size)
    problems = (
        (name != size.encode("ascii").ljust(8, b"\0"), f"size is {name!r}"),
        (levels != bytes(row.levels).ljust(8, b"\0"), f"levels {list(levels)} are not those of size {size}"),
        (bits not in (bits_of(row), _WHOLE_BITS), f"{bits} bits a code, size {size} has {bits_of(row)} or 16"),
        (compression not in (_PLAIN, _ZSTD), f"compression {compression}, version {VERSION} has 0 and 1"),
        (there not in (0, _FAMILY, _FAMILY | _MODE), f"flags {there}, version {VERSION} has 0, 1 and 3"),
        (not there & _FAMILY and any(family), "a family of the fingerprint that its flags deny"),
        (not there & _MODE and any(mode), "a mode of the fingerprint that its flags deny"),
        (0 in fields[7:11], "an image or a grid of no pixels"),
    )
    for wrong, problem in problems:
        if wrong:
            raise InvalidInput(f"{what}: {problem}")
    fingerprint = ".".join(part.hex() for part, flag in ((family, _FAMILY), (mode, _MODE)) if there & flag)
    return _Header(bits, compression, size, _two(fields[7:9]), _two(fields[9:11]), fingerprint, fields[13])


def _plain(payload: memoryview, header: _Header, what: str) -> bytes | memoryview:
    """The packed codes. A compressed payload is believed no size but the one that the grid has."""
    if header.compression == _PLAIN:
        return payload
    zstandard = _zstandard(needed=True)
    expected = -(-header.codes * header.bits // 8)
    try:
        claimed = zstandard.get_frame_parameters(payload).content_size
        if claimed != expected:
            raise InvalidInput(f"{what}: its codes unpack to {claimed} bytes, expected {expected}")
        plain: bytes = zstandard.ZstdDecompressor().decompress(payload, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise InvalidInput(f"{what}: its codes cannot be decompressed ({error})") from None
    return plain


def _zstandard(*, needed: bool) -> Any:
    try:
        import zstandard
    except ImportError:
        if needed:
            raise InvalidInput("a compressed .viq file needs the package zstandard: pip install zstandard") from None
        return None
    return zstandard


def _two(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return first, second
