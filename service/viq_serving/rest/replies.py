"""Results in every form a reply can have. All of it is plain computation, fit for a thread."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
from starlette.responses import Response

from viq.codes import Codes
from viq_serving.errors import Internal, InvalidInput, Overloaded, ViQError
from viq_serving.exchange import Exchange
from viq_serving.reconstruction import Reconstruction
from viq_serving.rest.errors import error_body, error_fields, error_headers, status_of
from viq_serving.rest.etag import cache_headers
from viq_serving.types import Features, ModelInfo, Picture, PictureFormat, Plan, Results

T = TypeVar("T")

JSON, RAW, NPY, NPZ = "application/json", "application/octet-stream", "application/x-npy", "application/x-npz"
VIQ = "application/x-viq"
PICTURES: dict[str, PictureFormat] = {"image/png": "png", "image/jpeg": "jpeg", "image/webp": "webp"}

_OF_ALL = ("overloaded", "not_ready", "deadline_exceeded")  # refusals of a request, which have no results

_COMPACT_EFFORT = 10_000  # some milliseconds however few the codes are

_PSNR_DIGITS, _SSIM_DIGITS = 4, 6

Names = Sequence[str | None]


def json_reply(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`content` as compact JSON."""
    return Response(json.dumps(content, separators=(",", ":"), allow_nan=False), status, headers, JSON)


def weight(results: Results[Codes] | Results[Features] | Results[Picture] | Results[Reconstruction]) -> int:
    """Bytes that `results` hold, but for their description."""
    items = [item for item in results.items if not isinstance(item, ViQError)]
    made = [item.picture if isinstance(item, Reconstruction) else item for item in items]
    return sum(len(one.data) if isinstance(one, Picture) else one.array.nbytes for one in made)


def effort(results: Results[Codes], form: str) -> int:
    """The same, counted by the time that the reply of encode takes: zstandard searches long for the compact form."""
    return weight(results) * (_COMPACT_EFFORT if form == VIQ else 1)


def encoded(
    results: Results[Codes],
    names: Names,
    form: str,
    codes: Literal["list", "base64"],
    tag: str | None,
    exchange: Exchange,
) -> Response:
    """The reply of encode as `form`; all but JSON hold one result. `tag` is its ETag if it has one."""
    if form == JSON:

        def fields(one: Codes) -> dict[str, object]:
            return {key: value for key, value in one.to_dict(codes).items() if key not in ("size", "fingerprint")}

        return _listed(results, names, fields, exchange, cache_headers(tag))
    one = _good(results)[0]
    data = {RAW: one.to_bytes, NPZ: one.npz_bytes, VIQ: one.viq_bytes}[form]()
    headers = _shape_headers(results.model, one) | cache_headers(tag)
    return Response(data, headers=headers, media_type=form)


def decoded(results: Results[Picture], names: Names, as_json: bool, exchange: Exchange) -> Response:
    """The reply of decode: one picture as it is, or JSON with base64 PNGs."""
    if as_json:
        return _listed(results, names, _picture_fields, exchange)
    one = _good(results)[0]
    headers = {"ViQ-Image-Size": _comma(one.image_size), **_model_headers(results.model)}
    return Response(one.data, headers=headers, media_type=f"image/{one.format}")


def reconstructed(results: Results[Reconstruction], names: Names, as_json: bool, exchange: Exchange) -> Response:
    """The reply of reconstruct: one picture as it is with its likeness in headers, or JSON with base64 PNGs."""
    if as_json:

        def fields(one: Reconstruction) -> dict[str, object]:
            likeness = {"psnr": _finite(one.psnr, _PSNR_DIGITS), "ssim": _finite(one.ssim, _SSIM_DIGITS)}
            return {**_picture_fields(one.picture), "grid": one.grid, **likeness}

        return _listed(results, names, fields, exchange)
    one = _good(results)[0]
    likeness = {"ViQ-PSNR": f"{one.psnr:.{_PSNR_DIGITS}f}", "ViQ-SSIM": f"{one.ssim:.{_SSIM_DIGITS}f}"}
    headers = {**_shape_headers(results.model, one), **likeness}
    return Response(one.picture.data, headers=headers, media_type=f"image/{one.picture.format}")


def embedded(results: Results[Features], names: Names, form: str, exchange: Exchange) -> Response:
    """The reply of embed as `form`: npy of one, npz of several, or JSON."""
    if form == JSON:

        def fields(one: Features) -> dict[str, object]:
            return {"image_size": one.image_size, "grid": one.grid, "features": _numbers(one)}

        return _listed(results, names, fields, exchange)
    good, buffer = _good(results), io.BytesIO()
    headers = {"ViQ-Dtype": good[0].dtype, **_model_headers(results.model)}
    if form == NPY:
        np.save(buffer, good[0].array, allow_pickle=False)
        headers |= _shape_headers(results.model, good[0])
    else:
        np.savez(buffer, allow_pickle=False, **_packed(good))
    return Response(buffer.getvalue(), headers=headers, media_type=form)


