"""Messages of viq.v1 to domain types and back. Plain computation, fit for a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from viq.codes import Codes
from viq_serving.errors import InvalidInput, TooLarge, ViQError
from viq_serving.pb import viq_pb2 as pb
from viq_serving.rpc.errors import code_of, message_of, status_of
from viq_serving.types import (
    Alpha,
    FeatureDtype,
    Features,
    ImageFile,
    ModelInfo,
    Picture,
    PictureFormat,
    PixelOptions,
    Plan,
    Results,
    Timings,
)

T = TypeVar("T")

_ALPHA: dict[int, Alpha] = {0: "white", pb.ALPHA_WHITE: "white", pb.ALPHA_DROP: "drop"}
_DTYPE: dict[int, FeatureDtype] = {
    0: "float32",
    pb.FEATURE_DTYPE_FLOAT32: "float32",
    pb.FEATURE_DTYPE_FLOAT16: "float16",
    pb.FEATURE_DTYPE_BFLOAT16: "bfloat16",
}
_DTYPE_NUMBER: dict[FeatureDtype, pb.FeatureDtype] = {
    "float32": pb.FEATURE_DTYPE_FLOAT32,
    "float16": pb.FEATURE_DTYPE_FLOAT16,
    "bfloat16": pb.FEATURE_DTYPE_BFLOAT16,
}
_FORMAT: dict[int, PictureFormat] = {
    0: "png",
    pb.PICTURE_FORMAT_PNG: "png",
    pb.PICTURE_FORMAT_JPEG: "jpeg",
    pb.PICTURE_FORMAT_WEBP: "webp",
}
_DEFAULT = PixelOptions()
_MAX_SIDE, _MOST = 2**31, 2**64 - 1


def images_of(items: Sequence[pb.Item], max_items: int) -> list[ImageFile | ViQError]:
    """The image files of `items`; an item without one is its own error. Raises `TooLarge` for too many."""
    _counted(items, max_items)
    return [_guarded(_image, item) for item in items]


def inputs_of(items: Sequence[pb.Item], size: str, max_items: int) -> list[ImageFile | Codes | ViQError]:
    """The images and codes of `items`, as `images_of` and `codes_of` have them."""
    _counted(items, max_items)
    return [
        _guarded(_codes, item, size) if item.WhichOneof("content") == "codes" else _guarded(_image, item)
        for item in items
    ]


def codes_of(items: Sequence[pb.Item], size: str, max_items: int) -> list[Codes | ViQError]:
    """The codes of `items`, those that name no size being of `size`; otherwise as `images_of`."""
    _counted(items, max_items)
    return [_guarded(_codes, item, size) for item in items]


def size_of(request: pb.EmbedRequest | pb.DecodeRequest) -> str:
    """The size that `request` asks for: its own, else that of the first codes that name one; empty for none."""
    return request.size or next((item.codes.size for item in request.items if item.codes.size), "")


def dtype_of(number: int) -> FeatureDtype:
    """The dtype of that number; raises `InvalidInput` for none."""
    return _named(_DTYPE, number, "dtype")


def format_of(number: int) -> PictureFormat:
    """The picture format of that number; raises `InvalidInput` for none."""
    return _named(_FORMAT, number, "format")


def sides_of(request: pb.PlanRequest, max_items: int) -> list[tuple[int, int]]:
    """`(height, width)` of each image asked about; raises `InvalidInput` or `TooLarge` for what cannot be planned."""
    if not request.images:
        raise InvalidInput("the request holds no image")
    _counted(request.images, max_items)
    for index, one in enumerate(request.images):
        if not (0 < one.height < _MAX_SIDE and 0 < one.width < _MAX_SIDE):
            raise InvalidInput(f"image {index} is {one.width}x{one.height}, expected sides of 1 to {_MAX_SIDE - 1}")
    return [(one.height, one.width) for one in request.images]


def weight_of(results: Results[Codes] | Results[Features] | Results[Picture]) -> int:
    """Bytes that the contents of `results` take in a message."""
    return sum(_weight(item) for item in results.items)


def encoded(results: Results[Codes], keys: Sequence[str], max_bytes: int) -> bytes:
    """The reply of Encode, serialized; raises `TooLarge` if it would be over `max_bytes`, before copying anything."""
    return _reply(pb.EncodeResponse, results, keys, _codes_message, max_bytes)


def embedded(results: Results[Features], keys: Sequence[str], max_bytes: int) -> bytes:
    """The reply of Embed, as `encoded`."""
    return _reply(pb.EmbedResponse, results, keys, _features_message, max_bytes)


def decoded(results: Results[Picture], keys: Sequence[str], max_bytes: int) -> bytes:
    """The reply of Decode, as `encoded`."""
    return _reply(pb.DecodeResponse, results, keys, _picture_message, max_bytes)


def planned(model: ModelInfo, plans: Iterable[Plan]) -> pb.PlanResponse:
    """The reply of Plan."""
    return pb.PlanResponse(model=_model(model), results=[_plan(plan) for plan in plans])


def info(models: Sequence[ModelInfo], limits: Mapping[str, float]) -> pb.InfoResponse:
    """The reply of Info; the first of `models` is the default."""
    rows = [
        pb.LoadedModel(model=_model(one), dtype=one.dtype, device=one.device, width=one.width, is_default=index == 0)
        for index, one in enumerate(models)
    ]
    return pb.InfoResponse(models=rows, limits=limits)


def _counted(items: Sequence[object], max_items: int) -> None:
    if len(items) > max_items:
        raise TooLarge(f"{len(items)} items in one request, the limit (max_images) is {max_items}")


def _guarded(work: Callable[..., T], *arguments: object) -> T | ViQError:
    try:
        return work(*arguments)
    except ViQError as error:
        return error.with_traceback(None)


def _image(item: pb.Item) -> ImageFile:
    if item.WhichOneof("content") != "image":
        raise InvalidInput("the item holds no image")
    if not item.HasField("options"):
        return ImageFile(item.image)
    options = item.options
    exif = options.exif if options.HasField("exif") else _DEFAULT.exif
    return ImageFile(item.image, PixelOptions(exif, _named(_ALPHA, options.alpha, "alpha")))


def _codes(item: pb.Item, size: str) -> Codes:
    if item.WhichOneof("content") != "codes":
        raise InvalidInput("the item holds no codes")
    one = item.codes
    pixels = (one.height, one.width) if one.height or one.width else None
    return Codes.from_bytes(one.data, (one.h, one.w), one.size or size, pixels, one.fingerprint)


def _named(names: Mapping[int, T], number: int, what: str) -> T:
    if number not in names:
        raise InvalidInput(f"{what} is number {number}; there are {', '.join(map(str, names.values()))}")
    return names[number]


def _reply(
    kind: type[pb.EncodeResponse] | type[pb.EmbedResponse] | type[pb.DecodeResponse],
    results: Results[T],
    keys: Sequence[str],
    result: Callable[[str, T], pb.Result],
    max_bytes: int,
) -> bytes:
    weight = sum(map(_weight, results.items))
    if weight > max_bytes:
        raise TooLarge(
            f"results of {weight} bytes, the limit of a message (max_message_bytes) is {max_bytes}: "
            "ask for fewer images at a time, features in float16, pictures in jpeg"
        )
    rows = [
        pb.Result(key=key, status=_status(item)) if isinstance(item, ViQError) else result(key, item)
        for key, item in zip(keys, results.items, strict=True)
    ]
    return kind(model=_model(results.model), results=rows, timings=_timings(results.timings)).SerializeToString()


def _weight(item: object) -> int:
    if isinstance(item, Picture):
        return len(item.data)
    return item.array.nbytes if isinstance(item, Codes | Features) else 0


def _status(error: ViQError) -> pb.Status:
    number: int = status_of(error).value[0]
    return pb.Status(code=code_of(error), grpc_code=number, message=message_of(error))


def _codes_message(key: str, one: Codes) -> pb.Result:
    (h, w), (height, width) = one.grid, one.image_size
    codes = pb.Codes(
        data=one.to_bytes(), h=h, w=w, height=height, width=width, size=one.size, fingerprint=one.fingerprint
    )
    return pb.Result(key=key, codes=codes)


def _features_message(key: str, one: Features) -> pb.Result:
    rows, columns = one.array.shape
    data = one.array.astype(one.array.dtype.newbyteorder("<"), copy=False).tobytes()
    chunk = pb.FeatureChunk(dtype=_DTYPE_NUMBER[one.dtype], n=rows, c=columns, data=data, last=True)
    return pb.Result(key=key, features=chunk)


def _picture_message(key: str, one: Picture) -> pb.Result:
    return pb.Result(key=key, image=one.data)


def _model(model: ModelInfo) -> pb.Model:
    return pb.Model(
        size=model.size,
        fingerprint=model.fingerprint,
        codebook_size=model.codebook_size,
        levels=model.levels,
        untrained=model.untrained,
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
