"""The size that the first bytes of a PNG or JPEG file claim, found without opening it."""

from __future__ import annotations

PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
JPEG_START = b"\xff\xd8"
_SEGMENTS = 256  # looked at before the frame; a photograph has about ten

_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_WITH_LENGTH = {0xC4, 0xCC, *range(0xDB, 0xF0), 0xFE}
_ALONE, _FILLING = {0x01, *range(0xD0, 0xD8)}, 0xFF


def claimed_size(data: bytes) -> tuple[int, int] | None:
    """`(H, W)` as the first bytes state it; None if they do not."""
    if data.startswith(PNG_START):
        return int.from_bytes(data[20:24]), int.from_bytes(data[16:20])
    return jpeg_size(data, 0)


def jpeg_size(data: bytes, at: int, segments: int = _SEGMENTS) -> tuple[int, int] | None:
    """`(H, W)` of the JPEG that begins at `at`, if it states them within its first `segments`; else None."""
    if not data.startswith(JPEG_START, at):
        return None
    at += 2
    for _ in range(segments):
        if data[at : at + 1] != b"\xff" or len(data) < at + 9:
            return None
        marker = data[at + 1]
        if marker in _FRAMES:
            return int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
        if marker == _FILLING:
            at += 1
        elif marker in _ALONE:
            at += 2
        elif marker in _WITH_LENGTH:
            at += 2 + int.from_bytes(data[at + 2 : at + 4])
        else:
            return None
    return None
