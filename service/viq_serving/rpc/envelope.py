"""The outermost layer of the gRPC door: keys, metadata both ways, limits, the last resort, the count."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message
from grpc.aio import AbortError, ServerInterceptor

from viq_serving.allowance import Allowance
from viq_serving.errors import DeadlineExceeded, Malformed, NotFound, NotReady, Overloaded, TooLarge, ViQError
from viq_serving.exchange import Exchange
from viq_serving.keys import Keys
from viq_serving.metrics import Metrics
from viq_serving.rpc import heavy
from viq_serving.rpc.call import Call, Context
from viq_serving.rpc.errors import code_of, message_of, status_of
from viq_serving.rpc.fields import more_than
from viq_serving.settings import Settings
from viq_serving.tokenizer import State, Tokenizer

log = logging.getLogger("viq.rpc")

Unary = Callable[[Any, Call], Awaitable[Message | bytes]]
Stream = Callable[[Any, Context], AsyncIterator[Message]]
Parse = Callable[[bytes], Message]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Metadata = dict[str, str | bytes]
Trailers = tuple[tuple[str, str], ...]
Refusal = tuple[grpc.StatusCode, str, Trailers]

_OPEN = "/grpc.health.v1.Health/"  # asked without a key
_UNCOUNTED = (_OPEN, "/grpc.reflection.")
_OIP = "/inference.GRPCInferenceService/"
_COUNTED = {f"/viq.v1.ViQ/{method.capitalize()}": method for method in ("encode", "embed", "decode", "plan", "info")}
_COUNTED[_OIP + "ModelInfer"] = "unknown"  # until it is known which

_STREAMS = 1024
_FIELDS = 10_000  # many more than any method has use for, few enough to parse
_MAX_RETRY_S = 3600.0
_ENDING_S = 0.1  # within which the transport ends a call whose message it refused
_PARTING_S = 1.0  # for a stream to say what it has to once the service stops


class Envelope(ServerInterceptor):
    """Wraps every method so that each reply, also one that a bug made, has our metadata and shape.

    Unary methods are taken over whole, reading and parsing included: what can be refused is refused before its
    message is read, and a broken message is answered as one. Their functions get a `Call` and reply with a message
    or with the bytes of one. Streams (health, reflection) get grpc's own context.
    """

    def __init__(self, tokenizer: Tokenizer, metrics: Metrics, settings: Settings, keys: Keys) -> None:
        self._tokenizer, self._metrics, self._keys = tokenizer, metrics, keys
        self._max_bytes, self._read_timeout_s = settings.max_message_bytes, settings.body_read_timeout_s
        self._most_fields = max(_FIELDS, 2 * settings.max_images)
        self._requests = Allowance(settings.grpc_max_concurrent_requests, "gRPC requests")
        self._streams = Allowance(_STREAMS, "gRPC streams")
        self._handlers: dict[str, Handler] = {}
        self._partings: set[asyncio.Timeout] = set()
        tokenizer.listen(self._told)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The method asked for, wrapped; one that there is not is wrapped, too."""
        path = handler_call_details.method
        wrapped = self._handlers.get(path)
        if wrapped is None:
            handler: Any = await continuation(handler_call_details)
            wrapped = self._wrapped(path, handler)
            if handler is not None:  # made-up paths would fill the memory
                self._handlers[path] = wrapped
        return wrapped

    def _wrapped(self, path: str, handler: Any) -> Handler:
        if handler is None:
            return grpc.stream_unary_rpc_method_handler(self._unary(path, None, None))
        if handler.unary_unary is not None:
            taken = self._unary(path, handler.unary_unary, handler.request_deserializer)
            return grpc.stream_unary_rpc_method_handler(taken)
        codec = handler.request_deserializer, handler.response_serializer
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(self._stream(path, handler.unary_stream), *codec)
        return grpc.stream_stream_rpc_method_handler(self._stream(path, handler.stream_stream), *codec)

    def _unary(self, path: str, method: Unary | None, parse: Parse | None) -> Any:
        async def handle(_messages: object, context: Context) -> bytes:
            exchange, metadata = _begin(path, context)
            context.set_trailing_metadata(self._trailers(exchange))
            reply, refusal = b"", None
            # A server that is full is healthy.
            room = nullcontext() if path.startswith(_OPEN) else self._requests.held(1)
            try:
                with room:
                    self._admit(path, metadata)
                    if method is None or parse is None:
                        raise NotFound(f"no such method: {path}")
                    reply = await self._answered(Call.of(exchange, context, metadata), method, parse)
            except asyncio.CancelledError:
                exchange.outcome = "deadline_exceeded" if context.time_remaining() == 0 else "cancelled"
                raise
            except AbortError:  # the method has ended the call itself
                raise
            except Exception as error:  # noqa: BLE001  # answered, and in the log
                refusal = self._refusal(error, exchange)
            finally:
                exchange.end(self._metrics)
            if refusal is not None:
                await context.abort(*refusal)
            if exchange.model is not None:  # now it is known whose fingerprint
                context.set_trailing_metadata(self._trailers(exchange))
            return reply

        return handle

    async def _answered(self, call: Call, method: Unary, parse: Parse) -> bytes:
        message = await self._read(call.context)
        call.size = len(message)
        with self._tokenizer.bodies.held(call.size):
            request = await heavy.run(call.size, self._parsed, message, parse)
            del message  # its content is in the request
            reply = await method(request, call)
        data = reply if isinstance(reply, bytes) else reply.SerializeToString()
        if len(data) > self._max_bytes:
            raise TooLarge(f"reply of {len(data)} bytes, the limit of a message is {self._max_bytes}")
        return data

    def _parsed(self, message: bytes, parse: Parse) -> Message:
        if len(message) > self._most_fields and more_than(message, self._most_fields):
            raise TooLarge(f"message of more than {self._most_fields} fields or items, the limit")
        try:
            return parse(message)
        except DecodeError as error:
            raise Malformed(f"message cannot be read: {error}") from None

    async def _read(self, context: Context) -> bytes:
        """The request's one message."""
        try:
            async with asyncio.timeout(self._read_timeout_s):
                message = await context.read()
        except TimeoutError:
            raise DeadlineExceeded(f"no whole message after {self._read_timeout_s:g} s, which is the limit") from None
        if not isinstance(message, bytes):
            await self._explain_nothing()
            raise Malformed("the request ended without a message")
        if len(message) > self._max_bytes:
            raise TooLarge(f"message of {len(message)} bytes, the limit (max_message_bytes) is {self._max_bytes}")
        return message

    async def _explain_nothing(self) -> None:
        """Raise `TooLarge` if that is why no message came: the transport hides such a message and then ends the call.

        The client is told by the transport; this is for the count.
        """
        try:
            await asyncio.sleep(_ENDING_S)
        except asyncio.CancelledError:
            raise TooLarge("message of more than the transport takes") from None

    def _stream(self, path: str, method: Stream) -> Any:
        async def handle(request: object, context: Context) -> None:
            exchange, metadata = _begin(path, context)
            context.set_trailing_metadata(self._trailers(exchange))
            parting, refusal = asyncio.timeout(_PARTING_S if self._stopping() else None), None
            try:
                with self._streams.held(1):
                    self._admit(path, metadata)
                    async with parting:
                        self._partings.add(parting)
                        async for reply in method(request, context):
                            await context.write(reply)
            except Exception as error:  # noqa: BLE001  # answered, and in the log
                failure = NotReady(f"the service is {self._tokenizer.state}") if parting.expired() else error
                refusal = self._refusal(failure, exchange)
            finally:
                self._partings.discard(parting)
            if refusal is not None:
                await context.abort(*refusal)

        return handle

    def _admit(self, path: str, metadata: Metadata) -> None:
        if not path.startswith(_OPEN):
            if self._stopping():
                raise NotReady(f"the service is {self._tokenizer.state}")
            authorization = metadata.get("authorization")
            self._keys.check(None if authorization is None else str(authorization))

    def _refusal(self, error: Exception, exchange: Exchange) -> Refusal:
        """Status, message and trailers that answer `error`, and the mark on the exchange that it ended so."""
        exchange.outcome, status, message = code_of(error), status_of(error), message_of(error)
        _log(error, exchange, status, message)
        trailers = (*self._trailers(exchange), ("viq-error-code", exchange.outcome))
        if isinstance(error, Overloaded):
            wait_s = min(max(error.retry_after_s, 0.001), _MAX_RETRY_S)
            trailers += (("grpc-retry-pushback-ms", str(math.ceil(1000 * wait_s))),)
        return status, message, trailers

    def _trailers(self, exchange: Exchange) -> Trailers:
        """What every reply carries: request id, and the fingerprint once a model is loaded."""
        loaded = self._tokenizer.models()
        model = exchange.model or (loaded[0] if loaded else None)
        identity = ("x-request-id", exchange.request_id)
        return (identity,) if model is None else (identity, ("viq-fingerprint", model.fingerprint))

    def _stopping(self) -> bool:
        return self._tokenizer.state in ("stopping", "lost")

    def _told(self, state: State) -> None:
        """Ask streams to end when the service stops: they would hold up the server's end for as long as it waits."""
        if self._stopping():
            ends = asyncio.get_running_loop().time() + _PARTING_S
            for parting in self._partings:
                parting.reschedule(ends)


def _begin(path: str, context: Context) -> tuple[Exchange, Metadata]:
    metadata: Metadata = dict(context.invocation_metadata() or ())
    wanted = metadata.get("x-request-id")
    exchange = Exchange.begin("oip_grpc" if path.startswith(_OIP) else "grpc", None if wanted is None else str(wanted))
    exchange.method = _COUNTED.get(path, "" if path.startswith((*_UNCOUNTED, _OIP)) else "unknown")
    return exchange, metadata


def _log(error: Exception, exchange: Exchange, status: grpc.StatusCode, message: str) -> None:
    """Say why a request was refused; of what nobody foresaw the whole story, which its caller does not get."""
    if status is grpc.StatusCode.INTERNAL:
        level, cause = logging.ERROR, error.__cause__ if isinstance(error, ViQError) else error
    else:  # clients ask again and again while a service loads or drains
        level, cause = logging.DEBUG if exchange.outcome == "not_ready" else logging.INFO, None
    fields = {"request_id": exchange.request_id, "door": exchange.door, "method": exchange.method}
    line = (exchange.request_id, status.name, exchange.outcome, message)
    log.log(level, "request %s: %s %s: %r", *line, exc_info=cause, extra={"fields": fields})
