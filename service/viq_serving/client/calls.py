"""What is asked about one image, whatever it travels by."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from viq.codes import Codes
from viq.errors import InvalidInput, ViQError
from viq.pixels import ALPHA_RULES
from viq_serving.client.http import Picture, file_of

DTYPES = ("float32", "float16", "bfloat16")

Method: TypeAlias = Literal["encode", "embed", "decode"]


@dataclass(frozen=True)
class Ask:
    """What holds for all items of one call to the client."""

    method: Method
    size: str | None = None
    exif: bool = True
    alpha: str = "white"
    dtype: str = "float32"
    any_fingerprint: bool = False

    def __post_init__(self) -> None:
        if self.alpha not in ALPHA_RULES:
            raise InvalidInput(f"alpha={self.alpha!r}; there are {' and '.join(ALPHA_RULES)}")
        if self.dtype not in DTYPES:
            raise InvalidInput(f"dtype {self.dtype!r}; there are {', '.join(DTYPES)}")


class Again(Exception):
    """An item that should be sent again: what was wrong, and after how many seconds the server wants to see it."""

    def __init__(self, error: ViQError, after_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error, self.after_s = error, after_s


class Lane(Protocol):
    """The way to one replica."""

    async def ask(self, ask: Ask, given: bytes | Codes, timeout_s: float) -> Any:
        """The answer for one item. Raises `Again` for what another try may mend, and the item's own `ViQError`."""

    async def models(self) -> list[dict[str, Any]]:
        """The loaded sizes, the default first; raises as `ask`."""

    async def plan(self, sizes: Sequence[tuple[int, int]], size: str | None) -> list[dict[str, Any]]:
        """What images of `(width, height)` pixels would take; raises as `ask`."""

    async def close(self) -> None:
        """Let go of the connection; who still waits is told `Again`."""


GivenImage: TypeAlias = Picture | Callable[[], bytes]
"""An image, or a function that reads an image file when it is its turn, on a thread."""

Given: TypeAlias = GivenImage | Codes


async def sent_as(given: Given, ask: Ask) -> bytes | Codes:
    """What travels: the file's bytes, or codes."""
    if isinstance(given, (bytes, Codes)):
        return given
    if callable(given):
        return await asyncio.to_thread(given)
    return await asyncio.to_thread(file_of, given, ask.exif, ask.alpha)


def weight_of(given: Given, ask: Ask) -> int:
    """Bytes that are held for an item, as far as that is known before it is read or answered."""
    if isinstance(given, bytes):
        return len(given)
    if isinstance(given, Codes):
        height, width = given.image_size
        return 3 * height * width if ask.method == "decode" else int(given.array.nbytes)
    return int(getattr(given, "nbytes", 0))


def is_read(given: Given) -> bool:
    """Whether what travels has to be read or made first, so that its bytes are known only then."""
    return not isinstance(given, (bytes, Codes))
