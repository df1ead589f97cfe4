"""The size of AV1 frames, as their headers state it. Nothing is decoded.

Source: AV1 Bitstream & Decoding Process Specification, sections 5.3 to 5.9.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from viq_serving.errors import InvalidInput

_UNITS, _SEQUENCES = 16_384, 4_096
"""Units and, of these, headers of sequences that are looked at. No picture has so many."""

_LEAST_PIXELS = 64 * 64  # a frame is decoded in blocks of no less

_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME, _REDUNDANT_HEADER = 1, 3, 6, 7
_KEY_FRAME, _SWITCH_FRAME = 0, 3
_ASK_THE_FRAME = 2  # of a choice that the sequence leaves to each frame


def frame_pixels(part: bytes, count: Callable[[str, int], None]) -> int:
    """Pixels of the frames in `part`, at the most that each may have.

    `count` is told of each thing that is looked at, and how many there may be. Raises `InvalidInput` if there is no
    frame, or one whose size cannot be told.
    """
    sequence: _Sequence | None = None
    pixels = 0
    for kind, unit in _units(part, count):
        if kind == _SEQUENCE_HEADER:
            count("headers of sequences", _SEQUENCES)
            sequence = _sequence(unit)
        elif kind in (_FRAME_HEADER, _FRAME, _REDUNDANT_HEADER):
            if sequence is None:
                raise InvalidInput("AVIF image: a frame stands before the header that states its size")
            width, height = _size_of_frame(unit, sequence)
            pixels += max(_LEAST_PIXELS, width * height)
    if not pixels:
        raise InvalidInput("AVIF image: a part of it has no frame")
    return pixels


@dataclass(frozen=True)
class _Sequence:
    """What a sequence header says, as far as the size of frames hangs on it."""

    reduced: bool
    width: int
    height: int
    widest: int
    highest: int
    timed: int  # bits of a frame's time
    numbered: int  # bits of a frame's number
    screen: int
    whole_motion: int


class _Bits:
    """A header's bits, the highest first."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data), 8 * len(data)

    def __call__(self, count: int = 1) -> int:
        self._left -= count
        if self._left < 0:
            raise InvalidInput("AVIF image: an AV1 header is cut off")
        return self._value >> self._left & ((1 << count) - 1)

    def skip_uvlc(self) -> None:
        zeros = 0
        while not self():
            zeros += 1
        if zeros < 32:
            self(zeros)


def _units(part: bytes, count: Callable[[str, int], None]) -> Iterator[tuple[int, bytes]]:
    """Type and first bytes of each open bitstream unit (section 5.3)."""
    at = 0
    while at < len(part):
        count("units of AV1", _UNITS)
        head, at = part[at], at + 1 + (part[at] >> 2 & 1)
        size = len(part) - at
        if head & 2:
            size = 0
            for digit in range(8):
                byte = part[at : at + 1]
                if not byte:
                    raise InvalidInput("AVIF image: a unit of AV1 is cut off")
                at += 1
                size |= (byte[0] & 127) << 7 * digit
                if byte[0] < 128:
                    break
        yield head >> 3 & 15, part[at : min(at + size, at + 1024)]
        at += size


def _sequence(unit: bytes) -> _Sequence:
    """Section 5.5.1."""
    bits = _Bits(unit)
    bits(4)  # profile, still picture
    reduced = bool(bits())
    timed = 0
    if reduced:
        bits(5)
    else:
        timed = _skip_timing(bits)
    width_bits, height_bits = bits(4) + 1, bits(4) + 1
    width, height = bits(width_bits) + 1, bits(height_bits) + 1
    numbered, screen, whole_motion = 0, _ASK_THE_FRAME, _ASK_THE_FRAME
    if not reduced:
        if bits():
            numbered = bits(4) + 2
            numbered += bits(3) + 1
        bits(3 + 4)  # kinds of prediction
        if bits():  # order hints
            bits(2)
        screen = _ASK_THE_FRAME if bits() else bits()
        if screen and not bits():
            whole_motion = bits()
    return _Sequence(reduced, width, height, 1 << width_bits, 1 << height_bits, timed, numbered, screen, whole_motion)


def _skip_timing(bits: _Bits) -> int:
    """Go past times and operating points; the bits of the time that each frame states."""
    timed = delay = 0
    if bits():
        bits(64)
        equal = bits()
        if equal:
            bits.skip_uvlc()
        if bits():
            delay = bits(5) + 1
            bits(32 + 5)
            frame_time = bits(5) + 1
            timed = 0 if equal else frame_time
    display = bits()
    for _ in range(bits(5) + 1):
        bits(12)
        if bits(5) > 7:
            bits()
        if delay and bits():
            bits(2 * delay + 1)
        if display and bits():
            bits(4)
    return timed


def _size_of_frame(unit: bytes, sequence: _Sequence) -> tuple[int, int]:
    """The width and height that a frame has at most (section 5.9.2)."""
    size = sequence.width, sequence.height
    if sequence.reduced:
        return size
    bits = _Bits(unit)
    if bits():
        return size  # one that is there already
    kind, shown = bits(2), bits()
    if shown:
        bits(sequence.timed)
    else:
        bits()
    if kind != _SWITCH_FRAME and not (kind == _KEY_FRAME and shown):
        bits()
    bits()
    screen = bits() if sequence.screen == _ASK_THE_FRAME else sequence.screen
    if screen and sequence.whole_motion == _ASK_THE_FRAME:
        bits()
    bits(sequence.numbered)
    own = kind == _SWITCH_FRAME or bits()
    return (sequence.widest, sequence.highest) if own else size
