"""Everything that can be set from outside, read once from flags and environment and never changed after."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
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


class _Environment(EnvSettingsSource):
    """The environment without service links: a service `viq-http` sets VIQ_HTTP_PORT=tcp://…, which is not for us."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        value, key, is_complex = super().get_field_value(field, field_name)
        if isinstance(value, str) and value.startswith(_LINK_VALUE):
            value = None
        return value, key, is_complex


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
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "bfloat16", "float32", "float16"] = Field(
        default="auto", description="compute type; auto is bfloat16 on CUDA and float32 on CPU"
    )
    host: str = Field(default="127.0.0.1", description="address to listen on")
    http_port: int = Field(default=8000, ge=0, le=65535, description="HTTP port; 0 lets the system choose")
    grpc_port: int = Field(default=8001, ge=0, le=65535, description="gRPC port; 0 lets the system choose")
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="port that serves /metrics alone, and without a key; none: no such port",
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(), description="keys that callers show as Bearer tokens; none, here or in a file: everything is open"
    )
    api_keys_file: str | None = Field(
        default=None, description="file of keys, one a line, # starts a comment; read again when it changes"
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

    @field_validator("size", "api_keys", mode="before")
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

    @field_validator("weights_root", "api_keys_file")
    @classmethod
    def _empty_is_none(cls, value: str | None) -> str | None:
        return value or None

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
    return f"{name} ({PREFIX}{name.upper()}): {detail['msg']}, got {detail['input']!r}"
