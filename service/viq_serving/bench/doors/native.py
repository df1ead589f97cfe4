"""The service's own gRPC API: one call a picture, or one stream for all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from viq.errors import InvalidInput
from viq_serving.bench.doors.door import Answer, Method, Target
from viq_serving.bench.doors.failures import failure
from viq_serving.bench.doors.payload import Payload
from viq_serving.pb import viq_pb2 as pb

OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]
_SERVICE = "/viq.v1.ViQ/"
_UNARY: dict[Method, tuple[Any, Any]] = {
    "encode": (pb.EncodeRequest, pb.EncodeResponse),
    "embed": (pb.EmbedRequest, pb.EmbedResponse),
    "decode": (pb.DecodeRequest, pb.DecodeResponse),
}
_STREAMS: dict[Method, tuple[Any, Any, Any]] = {
    "encode": (pb.EncodeStreamRequest, pb.EncodeStreamOptions, pb.EncodeStreamResponse),
    "embed": (pb.EmbedStreamRequest, pb.EmbedStreamOptions, pb.EmbedStreamResponse),
    "decode": (pb.DecodeStreamRequest, pb.DecodeStreamOptions, pb.DecodeStreamResponse),
}


class GrpcDoor:
    """A unary call a picture, all over one channel."""

    def __init__(self, target: Target, payload: Payload, method: Method) -> None:
        """Raises `InvalidInput` if the target has no address."""
        self._target, self._method = target, method
        self._address, self._metadata = address_of(target), metadata_of(target)
        request, self._response = _UNARY[method]
        items = _items(payload, method)
        self._sizes = [_content_bytes(item) for item in items]
        # As bytes: a request is then not put together anew each time it is sent.
        self._messages = [request(items=[item], size=target.size).SerializeToString() for item in items]

    async def open(self) -> None:
        """Connect."""
        self._channel = channel_of(self._target, self._address)
        self._call: Any = self._channel.unary_unary(f"{_SERVICE}{self._method.capitalize()}")

    async def ask(self, index: int) -> Answer:
        """Call with request `index`."""
        try:
            data = await self._call(self._messages[index], metadata=self._metadata, timeout=self._target.timeout_s)
            (result,) = self._response.FromString(data).results
        except Exception as error:  # noqa: BLE001  # whatever goes wrong is counted by its kind
            return failure(error)
        return answer_of(result, len(data))

    def codes_of(self, answer: Answer) -> bytes:
        """The codes of a result."""
        return codes_of_result(answer)

    def sent_bytes(self, index: int) -> int:
        """Bytes of the image or of the codes in request `index`."""
        return self._sizes[index]

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


class StreamDoor:
    """One stream for all, opened again when it ends. Who waits for an answer from one that ended fails."""

    def __init__(self, target: Target, payload: Payload, method: Method) -> None:
        """Raises `InvalidInput` if the target has no address."""
        self._target, self._method = target, method
        self._address, self._metadata = address_of(target), metadata_of(target)
        self._request, self._options, self._response = _STREAMS[method]
        self._items = _items(payload, method)
        self._sizes = [_content_bytes(item) for item in self._items]
        self._waiting: dict[str, asyncio.Future[Answer]] = {}
        self._parts: dict[str, int] = {}
        self._number, self._ended = 0, True
        self._first: Any = None
        self._call: Any = None

    async def open(self) -> None:
        """Connect and begin the stream."""
        self._channel = channel_of(self._target, self._address)
        self._method_call: Any = self._channel.stream_stream(f"{_SERVICE}{self._method.capitalize()}Stream")
        self._writing = asyncio.Lock()
        self._begin()

    async def ask(self, index: int) -> Answer:
        """Send item `index` and wait for its answer."""
        self._number += 1
        key = str(self._number)
        done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[key] = done
        try:
            async with asyncio.timeout(self._target.timeout_s):
                async with self._writing:  # a stream takes one message at a time, when it has room
                    if self._ended:
                        self._begin()
                    item = self._items[index]
                    item.key = key
                    message = self._request(items=[item], options=self._first)
                    self._first = None
                    await self._call.write(message.SerializeToString())
                return await done
        except Exception as error:  # noqa: BLE001  # whatever goes wrong is counted by its kind
            return done.result() if done.done() and not done.cancelled() else failure(error)
        finally:
            self._waiting.pop(key, None)
            self._parts.pop(key, None)

    def codes_of(self, answer: Answer) -> bytes:
        """The codes of a result."""
        return codes_of_result(answer)

    def sent_bytes(self, index: int) -> int:
        """Bytes of the image or of the codes of item `index`."""
        return self._sizes[index]

    async def close(self) -> None:
        """End the stream and close the channel."""
        self._call.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._channel.close()

    def _begin(self) -> None:
        self._ended = False
        self._first = self._options(size=self._target.size)
        self._call = self._method_call(metadata=self._metadata)
        self._task = asyncio.create_task(self._read(self._call))

    async def _read(self, call: Any) -> None:
        ended = Answer("the stream ended")
        try:
            async for data in call:
                results = self._response.FromString(data).results
                for result in results:
                    self._take(result, len(data) // len(results))
        except Exception as error:  # noqa: BLE001  # also what is no message at all
            ended = failure(error)
        finally:
            call.cancel()  # nobody reads it any more: the server need not hold it
            self._ended = True
            for done in self._waiting.values():
                if not done.done():
                    done.set_result(ended)

    def _take(self, result: pb.Result, size: int) -> None:
        size += self._parts.pop(result.key, 0)
        if result.HasField("features") and not result.features.last:
            self._parts[result.key] = size
            return
        done = self._waiting.get(result.key)
        if done is not None and not done.done():
            done.set_result(answer_of(result, size))


def address_of(target: Target) -> str:
    """HOST:PORT; raises `InvalidInput` if there is none."""
    host, colon, port = (target.grpc or "").rpartition(":")
    if not (host and colon and port.isdigit()) or "//" in host:
        raise InvalidInput(f"gRPC address {target.grpc!r}, this door needs --grpc HOST:PORT")
    return f"{host}:{port}"


def channel_of(target: Target, address: str) -> grpc.aio.Channel:
    """A channel to `address`, with TLS if the target has it."""
    if target.tls is None:
        return grpc.aio.insecure_channel(address, options=OPTIONS)
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(*target.tls.files()), options=OPTIONS)


def metadata_of(target: Target) -> list[tuple[str, str]]:
    """The target's headers as metadata."""
    return [(name.lower(), value) for name, value in target.headers.items()]


def answer_of(result: pb.Result, size: int) -> Answer:
    """The answer that a result is, `size` bytes of it."""
    if result.status.code:
        return Answer(f"item {result.status.code}", size)
    return Answer("", size, content=result)


def codes_of_result(answer: Answer) -> bytes:
    """The codes of an item; raises `ValueError` if it holds none."""
    if not isinstance(answer.content, pb.Result) or not answer.content.HasField("codes"):
        raise ValueError("the result holds no codes")
    return answer.content.codes.data


def _items(payload: Payload, method: Method) -> Sequence[pb.Item]:
    if method == "encode":
        return [pb.Item(key="0", image=file.data) for file in payload.files]
    return [
        pb.Item(
            key="0",
            codes=pb.Codes(
                data=one.to_bytes(),
                h=one.grid[0],
                w=one.grid[1],
                height=one.image_size[0],
                width=one.image_size[1],
                size=one.size,
                fingerprint=one.fingerprint,
            ),
        )
        for one in payload.codes
    ]


def _content_bytes(item: pb.Item) -> int:
    return len(item.image) or len(item.codes.data)
