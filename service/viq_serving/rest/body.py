"""Reading a request's body within its limits, and telling what it is."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from time import monotonic
from typing import Generic, NoReturn, TypeVar

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from viq_serving.errors import DeadlineExceeded, InvalidInput, Malformed, TooLarge
from viq_serving.rest.claim import Claim
from viq_serving.rest.unpacking import Unpacker

PART = "image"
"""The only name a multipart part may have."""


V = TypeVar("V", covariant=True)


@dataclass(frozen=True)
class Item(Generic[V]):
    """One of the things a request is about: an image file, codes, or what is wrong with it; `name` if it had one."""

    value: V
    name: str | None = None


async def read_body(request: Request, max_bytes: int, timeout_s: float, deadline: float, claim: Claim) -> bytes:
    """The whole body, unpacked if it came packed, and held by `claim`.

    Raises `TooLarge` as soon as its length is known or counted to be over `max_bytes`, `Overloaded` if there is no
    room for it beside other bodies, `DeadlineExceeded` if it is not there within `timeout_s` or by `deadline`,
    `Malformed` if the connection ends before the body does or it cannot be unpacked.
    """
    encoding = request.headers.get("content-encoding", "").strip().lower()
    unpacker = None if encoding in ("", "identity") else Unpacker("gzip" if encoding == "x-gzip" else encoding)
    claimed = int(request.headers.get("content-length", "0"))
    if claimed > max_bytes:
        raise TooLarge(f"body of {claimed} bytes, the limit is {max_bytes}")
    claim.cover(claimed)
    body, came = bytearray(), 0

    def add(piece: bytes) -> None:
        if max(came, len(body) + len(piece)) > max_bytes:
            raise TooLarge(f"body of more than {max_bytes} bytes, which is the limit")
        claim.cover(len(body) + len(piece))
        body.extend(piece)

    left_s = deadline - monotonic()
    try:
        async with asyncio.timeout(min(timeout_s, left_s)):
            async for chunk in request.stream():
                came += len(chunk)
                if unpacker is None:
                    add(chunk)
                    continue
                while piece := await run_in_threadpool(unpacker.piece, chunk):
                    add(piece)
                    chunk = b""  # it has been taken
    except TimeoutError:
        over = f"after {timeout_s:g} s, which is the limit" if timeout_s <= left_s else "when the deadline passed"
        raise DeadlineExceeded(f"{came} bytes of body {over}") from None
    except ClientDisconnect:
        raise Malformed(f"connection ended after {came} bytes of body") from None
    if unpacker is not None:
        unpacker.close()
    return bytes(body)


def media_type(request: Request) -> str:
    """The body's type in lower case without parameters; octet-stream if the request does not say."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() or "application/octet-stream"


def parse_json(body: bytes) -> dict[str, object]:
    """The object in a JSON body; raises `Malformed` if it is not JSON, `InvalidInput` if no object."""
    try:
        value = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"body is a JSON {type(value).__name__}, expected an object")
    return value


def parse_multipart(body: bytes, content_type: str, max_items: int) -> list[Item[bytes]]:
    """The parts of a multipart body, all named `image`; a part's filename is the item's name.

    Raises `Malformed` if it is no whole multipart, `InvalidInput` for a part of another name, `TooLarge`
    for more than `max_items`.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise Malformed("multipart without a boundary")
    parts = _Parts(max_items)
    try:
        parser = MultipartParser(boundary, parts.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Malformed(f"multipart cannot be read: {error}") from None
    if not parts.ended:
        raise Malformed("multipart ends before its last boundary")
    return parts.items


class _Parts:
    """Collects the parts as the parser walks over them."""

    def __init__(self, max_items: int) -> None:
        self.items: list[Item[bytes]] = []
        self.ended = False
        self._max_items = max_items
        self._field, self._value, self._data = bytearray(), bytearray(), bytearray()
        self._disposition = b""

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header,
            "on_part_data": lambda data, start, end: self._data.extend(data[start:end]),
            "on_part_end": self._part,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.items) == self._max_items:
            raise TooLarge(f"more than {self._max_items} images in one request, which is the limit")
        self._disposition = b""
        self._data.clear()

    def _header(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._field.clear()
        self._value.clear()

    def _part(self) -> None:
        options = parse_options_header(self._disposition)[1]
        field = options.get(b"name", b"").decode("utf-8", "replace")
        if field != PART:
            raise InvalidInput(f"unknown part {field!r}; parts are named {PART}")
        filename = options.get(b"filename")
        name = None if filename is None else filename.decode("utf-8", "replace")
        self.items.append(Item(bytes(self._data), name))

    def _end(self) -> None:
        self.ended = True


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
