"""Where traces are sent, and how: the OpenTelemetry protocol, over gRPC or over HTTP."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from viq_serving.errors import SettingsError
from viq_serving.settings import Settings
from viq_serving.tracing import Traces

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_HTTP_PORT, _HTTP_PATH = 4318, "/v1/traces"
_PARSES_HEADERS = "opentelemetry.util.re"  # and logs those whole that it cannot parse, secrets or not


def traces_of(settings: Settings, version: str, environ: Mapping[str, str]) -> Traces | None:
    """What sends traces to where `settings` or the standard variables say; None if neither does.

    Raises `SettingsError` for a protocol that there is not, for variables that cannot be used, and if OpenTelemetry is
    not installed.
    """
    endpoint = settings.otlp_endpoint or _standard(environ, "ENDPOINT")
    off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
    if not endpoint or off:
        return None
    protocol: str = settings.otlp_protocol
    logging.getLogger(_PARSES_HEADERS).addFilter(_without_values)
    try:
        if protocol == "auto":
            by_port = "http/protobuf" if urlsplit(endpoint).port == _HTTP_PORT else "grpc"
            protocol = _standard(environ, "PROTOCOL") or by_port
        exporters = _exporters()
        if protocol not in exporters:
            raise SettingsError(f"traces cannot be sent by {protocol!r}: there are {' and '.join(exporters)}")
        return Traces(exporters[protocol](settings.otlp_endpoint), version, environ)
    except SettingsError:
        raise
    except ImportError as error:
        raise SettingsError(f"traces need OpenTelemetry, which is not installed: {error}") from None
    except Exception as error:  # noqa: BLE001  # of many kinds, for values of the standard variables
        raise SettingsError(f"traces cannot be sent: {error}") from None


def _exporters() -> Mapping[str, Callable[[str | None], SpanExporter]]:
    """By protocol, what sends to an endpoint, or without one to where the standard variables say."""

    def by_grpc(endpoint: str | None) -> SpanExporter:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter(endpoint)

    def by_http(endpoint: str | None) -> SpanExporter:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter(endpoint and endpoint.rstrip("/").removesuffix(_HTTP_PATH) + _HTTP_PATH)

    return {"grpc": by_grpc, "http/protobuf": by_http}


def _without_values(record: logging.LogRecord) -> bool:
    """Take out of a log line what it says of the headers to send."""
    record.args = ("(not shown)",) if record.args else ()
    return True


def _standard(environ: Mapping[str, str], name: str) -> str:
    """A variable of the OTLP exporter, that for traces before that for all."""
    return environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or environ.get(f"OTEL_EXPORTER_OTLP_{name}") or ""
