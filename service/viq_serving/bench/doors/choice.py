"""The doors by their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from viq.errors import InvalidInput
from viq_serving.bench.doors.door import Door, Method, Target
from viq_serving.bench.doors.native import GrpcDoor, StreamDoor
from viq_serving.bench.doors.oip import OipGrpcDoor, OipHttpDoor
from viq_serving.bench.doors.payload import Payload
from viq_serving.bench.doors.plain import PlainDoor, RestDoor


def _plain(target: Target, payload: Payload, method: Method) -> Door:
    if method != "encode":
        raise InvalidInput(f"door http sends images, it has no method {method}")
    return PlainDoor(target, payload)


_DOORS: Mapping[str, Callable[[Target, Payload, Method], Door]] = {
    "rest": RestDoor,
    "grpc": GrpcDoor,
    "grpc-stream": StreamDoor,
    "oip-http": OipHttpDoor,
    "oip-grpc": OipGrpcDoor,
    "http": _plain,
}
DOORS = tuple(_DOORS)
NEEDS_URL = frozenset({"rest", "oip-http", "http"})
"""The others need the address of the gRPC port."""


def door_of(name: str, target: Target, payload: Payload, method: Method) -> Door:
    """A door, not open yet; raises `InvalidInput` for what it cannot be."""
    return _DOORS[name](target, payload, method)
