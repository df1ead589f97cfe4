"""The gRPC door put together."""

from __future__ import annotations

import asyncio

from grpc import aio
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha import reflection

from viq_serving.keys import Keys
from viq_serving.metrics import Metrics
from viq_serving.pb import viq_pb2 as pb
from viq_serving.pb.viq_pb2_grpc import add_ViQServicer_to_server
from viq_serving.rpc.envelope import Envelope
from viq_serving.rpc.health import Health
from viq_serving.rpc.oip import SERVICE as OPEN_INFERENCE
from viq_serving.rpc.oip import add_oip
from viq_serving.rpc.servicers import ViQ
from viq_serving.settings import Settings
from viq_serving.tokenizer import Tokenizer

SERVICES = (
    pb.DESCRIPTOR.services_by_name["ViQ"].full_name,
    OPEN_INFERENCE,
    "grpc.health.v1.Health",
    reflection.SERVICE_NAME,
)
"""What reflection lists."""

_STREAMS_PER_CONNECTION = 1024  # further requests of that client wait at the client
_LONGEST_MESSAGE = 2**31 - 1


def create_server(tokenizer: Tokenizer, metrics: Metrics, settings: Settings, keys: Keys) -> aio.Server:
    """A server over `tokenizer`, with no port yet; call on the event loop that it is to run on."""
    envelope = Envelope(tokenizer, metrics, settings, keys)
    server = aio.server(
        interceptors=[envelope],
        options=_options(settings),
        # The envelope refuses over the limit, with a hint; this is for what does not get so far.
        maximum_concurrent_rpcs=2 * settings.grpc_max_concurrent_requests,
    )
    # Ending once more without grace cuts off what is left, and the first call to end returns.
    envelope.on_unread_only = lambda: asyncio.ensure_future(server.stop(None))
    add_ViQServicer_to_server(ViQ(tokenizer, settings), server)
    add_oip(server, tokenizer, settings)
    add_HealthServicer_to_server(Health(tokenizer), server)
    reflection.enable_server_reflection(SERVICES, server)
    return server


def _options(settings: Settings) -> list[tuple[str, int]]:
    # A message over the limit is refused as too large by the envelope; one of twice as much is not even read.
    longest = min(2 * settings.max_message_bytes, _LONGEST_MESSAGE)
    return [
        ("grpc.max_receive_message_length", longest),
        ("grpc.max_send_message_length", -1),  # the envelope looks
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.max_concurrent_streams", min(settings.grpc_max_concurrent_requests, _STREAMS_PER_CONNECTION)),
        ("grpc.max_connection_age_ms", int(1000 * settings.grpc_max_connection_age_s)),
        # What is under way when a connection ages is answered: streams end by themselves, and nothing honest takes
        # longer than a stall.
        ("grpc.max_connection_age_grace_ms", int(1000 * (settings.stream_max_age_s + settings.stall_timeout_s))),
        # Clients may ping every 10 s, also when idle; a peer that does not answer pings is gone.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.server_handshake_timeout_ms", 20_000),
        ("grpc.so_reuseport", 0),  # a taken port is an error, not half of the requests
    ]
