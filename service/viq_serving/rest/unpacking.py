"""Compressed request bodies, unpacked as they come."""

from __future__ import annotations

import zlib

from viq_serving.errors import Malformed, UnsupportedMediaType

_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
ENCODINGS = ("identity", *_WINDOW)
"""The content encodings that are taken."""

_PIECE_BYTES = 2**20


class Unpacker:
    """One packed body. It gives small pieces, so that who counts them can stop a bomb early."""

    def __init__(self, encoding: str) -> None:
        """Raises `UnsupportedMediaType` for encodings that are not in `ENCODINGS`."""
        if encoding not in _WINDOW:
            raise UnsupportedMediaType(f"body is encoded as {encoding!r}; taken are {', '.join(ENCODINGS)}")
        self._encoding, self._packed = encoding, b""
        self._unpacker = zlib.decompressobj(_WINDOW[encoding])

    def piece(self, packed: bytes = b"") -> bytes:
        """The next piece, now that `packed` has come; empty if there is none until more comes. Fit for a thread.

        Raises `Malformed` for what cannot be unpacked.
        """
        packed = self._packed + packed
        try:
            data = b"" if self._unpacker.eof else self._unpacker.decompress(packed, _PIECE_BYTES)
        except zlib.error as error:
            raise Malformed(f"body is no {self._encoding}: {error}") from None
        if self._unpacker.unused_data or (self._unpacker.eof and not data and packed):
            raise Malformed(f"{self._encoding} body goes on after its end")
        self._packed = self._unpacker.unconsumed_tail
        return data

    def close(self) -> None:
        """Raise `Malformed` unless everything has been unpacked."""
        if not self._unpacker.eof:
            raise Malformed(f"{self._encoding} body ends too early")
