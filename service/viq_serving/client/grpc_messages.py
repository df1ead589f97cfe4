"""Questions and answers as messages of viq.v1, and what the end of a call means."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import grpc
import numpy as np

from viq.codes import Codes
from viq.errors import ViQError
from viq.pixels import to_rgb
from viq_serving.client.calls import Again, Ask
from viq_serving.client.errors import UNREACHABLE, ServerError, error_named
from viq_serving.client.http import opened_png
from viq_serving.pb import viq_pb2 as pb
from viq_serving.pb.viq_pb2_grpc import ViQStub

# Without the service's own word these come from the transport or a proxy; INTERNAL also if we were sending just then,
# DEADLINE_EXCEEDED also from a proxy that lets no stream live for long.
_AGAIN = (
    *(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED),
    *(grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN),
)
_DTYPES = {
    "float32": (pb.FEATURE_DTYPE_FLOAT32, "<f4"),
    "float16": (pb.FEATURE_DTYPE_FLOAT16, "<f2"),
    "bfloat16": (pb.FEATURE_DTYPE_BFLOAT16, "<u2"),
}
_ALPHA = {"white": pb.ALPHA_WHITE, "drop": pb.ALPHA_DROP}

Metadata = Sequence[tuple[str, str]]


class Replica(Protocol):
    """What a stream needs to know of its lane."""

    address: str
    metadata: Metadata
    stub: ViQStub
    limits: Mapping[str, float]

    async def models(self) -> list[dict[str, Any]]:
        """The loaded sizes; `limits` are known afterwards."""


async def finished(ask: Ask, answer: tuple[pb.Result, list[bytes]]) -> Any:
    """The domain type of an answer; raises the item's own error."""
    result, chunks = answer
    if result.status.code:
        error = error_named(result.status.code, result.status.message)
        if result.status.grpc_code == grpc.StatusCode.UNAVAILABLE.value[0]:
            raise Again(error)
        raise error
    if ask.method == "encode":
        one = result.codes
        return Codes.from_bytes(one.data, (one.h, one.w), one.size, (one.height, one.width), one.fingerprint)
    if ask.method == "embed":
        shape = result.features.n, result.features.c
        return np.frombuffer(b"".join(chunks), _DTYPES[ask.dtype][1]).reshape(shape)
    return await asyncio.to_thread(lambda: to_rgb(opened_png(result.image)))


def failure_of(error: grpc.aio.AioRpcError, address: str) -> Again | ViQError:
    """What a call that the server, or nobody, ended means for the items on it."""
    trailers = dict(error.trailing_metadata() or ())
    code, message = trailers.get("viq-error-code"), error.details() or ""
    if isinstance(code, str):
        known, again = error_named(code, message), error.code() is grpc.StatusCode.UNAVAILABLE
    else:
        known = ServerError(UNREACHABLE, f"no answer from {address}: {error.code().name} {message}")
        again = error.code() in _AGAIN
    hint = trailers.get("grpc-retry-pushback-ms")
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and isinstance(hint, str) and hint.isdigit():
        return Again(known, int(hint) / 1000)
    return Again(known) if again else known


def item_of(key: str, given: bytes | Codes, ask: Ask) -> pb.Item:
    """The item of that key."""
    if isinstance(given, Codes):
        (h, w), (height, width) = given.grid, given.image_size
        codes = pb.Codes(
            data=given.to_bytes(), h=h, w=w, height=height, width=width, size=given.size, fingerprint=given.fingerprint
        )
        return pb.Item(key=key, codes=codes)
    if ask.exif and ask.alpha == "white":
        return pb.Item(key=key, image=given)
    return pb.Item(key=key, image=given, options=pb.ItemOptions(exif=ask.exif, alpha=_ALPHA[ask.alpha]))


def opened(lane: Replica, ask: Ask) -> Any:
    """The call of a new stream."""
    methods = {"encode": lane.stub.EncodeStream, "embed": lane.stub.EmbedStream, "decode": lane.stub.DecodeStream}
    return methods[ask.method](metadata=lane.metadata)


REQUESTS: Mapping[str, Any] = {
    "encode": pb.EncodeStreamRequest,
    "embed": pb.EmbedStreamRequest,
    "decode": pb.DecodeStreamRequest,
}


def options_of(ask: Ask) -> Any:
    """What goes with the first message of a stream."""
    size = ask.size or ""
    if ask.method == "encode":
        return pb.EncodeStreamOptions(size=size)
    if ask.method == "embed":
        dtype = _DTYPES[ask.dtype][0]
        return pb.EmbedStreamOptions(size=size, dtype=dtype, allow_fingerprint_mismatch=ask.any_fingerprint)
    return pb.DecodeStreamOptions(
        size=size, format=pb.PICTURE_FORMAT_PNG, allow_fingerprint_mismatch=ask.any_fingerprint
    )
