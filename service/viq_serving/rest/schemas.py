"""The options of each method, checked by name, and what the OpenAPI page says of bodies and replies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from viq_serving.errors import InvalidInput
from viq_serving.types import Alpha, FeatureDtype, PixelOptions

_STRICT = ConfigDict(extra="forbid")


class EncodeOptions(BaseModel):
    """Query of /v1/encode."""

    model_config = _STRICT

    size: str | None = Field(default=None, description="which loaded size; none: the default one")
    codes: Literal["list", "base64"] = Field(default="list", description="form of the codes in JSON")
    exif: bool = Field(default=True, description="apply the EXIF orientation")
    alpha: Alpha = Field(default="white", description="lay transparency over white, or drop it")

    def pixels(self) -> PixelOptions:
        """How image files become pixels."""
        return PixelOptions(self.exif, self.alpha)


class DecodeOptions(BaseModel):
    """Query of /v1/decode."""

    model_config = _STRICT

    size: str | None = Field(default=None, description="size of the codes, where they do not say")
    format: Literal["json"] | None = Field(default=None, description="json: base64 PNGs, also for one result")
    any_fingerprint: bool = Field(default=False, description="take codes of other weights too")


class EmbedOptions(BaseModel):
    """Query of /v1/embed."""

    model_config = _STRICT

    size: str | None = Field(default=None, description="which loaded size; none: that of the codes, else the default")
    format: Literal["json"] | None = Field(default=None, description="json: features as lists of numbers")
    dtype: FeatureDtype = Field(default="float32", description="type of the features; bfloat16 travels as uint16 bits")
    exif: bool = Field(default=True, description="apply the EXIF orientation")
    alpha: Alpha = Field(default="white", description="lay transparency over white, or drop it")
    any_fingerprint: bool = Field(default=False, description="take codes of other weights too")

    def pixels(self) -> PixelOptions:
        """How image files become pixels."""
        return PixelOptions(self.exif, self.alpha)


class ReconstructOptions(BaseModel):
    """Query of /v1/reconstruct."""

    model_config = _STRICT

    size: str | None = Field(default=None, description="which loaded size; none: the default one")
    format: Literal["json"] | None = Field(default=None, description="json: base64 PNGs, also for one image")
    exif: bool = Field(default=True, description="apply the EXIF orientation")
    alpha: Alpha = Field(default="white", description="lay transparency over white, or drop it")

    def pixels(self) -> PixelOptions:
        """How image files become pixels."""
        return PixelOptions(self.exif, self.alpha)


class NoOptions(BaseModel):
    """Query of a method that takes none."""

    model_config = _STRICT


class Extent(BaseModel):
    """Pixels of an image to plan for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    width: int = Field(ge=1, lt=2**31)
    height: int = Field(ge=1, lt=2**31)


class PlanRequest(BaseModel):
    """Body of /v1/plan."""

    model_config = ConfigDict(extra="forbid", strict=True)

    images: list[Extent] = Field(min_length=1)
    size: str | None = None

    @classmethod
    def of(cls, fields: dict[str, object]) -> PlanRequest:
        """A checked request; raises `InvalidInput` naming the field."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise InvalidInput(problems(error.errors())) from None


def problems(details: Iterable[Any]) -> str:
    """What pydantic found wrong, as one line; `details` are its own."""
    return "; ".join(f"{'.'.join(str(part) for part in detail['loc'])}: {detail['msg']}" for detail in details)


_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_OBJECT: dict[str, Any] = {"schema": {"type": "object"}}
_PARTS: dict[str, Any] = {
    "schema": {
        "type": "object",
        "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
        "required": ["image"],
    }
}
_IMAGES = {"image/*": _BINARY, "application/octet-stream": _BINARY, "multipart/form-data": _PARTS}
_CODES = {
    "application/json": _OBJECT,
    "application/octet-stream": _BINARY,
    "application/x-npz": _BINARY,
    "application/x-viq": _BINARY,
}
_ERROR = {
    "description": "Any error",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "error": {
                        "type": "object",
                        "properties": {name: {"type": "string"} for name in ("code", "message", "request_id")},
                    }
                },
            }
        }
    },
}


def _described(
    summary: str, takes: dict[str, Any] | None, gives: dict[str, Any], headers: dict[str, str] | None = None
) -> dict[str, Any]:
    """What FastAPI is told of a method; `headers` of the reply with what each says."""
    extra = {} if takes is None else {"requestBody": {"required": True, "content": takes}}
    done: dict[str, Any] = {"description": "Done", "content": gives}
    if headers:
        done["headers"] = {
            name: {"description": about, "schema": {"type": "string"}} for name, about in headers.items()
        }
    return {"summary": summary, "openapi_extra": extra, "responses": {200: done, "default": _ERROR}}


ENCODE = _described("Images to codes", _IMAGES, _CODES)
_PICTURES = {"image/png": _BINARY, "image/jpeg": _BINARY, "image/webp": _BINARY, "application/json": _OBJECT}
DECODE = _described("Codes to images", _CODES, _PICTURES)
RECONSTRUCT = _described(
    "Images to codes and back, with how much of them is left",
    _IMAGES,
    _PICTURES,
    {
        "ViQ-PSNR": "of a single picture, in dB over all channels; inf if nothing is lost (JSON: psnr, null)",
        "ViQ-SSIM": "of a single picture, mean of the channels, Gaussian window of 11x11; nan if a side is shorter "
        "than that (JSON: ssim, null)",
        "ViQ-Grid": "patches of the codes, as h,w",
        "ViQ-Image-Size": "pixels of the picture, as H,W",
    },
)
EMBED = _described(
    "Images or codes to features",
    _IMAGES | _CODES,
    {"application/x-npy": _BINARY, "application/x-npz": _BINARY, "application/json": _OBJECT},
)
_PLAN_SCHEMA = PlanRequest.model_json_schema(ref_template="#/components/schemas/{model}")
SCHEMAS: dict[str, Any] = _PLAN_SCHEMA.pop("$defs")
"""Schemas that those of bodies refer to, by name."""

PLAN = _described(
    "What images of given sizes would take; runs nothing",
    {"application/json": {"schema": _PLAN_SCHEMA}},
    {"application/json": _OBJECT},
)
MODELS = _described("The loaded sizes and the limits", None, {"application/json": _OBJECT})
