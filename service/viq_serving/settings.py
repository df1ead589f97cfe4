"""Everything that can be set from outside, read once from flags and environment and never changed after."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from viq_serving.errors import SettingsError

PREFIX = "VIQ_"

# What Kubernetes puts into the environment of a pod beside a service whose name starts with `viq`.
_LINK_NAME = re.compile(r"^VIQ_(.+_)?SERVICE_|^VIQ_(.+_)?PORT_\d+_(TCP|UDP|SCTP)(_|$)")
_LINK_VALUE = ("tcp://", "udp://", "sctp://")

_URL = re.compile(r"https?://[^\s/@?#]+(/[^\s@?#]*)?")


class _Environment(EnvSettingsSource):
    """The environment without service links: a service `viq-http` sets VIQ_HTTP_PORT=tcp://…, which is not for us."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        value, key, is_complex = super().get_field_value(field, field_name)
        if isinstance(value, str) and value.startswith(_LINK_VALUE):
            value = None
        return value, key, is_complex


TENSORRT_PATCHES = 16_384
"""Patches of a pack that `viq.head_tensorrt` makes engines for."""


class Settings(BaseSettings):
    """Settings of the service: each field is a flag of `viq serve` and an environment variable `VIQ_<FIELD>`.

    `Settings(**flags)` lays what was given explicitly over the environment; use `Settings.load` for
    messages fit for a user.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", case_sensitive=False)

    weights_root: str | None = Field(
        default=None,
        description="folder holding converted_<size>/, or hf:ORG/REPO[/SUBDIR][@REV]; none: the packaged nano",
    )
    size: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="size to load, repeatable; the first is the default of requests that name none"
    )
    device: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="auto, cpu, cuda or cuda:N, repeatable: each computes a part of the batches, and all must make the "
        "same codes; default: auto, one GPU if there is any",
    )
    replicas: int | None = Field(
        default=None,
        ge=1,
        description="batches that each device computes at a time; those that a CPU works on share out its processors; "
        "default: one on a GPU, as many as it has processors on a CPU, four at most",
    )
    replica_processes: bool = Field(
        default=False,
        description="replicas on a CPU compute in processes of their own, each with weights of its own: what kills one "
        "takes only its batch",
    )
    dtype: Literal["auto", "bfloat16", "float32", "float16", "fp8"] = Field(
        default="auto",
        description="compute type; auto is bfloat16 on CUDA and float32 on CPU; fp8: bfloat16 with the trunk's "
        "products in 8 bits, experimental, not yet run on a GPU; on a CPU emulated, to compare codes, and slower",
    )
    head: Literal["eager", "compile", "torchscript", "aoti", "onnx", "tensorrt"] = Field(
        default="eager",
        description="what computes the quantization head; all but eager and compile are loaded from head_file",
    )
    head_file: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="a head made by viq build-head, repeatable: each size takes the one made for its weights. It is "
        "code, which runs as this process",
    )
    cuda_graphs: bool = Field(
        default=False,
        description="compute packs of up to 2048 patches by CUDA graphs; experimental, not yet run on a GPU",
    )
    cudnn_attention_from: int = Field(
        default=0,
        ge=0,
        description="patches from which on an image is attended by cuDNN on CUDA, by itself; 0: never; experimental, "
        "not yet run on a GPU",
    )
    host: str = Field(default="127.0.0.1", description="address to listen on")
    http_port: int | None = Field(default=8000, ge=0, le=65535, description="HTTP port; 0 lets the system choose")
    grpc_port: int | None = Field(default=8001, ge=0, le=65535, description="gRPC port; 0 lets the system choose")
    grpc_when_loaded: bool = Field(
        default=False,
        description="refuse gRPC connections until the models are loaded, for proxies without health checks: to them "
        "UNAVAILABLE, which is the answer otherwise, is a reply like any other",
    )
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="port that serves /metrics alone, without a key and always in plaintext; none: no such port",
    )
    http_uds: str | None = Field(
        default=None,
        description="path of a Unix socket that serves HTTP in place of the port, or beside it if --http-port is given",
    )
    grpc_uds: str | None = Field(default=None, description="path of a Unix socket that serves gRPC, likewise")
    uds_mode: str = Field(
        default="0660", pattern=r"^0?[0-7]{3}$", description="permissions of Unix sockets; their traffic is plaintext"
    )
    tls_cert: str | None = Field(
        default=None,
        description="PEM file of the server's certificate and those between it and a root: both ports then speak TLS "
        "only. All three files are read again when they change",
    )
    tls_key: str | None = Field(default=None, description="PEM file of its private key, without a passphrase")
    tls_client_ca: str | None = Field(
        default=None,
        description="PEM file of roots: only clients with a certificate that one of them vouches for are let in, "
        "so none of Kubernetes' own probes: have an exec probe ask a Unix socket",
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(), description="keys that callers show as Bearer tokens; none, here or in a file: everything is open"
    )
    api_keys_file: str | None = Field(
        default=None,
        description="file of keys, one a line with its limits: KEY [lanes=bulk] [max-patches=N] [max-requests=N], "
        "# starts a comment; read again when it changes",
    )
    page: bool = Field(default=True, description="whether the page for people is served at / of the HTTP port")
    cache_bytes: int = Field(
        default=0,
        ge=0,
        description="bytes of codes kept for images that come again, which are then not encoded again; 0: none",
    )
    cache_shared: bool = Field(
        default=False, description="whether callers with different keys may be answered from one another's images"
    )
    drain_delay: float = Field(
        default=5.0,
        ge=0,
        allow_inf_nan=False,
        description="seconds to go on serving after SIGTERM, while load balancers notice",
    )
    max_body_bytes: int = Field(default=64 * 2**20, ge=1, description="largest request body in bytes")
    max_images: int = Field(default=64, ge=1, description="most images in one request")
    max_pixels: int = Field(
        default=50_000_000, ge=1, le=178_956_970, description="most pixels in one image, as its header says"
    )
    max_patches: int = Field(default=16_384, ge=1, description="most 16x16 patches in one image")
    body_read_timeout_s: float = Field(
        default=30.0, gt=0, allow_inf_nan=False, description="seconds within which a request body must arrive"
    )
    max_message_bytes: int = Field(default=64 * 2**20, ge=1, lt=2**31, description="largest gRPC message in bytes")
    max_bytes_in_flight: int = Field(
        default=512 * 2**20, ge=1, description="most bytes of request bodies held at one time, of all requests together"
    )
    max_queue_patches: int = Field(
        default=262_144, ge=1, description="most patches admitted and not yet answered; more are refused"
    )
    max_queue_age_s: float = Field(
        default=10.0,
        gt=0,
        allow_inf_nan=False,
        description="longest wait for the device; what would wait longer is refused",
    )
    bulk_share: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="part of the device that bulk requests have at least while interactive ones wait, too",
    )
    bulk_max_wait_s: float = Field(
        default=2.0,
        gt=0,
        allow_inf_nan=False,
        description="seconds after which a lane that has had no batch gets the next one, whatever the shares say",
    )
    max_batch_patches: int | None = Field(
        default=None, ge=1, description="patches computed together, attention counted in; none: by the device"
    )
    stall_timeout_s: float = Field(
        default=300.0,
        gt=0,
        allow_inf_nan=False,
        description="seconds after which a batch that makes no progress counts as a dead device",
    )
    max_connections: int = Field(default=4096, ge=1, description="most open connections of each port")
    keep_alive_s: float = Field(
        default=75.0, gt=0, allow_inf_nan=False, description="seconds that an idle HTTP connection stays open"
    )
    grpc_max_concurrent_requests: int = Field(
        default=4096, ge=1, description="most gRPC requests at one time, of all connections together"
    )
    grpc_max_connection_age_s: float = Field(
        default=600.0,
        gt=0,
        allow_inf_nan=False,
        description="seconds after which a gRPC connection is asked to go, so that clients spread over replicas",
    )
    stream_max_bytes: int = Field(
        default=64 * 2**20,
        ge=1,
        description="most bytes of a gRPC stream's unanswered items, or of their answers if those are larger; "
        "no more is read before some are answered",
    )
    stream_max_patches: int = Field(
        default=16_384, ge=1, description="most patches of a gRPC stream's unanswered items, likewise"
    )
    stream_max_items: int = Field(default=1024, ge=1, description="most unanswered items of a gRPC stream, likewise")
    stream_max_open: int = Field(
        default=128, ge=1, description="most gRPC streams of items at one time, of all connections together"
    )
    stream_max_age_s: float = Field(
        default=300.0,
        gt=0,
        allow_inf_nan=False,
        description="seconds after which a gRPC stream is answered and ended, so that clients spread over replicas",
    )
    otlp_endpoint: str | None = Field(
        default=None,
        description="http:// or https:// URL of an OpenTelemetry collector that traces are sent to; none: that of "
        "OTEL_EXPORTER_OTLP_ENDPOINT, or no traces. The standard OTEL_ variables say the rest",
    )
    otlp_protocol: Literal["auto", "grpc", "http/protobuf"] = Field(
        default="auto",
        description="how traces are sent; auto: as OTEL_EXPORTER_OTLP_PROTOCOL says, else http/protobuf to port 4318 "
        "and grpc to others",
    )
    log_format: Literal["json", "text"] = Field(default="json", description="form of log lines")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severe log line shown"
    )

    @classmethod
    def load(cls, flags: Mapping[str, object] | None = None) -> Settings:
        """Settings from explicit `flags` (None means not given) over the environment; raises `SettingsError`."""
        unknown = unknown_names(os.environ)
        if unknown:
            known = ", ".join(PREFIX + name.upper() for name in cls.model_fields)
            raise SettingsError(f"unknown environment variable {', '.join(unknown)}; there are {known}")
        given: dict[str, Any] = {name: value for name, value in (flags or {}).items() if value is not None}
        try:
            return cls(**given)
        except ValidationError as error:
            raise SettingsError("; ".join(_sentence(detail) for detail in error.errors())) from None

    @field_validator("size", "device", "head_file", "api_keys", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("size")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"a size is given twice: {', '.join(value)}")
        return value

    @field_validator("device")
    @classmethod
    def _distinct_devices(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"a device is given twice: {', '.join(value)}; replicas are for that")
        return value

    @field_validator(
        "weights_root",
        "api_keys_file",
        "http_uds",
        "grpc_uds",
        "tls_cert",
        "tls_key",
        "tls_client_ca",
        "otlp_endpoint",
    )
    @classmethod
    def _empty_is_none(cls, value: str | None) -> str | None:
        return value or None

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        if value is not None and not _URL.fullmatch(value):
            raise ValueError("expected http://HOST[:PORT] or https://HOST[:PORT], without a user name")
        return value

    @model_validator(mode="before")
    @classmethod
    def _sockets_for_ports(cls, given: Any) -> Any:
        """A Unix socket takes the place of a port that nobody asked for."""
        places = (("http_port", "http_uds"), ("grpc_port", "grpc_uds"))
        return {**{port: None for port, path in places if given.get(path)}, **given}

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key are given together or not at all")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca needs tls_cert and tls_key")
        largest = max(self.max_patches, self.max_batch_patches or 0)
        if self.head == "tensorrt" and largest > TENSORRT_PATCHES:
            raise ValueError(
                f"max_patches and max_batch_patches are at most {TENSORRT_PATCHES} with head tensorrt, not {largest}"
            )
        if self.http_uds is not None and self.http_uds == self.grpc_uds:
            raise ValueError(f"http_uds and grpc_uds are both {self.http_uds}")
        if {self.http_port, self.http_uds} == {None} or {self.grpc_port, self.grpc_uds} == {None}:
            raise ValueError("http_port and grpc_port may be missing only where there is a Unix socket")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment, and nothing else: no .env file is read."""
        return init_settings, _Environment(settings_cls)

    def limits(self) -> dict[str, float]:
        """The limits that a caller may run into, by the names of their settings."""
        names = (
            "max_body_bytes",
            "max_message_bytes",
            "max_images",
            "max_pixels",
            "max_patches",
            "max_queue_patches",
            "max_queue_age_s",
            "stream_max_bytes",
            "stream_max_patches",
            "stream_max_items",
            "stream_max_age_s",
            "body_read_timeout_s",
            "drain_delay",
        )
        return {name: getattr(self, name) for name in names}

    def masked(self) -> dict[str, object]:
        """The settings as JSON-ready values for showing; secrets come out as asterisks."""
        return self.model_dump(mode="json")


def unknown_names(environ: Mapping[str, str]) -> list[str]:
    """Names in `environ` that start with VIQ_ and are neither settings nor Kubernetes service links."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    return sorted(
        name
        for name, value in environ.items()
        if name.upper().startswith(PREFIX)
        and name.upper() not in known
        and not _LINK_NAME.match(name)
        and not value.startswith(_LINK_VALUE)
    )


def _sentence(detail: Any) -> str:
    name = ".".join(str(part) for part in detail["loc"])
    if not name:  # of several together, all of which, keys too, would be shown
        return str(detail["msg"])
    return f"{name} ({PREFIX}{name.upper()}): {detail['msg']}, got {detail['input']!r}"
