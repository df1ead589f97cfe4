"""The outermost layer of the gRPC door: keys, metadata both ways, limits, the last resort, the count."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, TypeAlias, TypeVar, cast

import grpc
from google.protobuf.message import Message
from grpc.aio import AbortError, ServerInterceptor

from viq_serving.allowance import Allowance
from viq_serving.errors import NotFound, NotReady, TooLarge
from viq_serving.exchange import Exchange
from viq_serving.keys import Keys
from viq_serving.metrics import Metrics
from viq_serving.rpc import heavy
from viq_serving.rpc.call import Call, Context
from viq_serving.rpc.messages import Messages, Parse
from viq_serving.rpc.outbox import Unread
from viq_serving.rpc.refusal import refusal_of, trailers_of
from viq_serving.rpc.stream import Stream
from viq_serving.rpc.tally import Tally
from viq_serving.settings import Settings
from viq_serving.tokenizer import State, Tokenizer
from viq_serving.types import ANYBODY, Caller, Door

T = TypeVar("T")

Unary = Callable[[Any, Call], Awaitable[Message | bytes]]
Watch = Callable[[Any, Context], AsyncIterator[Message]]
Items = Callable[[Stream, Call], Awaitable[None]]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Metadata = dict[str, str | bytes]

_OPEN = "/grpc.health.v1.Health/"  # asked without a key
_UNCOUNTED = (_OPEN, "/grpc.reflection.")
_OIP, _NATIVE = "/inference.GRPCInferenceService/", "/viq.v1.ViQ/"
_COUNTED = {f"{_NATIVE}{method.capitalize()}": method for method in ("encode", "embed", "decode", "plan", "info")}
_COUNTED |= {f"{_NATIVE}{method.capitalize()}Stream": method for method in ("encode", "embed", "decode")}
_COUNTED[_OIP + "ModelInfer"] = "unknown"  # until it is known which

_WATCHES = 1024
_OF_STREAMS = 0.75  # of the bytes of all requests: streams wait for room, the others are refused where there is none
_EARLY_S, _EARLY, _ROUNDED = 0.1, 0.1, 0.01  # a client may be ahead by so much, a part of its timeout, and this one
_PARTING_S = 1.0  # for a watch to say what it has to once the service stops


class Envelope(ServerInterceptor):
    """Wraps every method so that each reply, also one that a bug made, has our metadata and shape.

    Unary methods and streams of items are taken over whole, reading and parsing included: what can be refused is
    refused before its message is read, and a broken message is answered as one. Unary functions get a `Call` and reply
    with a message or with the bytes of one; those of items get a `Stream`. Watches (health, reflection) get grpc's own
    context.
    """

    def __init__(self, tokenizer: Tokenizer, metrics: Metrics, settings: Settings, keys: Keys) -> None:
        self._tokenizer, self._metrics, self._settings, self._keys = tokenizer, metrics, settings, keys
        self._messages = Messages(settings)
        self._requests = Allowance(settings.grpc_max_concurrent_requests, "gRPC requests")
        self._watches = Allowance(_WATCHES, "gRPC streams")
        self._streams = Allowance(settings.stream_max_open, "gRPC streams of items")
        self._share = Allowance(max(1, int(_OF_STREAMS * tokenizer.bodies.limit)), "bytes of items of streams")
        self._headers = ThreadPoolExecutor(1, thread_name_prefix="viq-stream-headers")
        self._handlers: dict[str, Handler] = {}
        self._partings: set[asyncio.Timeout] = set()
        self._open: set[Stream] = set()
        self._under_way = self._unread = 0
        self._ending: object = None  # kept, as the event loop does not keep what runs on it
        self.on_unread_only: Callable[[], object] = lambda: None
        """What to do once the service stops and all that is under way waits for clients that do not read."""
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
        if path.startswith(_NATIVE):
            taken = self._items(path, handler.stream_stream, handler.request_deserializer)
            return grpc.stream_stream_rpc_method_handler(taken)
        codec = handler.request_deserializer, handler.response_serializer
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(self._watch(path, handler.unary_stream), *codec)
        return grpc.stream_stream_rpc_method_handler(self._watch(path, handler.stream_stream), *codec)

    def _unary(self, path: str, method: Unary | None, parse: Parse | None) -> Any:
        async def handle(_messages: object, context: Context) -> bytes:
            exchange, metadata = self._begin(path, context)
            reply, refusal = b"", None
            try:
                with ExitStack() as held:
                    if not path.startswith(_OPEN):  # a server that is full is healthy
                        held.enter_context(self._requests.held(1))
                    caller = self._admit(path, metadata, exchange, held)
                    if method is None or parse is None:
                        raise NotFound(f"no such method: {path}")
                    reply = await self._answered(Call.of(exchange, context, metadata, caller), method, parse)
            except asyncio.CancelledError:
                exchange.outcome = _how_cancelled(context, exchange.seconds())
                raise
            except AbortError:  # the method has ended the call itself
                raise
            except Exception as error:  # noqa: BLE001  # answered, and in the log
                refusal = refusal_of(error, exchange, self._tokenizer)
            finally:
                exchange.end(self._metrics)
            if refusal is not None:
                await context.abort(*refusal)
            if exchange.model is not None:  # now it is known whose fingerprint
                context.set_trailing_metadata(trailers_of(exchange, self._tokenizer))
            return reply

        return self._counted(handle)

    def _items(self, path: str, method: Items, parse: Parse) -> Any:
        async def handle(_messages: object, context: Context) -> None:
            exchange, metadata = self._begin(path, context)
            tally, refusal, unread = Tally(exchange, self._metrics), None, False
            try:
                with ExitStack() as held:
                    held.enter_context(self._streams.held(1))
                    caller = self._admit(path, metadata, exchange, held)
                    call = Call.of(exchange, context, metadata, caller, stream=True)
                    about = self._tokenizer, self._settings, tally, self._headers, self._share
                    stream = Stream(call, self._messages, parse, *about)
                    held.callback(stream.close)
                    self._open.add(stream)
                    held.callback(self._open.discard, stream)
                    await method(stream, call)
            except asyncio.CancelledError:
                exchange.outcome = _how_cancelled(context, exchange.seconds())
                raise
            except Exception as error:  # noqa: BLE001  # answered, and in the log
                refusal, unread = refusal_of(error, exchange, self._tokenizer), isinstance(error, Unread)
            finally:
                if tally.items:
                    tally.close()
                else:  # it counts as a request itself
                    exchange.end(self._metrics)
            if refusal is not None:
                self._unread += unread
                self._look_whether_stuck()
                try:
                    await context.abort(*refusal)
                finally:
                    self._unread -= unread
            context.set_trailing_metadata(trailers_of(exchange, self._tokenizer))

        return self._counted(handle)

    async def _answered(self, call: Call, method: Unary, parse: Parse) -> bytes:
        message = await self._messages.only(call.context)
        call.size = len(message)
        with self._tokenizer.bodies.held(call.size):
            request = await heavy.run(call.size, self._messages.parsed, message, parse)
            del message  # its content is in the request
            reply = await method(request, call)
        data = reply if isinstance(reply, bytes) else reply.SerializeToString()
        if len(data) > self._settings.max_message_bytes:
            limit = self._settings.max_message_bytes
            raise TooLarge(f"reply of {len(data)} bytes, the limit of a message is {limit}")
        return data

    def _watch(self, path: str, method: Watch) -> Any:
        async def handle(request: object, context: Context) -> None:
            exchange, metadata = self._begin(path, context)
            parting, refusal = asyncio.timeout(_PARTING_S if self._stopping() else None), None
            try:
                with ExitStack() as held:
                    held.enter_context(self._watches.held(1))
                    self._admit(path, metadata, exchange, held)
                    async with parting:
                        self._partings.add(parting)
                        async for reply in method(request, context):
                            await context.write(reply)
            except Exception as error:  # noqa: BLE001  # answered, and in the log
                failure = NotReady(f"the service is {self._tokenizer.state}") if parting.expired() else error
                refusal = refusal_of(failure, exchange, self._tokenizer)
            finally:
                self._partings.discard(parting)
            if refusal is not None:
                await context.abort(*refusal)

        return self._counted(handle)

    def _begin(self, path: str, context: Context) -> tuple[Exchange, Metadata]:
        metadata: Metadata = dict(context.invocation_metadata() or ())
        wanted, door = metadata.get("x-request-id"), "oip_grpc" if path.startswith(_OIP) else "grpc"
        exchange = Exchange.begin(cast(Door, door), None if wanted is None else str(wanted))
        exchange.method = _COUNTED.get(path, "" if path.startswith((*_UNCOUNTED, _OIP)) else "unknown")
        exchange.trace(self._metrics, metadata)
        context.set_trailing_metadata(trailers_of(exchange, self._tokenizer))
        return exchange, metadata

    def _admit(self, path: str, metadata: Metadata, exchange: Exchange, held: ExitStack) -> Caller:
        """Who asks; `held` then holds what this takes of their requests. Raises for who may not ask, or not now."""
        if path.startswith(_OPEN):
            return ANYBODY
        if self._stopping():
            raise NotReady(f"the service is {self._tokenizer.state}")
        authorization = metadata.get("authorization")
        caller = self._keys.check(None if authorization is None else str(authorization))
        exchange.caller = caller.name
        if caller.requests is not None and exchange.method:
            held.enter_context(caller.requests.held(1))
        return caller

    def _counted(self, handle: Callable[[Any, Context], Awaitable[T]]) -> Callable[[Any, Context], Awaitable[T]]:
        """`handle`, known to be under way for as long as it is."""

        async def counted(messages: Any, context: Context) -> T:
            self._under_way += 1
            try:
                return await handle(messages, context)
            except AbortError as abort:
                # gRPC keeps it with the call, which its frames hold: a cycle, once it has gone through all of them.
                asyncio.get_running_loop().call_soon(abort.with_traceback, None)
                raise
            finally:
                self._under_way -= 1
                self._look_whether_stuck()

        return counted

    def _look_whether_stuck(self) -> None:
        """The transport ends no call before its client has read what was written; the service's end cannot wait."""
        if self._unread and self._unread == self._under_way and self._stopping():
            self._ending = self.on_unread_only()

    def _stopping(self) -> bool:
        return self._tokenizer.state in ("stopping", "lost")

    def _told(self, state: State) -> None:
        """Ask watches and streams to end when the service stops: its end waits for them."""
        if self._stopping():
            ends = asyncio.get_running_loop().time() + _PARTING_S
            for parting in self._partings:
                parting.reschedule(ends)
            for stream in self._open:
                stream.part(f"the service is {state}")
            asyncio.get_running_loop().call_later(_PARTING_S, self._look_whether_stuck)


def _how_cancelled(context: Context, seconds: float) -> str:
    """Whether a deadline ended a call that has been under way for `seconds`, or the client.

    At its deadline a client cancels the call by its own clock, ahead of ours: the request took a while to come, and
    clients round the time they send up (grpc's C core keeps three digits).
    """
    left = context.time_remaining()
    if left is None:
        return "cancelled"
    timeout = seconds + left
    return "cancelled" if left > min(_EARLY_S, _EARLY * timeout) + _ROUNDED * timeout else "deadline_exceeded"
