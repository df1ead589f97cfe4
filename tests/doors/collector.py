"""A collector of traces, over gRPC and over HTTP."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message


@dataclass(frozen=True)
class Span:
    """One span as it arrived; ids are in hexadecimal digits, times in ns since 1970."""

    name: str
    trace: str
    id: str
    parent: str
    kind: int
    begun: int
    ended: int
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    failed: bool
    resource: dict[str, Any]


class Collector(TraceServiceServicer):
    """Keeps what is sent to it."""

    def __init__(self) -> None:
        self._spans, self._lock = list[Span](), threading.Lock()
        self._grpc = grpc.server(ThreadPoolExecutor(2))
        add_TraceServiceServicer_to_server(self, self._grpc)  # type: ignore[no-untyped-call]
        self.by_grpc = f"http://127.0.0.1:{self._grpc.add_insecure_port('127.0.0.1:0')}"
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.by_http = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.paths: list[str] = []

    def __enter__(self) -> Collector:
        self._grpc.start()
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._grpc.stop(None).wait()
        self._http.shutdown()
        self._http.server_close()

    def Export(  # noqa: N802
        self, request: ExportTraceServiceRequest, _context: object
    ) -> ExportTraceServiceResponse:
        self.keep(request)
        return ExportTraceServiceResponse()

    def keep(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            about = _plain(resource.resource.attributes)
            spans = [_span(one, about) for scope in resource.scope_spans for one in scope.spans]
            with self._lock:
                self._spans.extend(spans)

    def spans(self, name: str = "", **attributes: Any) -> list[Span]:
        """Those of that name with these attributes, `viq.` left out."""
        wanted = {f"viq.{key}": value for key, value in attributes.items()}.items()
        with self._lock:
            return [one for one in self._spans if name in ("", one.name) and wanted <= one.attributes.items()]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.paths.append(self.path)
                collector.keep(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def _span(one: Message, resource: dict[str, Any]) -> Span:
    return Span(
        name=one.name,
        trace=one.trace_id.hex(),
        id=one.span_id.hex(),
        parent=one.parent_span_id.hex(),
        kind=one.kind,
        begun=one.start_time_unix_nano,
        ended=one.end_time_unix_nano,
        attributes=_plain(one.attributes),
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in one.links],
        failed=one.status.code == one.status.STATUS_CODE_ERROR,
        resource=resource,
    )


def _plain(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
