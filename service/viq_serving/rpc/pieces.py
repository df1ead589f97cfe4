"""The answer to one item of a stream, cut to fit into messages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from viq_serving.errors import TooLarge, ViQError
from viq_serving.pb import viq_pb2 as pb
from viq_serving.rpc.replies import Done, chunk_of, result_of, weight_of
from viq_serving.types import Features

PIECE_BYTES = 2 * 2**20
"""The most data of a chunk of features."""

_AROUND = 200  # bytes that a result has around its key and data, about


class Piece(NamedTuple):
    """Part of an answer: about so many bytes in a message, and what makes it."""

    size: int
    make: Callable[[], pb.Result]


def pieces_of(key: str, item: Done | ViQError, max_bytes: int) -> list[Piece]:
    """The answer to the item of that key; raises `TooLarge` for what can be cut no smaller than `max_bytes`."""
    if isinstance(item, Features):
        return _chunks(key, item)
    size = weight_of([item])
    if size > max_bytes:
        raise TooLarge(
            f"result of {size} bytes, the limit of a message (max_message_bytes) is {max_bytes}: "
            "ask for pictures in jpeg"
        )
    return [Piece(size + len(key) + _AROUND, partial(result_of, key, item))]


def _chunks(key: str, one: Features) -> list[Piece]:
    rows, row_bytes = len(one.array), one.array.nbytes // len(one.array)
    step = max(1, PIECE_BYTES // row_bytes)
    spans = [(begin, min(begin + step, rows)) for begin in range(0, rows, step)]
    return [
        Piece((end - begin) * row_bytes + len(key) + _AROUND, partial(chunk_of, key, one, begin, end))
        for begin, end in spans
    ]
