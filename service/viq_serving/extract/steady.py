"""File systems far away: what fails in passing is tried again, and is never taken for a fault of one image."""

from __future__ import annotations

import errno
import io
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from viq.errors import ViQError
from viq_serving.extract.errors import PlaceError

T = TypeVar("T")

PAUSES_S = (0.2, 1.0, 5.0)
"""Before each further try, about."""

OF_THE_FILE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
"""What says something of one file, and will say so again."""

OF_THE_SYSTEM = frozenset(
    (
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV),
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.ENOTCONN),
        *(errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.ESHUTDOWN),
    )
)
"""Of a disk: errors that any file would meet now."""


def steady(what: str, do: Callable[[], T]) -> T:
    """What `do` gives, tried again where it fails in passing.

    Raises `OSError` where it says something of the file, `PlaceError` naming `what` for all else that does not pass.
    """
    for pause_s in (*PAUSES_S, None):
        try:
            return do()
        except (ViQError, *OF_THE_FILE):
            raise
        except Exception as error:  # noqa: BLE001  # each file system has errors of its own
            if _refused(error):
                raise PermissionError(errno.EACCES, str(error) or type(error).__name__) from None
            if pause_s is None:
                raise PlaceError(f"{what}: {str(error) or type(error).__name__}") from None
            time.sleep(pause_s * (0.5 + random.random()))  # noqa: S311  # no secret
    raise AssertionError("unreachable")


class SteadyFile(io.RawIOBase):
    """An open file far away, to read and to seek in; a read that failed is read again."""

    def __init__(self, what: str, file: Any) -> None:
        super().__init__()
        self._what, self._file = what, file

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def read(self, size: int = -1) -> bytes:
        """So many bytes, fewer only at the end."""
        at = self._file.tell()

        def again() -> bytes:
            if self._file.tell() != at:
                self._file.seek(at)
            return bytes(self._file.read(size))

        return steady(self._what, again)

    def readall(self) -> bytes:
        """All that is left."""
        return self.read()

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go there."""
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        """Where it is."""
        return int(self._file.tell())

    def close(self) -> None:
        """Close it."""
        if not self.closed:
            self._file.close()
        super().close()


def _refused(error: Exception) -> bool:
    """Whether a store says by an HTTP status that this one file is not to be had."""
    status = getattr(error, "status", getattr(error, "code", None))
    try:
        return status is not None and 400 <= int(status) < 500 and int(status) not in (401, 407, 408, 425, 429)
    except (TypeError, ValueError):
        return False