def planned(model: ModelInfo, plans: Sequence[Plan]) -> Response:
    """The reply of plan."""
    return json_reply({"model": _model_block(model), "results": [_plan_fields(plan) for plan in plans]})


def models_listed(models: Sequence[ModelInfo], limits: Mapping[str, object]) -> Response:
    """The reply of models, the default first."""
    rows = []
    for index, model in enumerate(models):
        row = {**_model_block(model), "dtype": model.dtype, "device": model.device, "replicas": model.replicas}
        rows.append({**row, "width": model.width, "default": index == 0, "limits": dict(limits)})
    return json_reply({"models": rows})


def _listed(
    results: Results[T],
    names: Names,
    fields: Callable[[T], dict[str, object]],
    exchange: Exchange,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """JSON with one entry for each item; the first item's status if every one failed."""
    entries: list[dict[str, object]] = []
    for name, item in zip(names, results.items, strict=True):
        named: dict[str, object] = {} if name is None else {"name": name}
        answer = {"error": error_fields(item)} if isinstance(item, ViQError) else fields(item)
        entries.append({**named, **answer})
    body = {
        "model": _model_block(results.model),
        "results": entries,
        "timings_ms": asdict(results.timings),
    }
    errors = [item for item in results.items if isinstance(item, ViQError)]
    if len(errors) < len(entries):
        return json_reply(body, headers=headers)
    if len(errors) == 1 or errors[0].code in _OF_ALL:
        raise errors[0]
    return json_reply({**error_body(errors[0], exchange), **body}, status_of(errors[0]), error_headers(errors[0]))


def _good(results: Results[T]) -> list[T]:
    """All items, for replies that cannot hold an error: the first error is raised, naming its item."""
    good: list[T] = []
    for index, item in enumerate(results.items):
        if isinstance(item, ViQError):
            if len(results.items) == 1 or isinstance(item, (Internal, Overloaded)):
                raise item
            raise type(item)(f"item {index}: {item} (a JSON reply answers the others)")
        good.append(item)
    return good


def _packed(good: Sequence[Features]) -> dict[str, npt.NDArray[np.generic]]:
    lengths = [one.array.shape[0] for one in good]
    return {
        "features": np.concatenate([one.array for one in good]),
        "cu_seqlens": np.cumsum([0, *lengths], dtype=np.int32),
        "grid_hw": np.asarray([one.grid for one in good], np.int32),
    }


def _picture_fields(one: Picture) -> dict[str, object]:
    return {"image_size": one.image_size, "image_b64": base64.b64encode(one.data).decode("ascii")}


def _finite(value: float, digits: int) -> float | None:
    """JSON has no word for infinity and for what is no number."""
    return round(value, digits) if math.isfinite(value) else None


def _numbers(one: Features) -> list[list[float]]:
    array = one.array
    if one.dtype == "bfloat16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    if not np.isfinite(array).all():
        raise InvalidInput(f"features are not finite in {one.dtype}, which JSON cannot hold; ask for another dtype")
    rows: list[list[float]] = array.tolist()
    return rows


def _plan_fields(plan: Plan) -> dict[str, object]:
    fields = {key: value for key, value in asdict(plan).items() if key != "limit"}
    return {**fields, "fits": True} if plan.limit is None else {**fields, "fits": False, "limit": plan.limit}


def _model_block(model: ModelInfo) -> dict[str, object]:
    block: dict[str, object] = {
        "size": model.size,
        "fingerprint": model.fingerprint,
        "codebook_size": model.codebook_size,
        "levels": list(model.levels),
    }
    return {**block, "untrained": True} if model.untrained else block


def _model_headers(model: ModelInfo) -> dict[str, str]:
    headers = {"ViQ-Size": model.size, "ViQ-Fingerprint": model.fingerprint}
    return {**headers, "ViQ-Untrained": "true"} if model.untrained else headers


def _shape_headers(model: ModelInfo, one: Codes | Features | Reconstruction) -> dict[str, str]:
    shape = {"ViQ-Grid": _comma(one.grid), "ViQ-Image-Size": _comma(one.image_size)}
    return {**shape, **_model_headers(model)}


def _comma(pair: tuple[int, int]) -> str:
    return f"{pair[0]},{pair[1]}"
