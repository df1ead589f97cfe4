"""grpc.health.v1 over the state of the service.

The servicer that grpcio-health-checking brings stops telling the other watchers of a name when one of them leaves,
and waits for slow ones before it tells anybody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer

from viq_serving.rpc.call import Call, Context
from viq_serving.tokenizer import State, Tokenizer

SERVICES = ("", "viq.v1.ViQ", "inference.GRPCInferenceService")
"""The names that can be asked for; all have the one state."""


class Health(HealthServicer):  # type: ignore[misc]  # not annotated
    """SERVING while the service is ready, else NOT_SERVING."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._serving = False
        self._watchers: set[asyncio.Event] = set()
        tokenizer.listen(self._told)

    async def Check(self, request: HealthCheckRequest, call: Call) -> HealthCheckResponse:  # noqa: N802
        """The state now; NOT_FOUND for a name that there is not."""
        if request.service not in SERVICES:
            await call.context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service[:100]!r}")
        return HealthCheckResponse(status=self._status(request.service))

    async def Watch(self, request: HealthCheckRequest, context: Context) -> AsyncIterator[HealthCheckResponse]:  # noqa: N802
        """The state now and at every change; SERVICE_UNKNOWN for a name that there is not, as the protocol has it."""
        changed, told = asyncio.Event(), None
        self._watchers.add(changed)
        try:
            while True:
                changed.clear()
                status = self._status(request.service)
                if status != told:
                    yield HealthCheckResponse(status=status)
                told = status
                await changed.wait()
        finally:
            self._watchers.discard(changed)

    def _status(self, service: str) -> HealthCheckResponse.ServingStatus:
        if service not in SERVICES:
            return HealthCheckResponse.SERVICE_UNKNOWN
        return HealthCheckResponse.SERVING if self._serving else HealthCheckResponse.NOT_SERVING

    def _told(self, state: State) -> None:
        self._serving = state == "ready"
        for watcher in self._watchers:
            watcher.set()
