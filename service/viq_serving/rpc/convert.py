"""Messages of viq.v1 to domain types. Plain computation, fit for a thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from viq.codes import Codes
from viq_serving.errors import InvalidInput, TooLarge, ViQError
from viq_serving.pb import viq_pb2 as pb
from viq_serving.types import Alpha, FeatureDtype, ImageFile, PictureFormat, PixelOptions

T = TypeVar("T")

_ALPHA: dict[int, Alpha] = {0: "white", pb.ALPHA_WHITE: "white", pb.ALPHA_DROP: "drop"}
_DTYPE: dict[int, FeatureDtype] = {
    0: "float32",
    pb.FEATURE_DTYPE_FLOAT32: "float32",
    pb.FEATURE_DTYPE_FLOAT16: "float16",
    pb.FEATURE_DTYPE_BFLOAT16: "bfloat16",
}
_FORMAT: dict[int, PictureFormat] = {
    0: "png",
    pb.PICTURE_FORMAT_PNG: "png",
    pb.PICTURE_FORMAT_JPEG: "jpeg",
    pb.PICTURE_FORMAT_WEBP: "webp",
}
_DEFAULT = PixelOptions()
_MAX_SIDE = 2**31


def images_of(items: Sequence[pb.Item], max_items: int) -> list[ImageFile | ViQError]:
    """The image files of `items`; an item without one is its own error. Raises `TooLarge` for too many."""
    counted(items, max_items)
    return [image_of(item) for item in items]


def inputs_of(items: Sequence[pb.Item], size: str, max_items: int) -> list[ImageFile | Codes | ViQError]:
    """The images and codes of `items`, as `images_of` and `codes_of` have them."""
    counted(items, max_items)
    return [input_of(item, size) for item in items]


def codes_of(items: Sequence[pb.Item], size: str, max_items: int) -> list[Codes | ViQError]:
    """The codes of `items`, those that name no size being of `size`; otherwise as `images_of`."""
    counted(items, max_items)
    return [one_codes_of(item, size) for item in items]


def image_of(item: pb.Item) -> ImageFile | ViQError:
    """The image file of one item, or what is wrong with it."""
    return _guarded(_image, item)


def input_of(item: pb.Item, size: str) -> ImageFile | Codes | ViQError:
    """The image or codes of one item, as `image_of`; codes that name no size are of `size`."""
    return _guarded(_codes, item, size) if item.WhichOneof("content") == "codes" else _guarded(_image, item)


def one_codes_of(item: pb.Item, size: str) -> Codes | ViQError:
    """The codes of one item, as `input_of`."""
    return _guarded(_codes, item, size)


def counted(items: Sequence[object], max_items: int) -> None:
    """Raise `TooLarge` for more items than one message may hold."""
    if len(items) > max_items:
        raise TooLarge(f"{len(items)} items in one request, the limit (max_images) is {max_items}")


def size_of(asked: str, items: Sequence[pb.Item]) -> str:
    """The size that is `asked` for, else that of the first codes that name one; empty for none."""
    return asked or next((item.codes.size for item in items if item.codes.size), "")


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
    counted(request.images, max_items)
    for index, one in enumerate(request.images):
        if not (0 < one.height < _MAX_SIDE and 0 < one.width < _MAX_SIDE):
            raise InvalidInput(f"image {index} is {one.width}x{one.height}, expected sides of 1 to {_MAX_SIDE - 1}")
    return [(one.height, one.width) for one in request.images]


def _guarded(work: Callable[..., T], *arguments: object) -> T | ViQError:
    try:
        return work(*arguments)
    except ViQError as error:
        return error.bare()


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
