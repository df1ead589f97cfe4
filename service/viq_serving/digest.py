"""The strong hash that tells images apart."""

from __future__ import annotations

import asyncio
import hashlib

_LONG_BYTES = 2**18  # half a millisecond on slow machines; a thread costs a few tenths


async def digest_of(data: bytes) -> bytes:
    """SHA-256 of `data`, 32 bytes; on a thread if it is long enough to keep others waiting."""
    if len(data) > _LONG_BYTES:
        return await asyncio.to_thread(_sha256, data)
    return _sha256(data)


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
