"""Domain types to messages of viq.v1. Plain computation, fit for a thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias, TypeVar

from viq.codes import Codes
from viq_serving.errors import TooLarge, ViQError
from viq_serving.pb import viq_pb2 as pb
from viq_serving.rpc.errors import code_of, message_of, status_of
from viq_serving.types import FeatureDtype, Features, ModelInfo, Picture, Plan, Results, Timings

R = TypeVar("R", Codes, Features, Picture)

Done: TypeAlias = Codes | Features | Picture
"""What can come of one item."""

_DTYPE_NUMBER: dict[FeatureDtype, pb.FeatureDtype] = {
    "float32": pb.FEATURE_DTYPE_FLOAT32,
    "float16": pb.FEATURE_DTYPE_FLOAT16,
    "bfloat16": pb.FEATURE_DTYPE_BFLOAT16,
}
_MOST = 2**64 - 1


def weight_of(items: Iterable[Done | ViQError]) -> int:
    """Bytes that the contents of `items` take in a message."""
    return sum(_weight(item) for item in items)


def encoded(results: Results[Codes], keys: Sequence[str], max_bytes: int) -> bytes:
    """The reply of Encode, serialized; raises `TooLarge` if it would be over `max_bytes`, before copying anything."""
    return _reply(pb.EncodeResponse, results, keys, max_bytes)


def embedded(results: Results[Features], keys: Sequence[str], max_bytes: int) -> bytes:
    """The reply of Embed, as `encoded`."""
    return _reply(pb.EmbedResponse, results, keys, max_bytes)


def decoded(results: Results[Picture], keys: Sequence[str], max_bytes: int) -> bytes:
    """The reply of Decode, as `encoded`."""
    return _reply(pb.DecodeResponse, results, keys, max_bytes)


def planned(model: ModelInfo, plans: Iterable[Plan]) -> pb.PlanResponse:
    """The reply of Plan."""
    return pb.PlanResponse(model=model_of(model), results=[_plan(plan) for plan in plans])


def info(models: Sequence[ModelInfo], limits: Mapping[str, float]) -> pb.InfoResponse:
    """The reply of Info; the first of `models` is the default."""
    rows = [
        pb.LoadedModel(model=model_of(one), dtype=one.dtype, device=one.device, width=one.width, is_default=index == 0)
        for index, one in enumerate(models)
    ]
    return pb.InfoResponse(models=rows, limits=limits)


def result_of(key: str, item: Done | ViQError) -> pb.Result:
    """The whole answer to the item of that key, features in one chunk."""
    if isinstance(item, ViQError):
        number: int = status_of(item).value[0]
        return pb.Result(key=key, status=pb.Status(code=code_of(item), grpc_code=number, message=message_of(item)))
    if isinstance(item, Codes):
        return pb.Result(key=key, codes=_codes(item))
    if isinstance(item, Picture):
        return pb.Result(key=key, image=item.data)
    return chunk_of(key, item, 0, len(item.array))


def chunk_of(key: str, one: Features, begin: int, end: int) -> pb.Result:
    """Rows `begin` to `end` of some features."""
    rows, columns = one.array.shape
    data = one.array[begin:end].astype(one.array.dtype.newbyteorder("<"), copy=False).tobytes()
    chunk = pb.FeatureChunk(
        dtype=_DTYPE_NUMBER[one.dtype], n=rows, c=columns, row_offset=begin, data=data, last=end == rows
    )
    return pb.Result(key=key, features=chunk)


def model_of(model: ModelInfo) -> pb.Model:
    """Which model answers."""
    return pb.Model(
        size=model.size,
        fingerprint=model.fingerprint,
        codebook_size=model.codebook_size,
        levels=model.levels,
        untrained=model.untrained,
    )


def _reply(
    kind: type[pb.EncodeResponse] | type[pb.EmbedResponse] | type[pb.DecodeResponse],
    results: Results[R],
    keys: Sequence[str],
    max_bytes: int,
) -> bytes:
    weight = weight_of(results.items)
    if weight > max_bytes:
        raise TooLarge(
            f"results of {weight} bytes, the limit of a message (max_message_bytes) is {max_bytes}: "
            "ask for fewer images at a time, features in float16, pictures in jpeg"
        )
    rows = [result_of(key, item) for key, item in zip(keys, results.items, strict=True)]
    return kind(model=model_of(results.model), results=rows, timings=_timings(results.timings)).SerializeToString()


def _weight(item: object) -> int:
    if isinstance(item, Picture):
        return len(item.data)
    return item.array.nbytes if isinstance(item, Codes | Features) else 0


def _codes(one: Codes) -> pb.Codes:
    (h, w), (height, width) = one.grid, one.image_size
    return pb.Codes(
        data=one.to_bytes(), h=h, w=w, height=height, width=width, size=one.size, fingerprint=one.fingerprint
    )


def _timings(timings: Timings) -> pb.Timings:
    return pb.Timings(
        preprocess_ms=timings.preprocess,
        queue_ms=timings.queue,
        transfer_ms=timings.transfer,
        compute_ms=timings.compute,
        postprocess_ms=timings.postprocess,
    )


def _plan(plan: Plan) -> pb.ImagePlan:
    (h, w), (height, width) = plan.grid, plan.image_size
    return pb.ImagePlan(
        h=h,
        w=w,
        height=height,
        width=width,
        patches=plan.patches,
        codes=plan.codes,
        cost=min(plan.cost, _MOST),
        fits=plan.limit is None,
        limit=plan.limit or "",
    )
