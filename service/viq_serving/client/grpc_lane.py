"""The way to one replica over gRPC: a stream for each kind of question, many items in flight on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import grpc

from viq.codes import Codes
from viq_serving.client.calls import Ask
from viq_serving.client.grpc_messages import Metadata, failure_of, finished
from viq_serving.client.grpc_stream import Stream
from viq_serving.client.targets import Tls
from viq_serving.pb import viq_pb2 as pb
from viq_serving.pb.viq_pb2_grpc import ViQStub

_INFO_S = 30.0
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.use_local_subchannel_pool", 1),  # a replica that comes back is met by a new connection
    # A replica that is gone without a word, or hangs, is noticed; the service takes pings from 10 s apart on.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
]


class GrpcLane:
    """One replica at `address`; `authority` is the name that its certificate must be for."""

    def __init__(self, address: str, authority: str, tls: Tls | None, metadata: Metadata) -> None:
        self.address, self.metadata = address, metadata
        options = list(_OPTIONS)
        if authority:
            options.append(("grpc.default_authority", authority))
        if tls is None:
            self._channel = grpc.aio.insecure_channel(address, options=options)
        else:
            options.append(("grpc.ssl_target_name_override", authority.rpartition(":")[0].strip("[]")))
            credentials = grpc.ssl_channel_credentials(*tls.files())
            self._channel = grpc.aio.secure_channel(address, credentials, options=options)
        self.stub = ViQStub(self._channel)
        self.limits: Mapping[str, float] = {}
        self._streams: dict[Ask, Stream] = {}

    async def ask(self, ask: Ask, given: bytes | Codes, timeout_s: float) -> Any:
        """The answer for one item."""
        stream = self._streams.get(ask)
        if stream is None or stream.over:
            stream = self._streams[ask] = Stream(self, ask)
        return await finished(ask, await stream.ask(given))

    async def models(self) -> list[dict[str, Any]]:
        """As `GET /v1/models` describes them."""
        try:
            info = await self.stub.Info(pb.InfoRequest(), metadata=self.metadata, timeout=_INFO_S)
        except grpc.aio.AioRpcError as error:
            raise failure_of(error, self.address) from None
        self.limits = dict(info.limits)
        return [
            {
                "size": one.model.size,
                "fingerprint": one.model.fingerprint,
                "levels": list(one.model.levels),
                "codebook_size": one.model.codebook_size,
                "width": one.width,
                "dtype": one.dtype,
                "device": one.device,
                "default": one.is_default,
                "limits": self.limits,
                **({"untrained": True} if one.model.untrained else {}),
            }
            for one in info.models
        ]

    async def plan(self, sizes: Sequence[tuple[int, int]], size: str | None) -> list[dict[str, Any]]:
        """As `POST /v1/plan` answers."""
        request = pb.PlanRequest(images=[pb.ImageSize(width=w, height=h) for w, h in sizes], size=size or "")
        try:
            reply = await self.stub.Plan(request, metadata=self.metadata, timeout=_INFO_S)
        except grpc.aio.AioRpcError as error:
            raise failure_of(error, self.address) from None
        return [
            {
                "grid": [one.h, one.w],
                "image_size": [one.height, one.width],
                "patches": one.patches,
                "codes": one.codes,
                "cost": one.cost,
                "fits": one.fits,
                **({"limit": one.limit} if one.limit else {}),
            }
            for one in reply.results
        ]

    async def close(self) -> None:
        """Let go of the connection."""
        for stream in self._streams.values():
            await stream.close()
        await self._channel.close()
