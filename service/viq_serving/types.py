"""Requests and results as the service speaks of them. No transport, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from viq_serving.allowance import Allowance
from viq_serving.errors import Forbidden, ViQError

Alpha = Literal["white", "drop"]
FeatureDtype = Literal["float32", "float16", "bfloat16"]
PictureFormat = Literal["png", "jpeg", "webp"]
Method = Literal["encode", "embed", "decode"]
Priority = Literal["interactive", "bulk"]
Door = Literal["http", "grpc", "oip_http", "oip_grpc"]

T = TypeVar("T")


@dataclass(frozen=True)
class PixelOptions:
    """How an encoded image becomes RGB pixels. Part of every cache key."""

    exif: bool = True
    alpha: Alpha = "white"


@dataclass(frozen=True)
class ImageFile:
    """One encoded image as it came, and how it becomes pixels."""

    data: bytes
    options: PixelOptions = PixelOptions()


@dataclass(frozen=True)
class Caller:
    """Who asks, and what they may: lanes, and patches and requests at one time (None: as many as there is room for).

    `name` tells callers apart without showing their keys; it is empty for everybody who shows none.
    """

    name: str = ""
    lanes: frozenset[Priority] = frozenset(("interactive", "bulk"))
    patches: Allowance | None = None
    requests: Allowance | None = None

    def permit(self, priority: Priority) -> None:
        """Raise `Forbidden` if this lane is not open to the caller."""
        if priority not in self.lanes:
            raise Forbidden(f"the key has no right to {priority}, only to {', '.join(sorted(self.lanes))}")

    def lane(self, asked: Priority | None, usual: Priority = "interactive") -> Priority:
        """The lane that a request takes: what it asks for if that is permitted; asking nothing, `usual` or what is."""
        if asked is not None:
            self.permit(asked)
            return asked
        return usual if usual in self.lanes else min(self.lanes)


ANYBODY = Caller()


@dataclass(frozen=True)
class Terms:
    """What a caller asks of the answer beside its content: `deadline` is on the clock of `time.monotonic`, in s.

    `request_id` is for the log alone. Who is `patient` waits for room in place of being refused for a full queue or
    for the time it takes.
    """

    deadline: float = math.inf
    priority: Priority = "interactive"
    request_id: str = ""
    patient: bool = False
    caller: Caller = ANYBODY


@dataclass(frozen=True)
class ModelInfo:
    """One loaded size, as replies describe it."""

    size: str
    fingerprint: str
    family: str
    levels: tuple[int, ...]
    codebook_size: int
    width: int
    dtype: str
    device: str
    untrained: bool
    replicas: int = 1

    @property
    def label(self) -> str:
        """The size as it is shown to people."""
        return f"{self.size} (untrained)" if self.untrained else self.size


@dataclass(frozen=True)
class Timings:
    """Where one request's time went, in milliseconds."""

    preprocess: float = 0.0
    queue: float = 0.0
    transfer: float = 0.0
    compute: float = 0.0
    postprocess: float = 0.0

    def __add__(self, other: Timings) -> Timings:
        """Both, one after the other."""
        return Timings(*(round(a + b, 3) for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Features:
    """Features of one image: `array` is `(h*w, C)` float32, float16, or the bits of bfloat16 as uint16."""

    array: npt.NDArray[np.generic]
    dtype: FeatureDtype
    grid: tuple[int, int]
    image_size: tuple[int, int]


@dataclass(frozen=True)
class Picture:
    """One decoded image as a file: `data` in `format`, `image_size` `(H, W)` pixels."""

    data: bytes
    format: PictureFormat
    image_size: tuple[int, int]


@dataclass(frozen=True)
class Results(Generic[T]):
    """What came of a request, one item each in request order: a result, or the error of that item alone."""

    model: ModelInfo
    items: Sequence[T | ViQError]
    timings: Timings


@dataclass(frozen=True)
class Plan:
    """What an image of some size would take; `limit` names the first limit it is over, None if it fits."""

    grid: tuple[int, int]
    image_size: tuple[int, int]
    patches: int
    codes: int
    cost: int
    limit: str | None
