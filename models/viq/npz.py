"""Reading .npz files that may be damaged or hostile: known members of plain arrays, bounded memory, no pickles."""

from __future__ import annotations

import io
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from viq.errors import InvalidInput, TooLarge, ViQError

_MEMBER_HEADER = 4096  # room for an .npy header, which numpy keeps under a few hundred bytes
OVERHEAD = 2**16
"""What an archive of a few members may weigh beyond their contents."""
_DIRECTORY_ENTRY, _MAX_DIRECTORY = b"PK\x01\x02", 64

# What zipfile and numpy raise on damaged or hostile bytes; a warning counts where warnings are errors.
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, UserWarning),
    *(ArithmeticError, EOFError, LookupError, MemoryError, OSError, RuntimeError, SyntaxError, TypeError, ValueError),
)


def read(
    file: str | os.PathLike[str] | IO[bytes] | bytes, members: Collection[str], max_bytes: int, what: str
) -> dict[str, npt.NDArray[np.generic]]:
    """The arrays of an npz that holds exactly `members`; `what` names it in messages.

    Raises `InvalidInput` for anything else, `TooLarge` if the members unpack to more than `max_bytes`
    together, and `OSError` if a path cannot be opened.
    """
    data = contents(file, max_bytes + OVERHEAD)
    if len(data) > max_bytes + OVERHEAD:
        raise TooLarge(f"{what}: more than {max_bytes} bytes")
    # zipfile makes an object of every entry a directory lists, however many there are: count them first.
    if data.count(_DIRECTORY_ENTRY) > _MAX_DIRECTORY:
        raise InvalidInput(f"{what}: more than {_MAX_DIRECTORY} members, expected {len(members)}")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _arrays(archive, members, max_bytes, what)
    except ViQError:
        raise
    except _UNREADABLE as error:
        raise InvalidInput(f"{what}: not a readable npz file ({error})") from None


def text(array: npt.NDArray[np.generic], what: str) -> str:
    """The string that a member holds; raises `InvalidInput` if it holds none."""
    if array.dtype.kind != "U" or array.ndim:
        raise InvalidInput(f"{what} is no string")
    # Not by str(): numpy takes four bytes for a character unseen and fails where there is no such character.
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    try:
        return little.tobytes().decode("utf-32-le").rstrip("\0")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{what} is no string ({error.reason})") from None


def _arrays(
    archive: zipfile.ZipFile, members: Collection[str], max_bytes: int, what: str
) -> dict[str, npt.NDArray[np.generic]]:
    names, expected = sorted(archive.namelist()), sorted(f"{name}.npy" for name in members)
    if names != expected:
        raise InvalidInput(f"{what}: members {names}, expected {expected}")
    budget, arrays = max_bytes, {}
    for name in members:
        info = archive.getinfo(f"{name}.npy")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InvalidInput(f"{what}: member {name} is packed by method {info.compress_type}, expected 0 or 8")
        # The size in the header may lie: read at most what is left, plus one byte to see that there is more.
        with archive.open(info) as member:
            raw = member.read(budget + 1)
        if len(raw) > budget:
            raise TooLarge(f"{what}: unpacks to more than {max_bytes} bytes")
        budget -= len(raw)
        arrays[name] = _array(raw, f"{what}: member {name}")
    return arrays


def _array(raw: bytes, what: str) -> npt.NDArray[np.generic]:
    """One .npy member, refused before allocation if its header claims more than the bytes there are."""
    stream = io.BytesIO(raw)
    try:
        version = np.lib.format.read_magic(stream)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = reader(stream, max_header_size=_MEMBER_HEADER)
        claimed = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if dtype.hasobject or claimed != len(raw) - stream.tell():
            raise ValueError(f"header claims {shape} of {dtype}, {len(raw) - stream.tell()} bytes follow")
        stream.seek(0)
        array: npt.NDArray[np.generic] = np.lib.format.read_array(stream, allow_pickle=False)
    except _UNREADABLE as error:
        raise InvalidInput(f"{what} is no plain array ({error})") from None
    return array


def contents(file: str | os.PathLike[str] | IO[bytes] | bytes, limit: int) -> bytes:
    """The bytes of `file`; of a longer one, the first `limit + 1`."""
    if isinstance(file, bytes):
        return file
    if isinstance(file, (str, os.PathLike)):
        with Path(file).open("rb") as opened:
            return opened.read(limit + 1)
    return file.read(limit + 1)
