"""How many fields a message has, without parsing it."""

from __future__ import annotations

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


def more_than(message: bytes, most: int) -> bool:
    """Whether `message` has more than `most` fields at its top; False if it is broken before that many.

    Two bytes of a message can become a hundred in memory: a parser makes objects of empty fields, too.
    """
    at, end = 0, len(message)
    for _ in range(most):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == _VARINT:
            _, at = _varint(message, at)
        elif kind == _LENGTH:
            length, at = _varint(message, at)
            at += length
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if kind == _EIGHT_BYTES else 4
        else:  # the parser refuses it, too
            return False
        if at >= end:
            return False
    return True


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number that begins at `at`, and where the next thing begins; the end if the number is broken."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte, at = message[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    return 0, len(message)
