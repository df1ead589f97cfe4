"""Images to codes at a service: many on their way, in order again at the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from viq.codes import Codes
from viq.errors import InvalidInput, TooLarge, ViQError
from viq_serving.client import Client
from viq_serving.extract.errors import DeviceLost, PlaceError
from viq_serving.extract.quality import QualityGate
from viq_serving.extract.results import Result, Unforeseen, read_fields
from viq_serving.extract.sources import Item
from viq_serving.images import ImageLimits, decode
from viq_serving.types import Alpha

K = TypeVar("K")

_OF_THE_IMAGE = (InvalidInput, TooLarge)


class There:
    """A service, one replica or many."""

    def __init__(
        self,
        client: Client,
        limits: ImageLimits,
        *,
        size: str | None = None,
        exif: bool = True,
        alpha: Alpha = "white",
        min_psnr: float | None = None,
    ) -> None:
        """With `min_psnr`, in dB, the service decodes what it encoded, and what gives back less is `LowQuality`."""
        self._client, self._size, self._exif, self._alpha = client, size, exif, alpha
        self._pixels: Callable[[bytes], npt.NDArray[np.uint8]] = partial(decode, limits=limits, exif=exif, alpha=alpha)
        self._gate = None if min_psnr is None else QualityGate(min_psnr)

    def encoded(self, items: Iterable[Item]) -> Iterator[Result]:
        """What becomes of each of `items`, in their order.

        Raises `DeviceLost` if the service refuses or is gone for longer than the client waits for it, `PlaceError` if
        what images are read from can no longer be read.
        """
        pairs = ((one, one) for one in map(_Sent, items))
        made = _made(self._client.encode_each(pairs, size=self._size, exif=self._exif, alpha=self._alpha))
        for one, codes in made if self._gate is None else self._judged(made, self._gate):
            yield Result(one.item, codes, one.fields)

    def _judged(
        self, encoded: Iterable[tuple[_Sent, Codes | ViQError]], gate: QualityGate
    ) -> Iterator[tuple[_Sent, Codes | ViQError]]:
        """The same, with pictures that are not worth keeping refused; codes are decoded as they come, in order."""
        passing = deque[tuple[_Sent, Codes | ViQError]]()

        def to_decode() -> Iterator[tuple[tuple[_Sent, Codes], Codes]]:
            for one, codes in encoded:
                passing.append((one, codes))
                if isinstance(codes, Codes):
                    yield (one, codes), codes

        for (one, codes), picture in _made(self._client.decode_each(to_decode())):
            while passing[0][0] is not one:
                yield passing.popleft()
            passing.popleft()
            yield one, picture if isinstance(picture, ViQError) else self._looked_at(gate, one, codes, picture)
        yield from passing

    def _looked_at(self, gate: QualityGate, one: _Sent, codes: Codes, picture: Any) -> Codes | ViQError:
        """The image is read once more: to hold all that are on their way would take too much memory."""
        try:
            return gate.judged(self._pixels(one.item.content()), codes, picture)
        except PlaceError:
            raise
        except ViQError as error:
            return error.bare()
        except ValueError as error:
            return InvalidInput(f"it changed while it was read: {error}")


def _made(answers: Iterable[tuple[K, Any]]) -> Iterator[tuple[K, Any]]:
    """Answers, and what is wrong with an image; raises what is wrong with all of them."""
    for one, answer in answers:
        if isinstance(answer, PlaceError):
            raise answer
        if isinstance(answer, ViQError) and not isinstance(answer, _OF_THE_IMAGE) and answer.code != "internal":
            raise DeviceLost(f"the service: {answer}") from answer
        yield one, answer


class _Sent:
    """An item on its way, and its fields once they are read."""

    def __init__(self, item: Item) -> None:
        self.item, self.fields = item, dict[str, Any]()
        self.nbytes = item.held

    def __call__(self) -> bytes:
        """The image file, on a thread of the client's."""
        try:
            data = self.item.content()
            fields: Mapping[str, Any] = read_fields(self.item.fields)
        except ViQError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever one file makes a file system do, the others go on
            raise Unforeseen(f"{type(error).__name__}: {error}") from None
        self.fields = dict(fields)
        return data
