"""Images to codes at a service: many on their way, in order again at the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from viq.codes import Codes
from viq.errors import InvalidInput, TooLarge
from viq_serving.client import Client
from viq_serving.extract.errors import DeviceLost
from viq_serving.extract.results import Result, read_fields
from viq_serving.extract.sources import Item

_OF_THE_IMAGE = (InvalidInput, TooLarge)


class There:
    """A service, one replica or many."""

    def __init__(self, client: Client, *, size: str | None = None, exif: bool = True, alpha: str = "white") -> None:
        self._client, self._size, self._exif, self._alpha = client, size, exif, alpha

    def encoded(self, items: Iterable[Item]) -> Iterator[Result]:
        """What becomes of each of `items`, in their order.

        Raises `DeviceLost` if the service refuses or is gone for longer than the client waits for it.
        """
        pairs = ((sent, sent) for sent in map(_Sent, items))
        for sent, codes in self._client.encode_each(pairs, size=self._size, exif=self._exif, alpha=self._alpha):
            of_the_image = isinstance(codes, _OF_THE_IMAGE) or getattr(codes, "code", "") == "internal"
            if not isinstance(codes, Codes) and not of_the_image:
                raise DeviceLost(f"the service: {codes}") from codes
            yield Result(sent.item, codes, sent.fields)


class _Sent:
    """An item on its way, and its fields once they are read."""

    def __init__(self, item: Item) -> None:
        self.item, self.fields = item, dict[str, Any]()
        self.nbytes = item.held

    def __call__(self) -> bytes:
        """The image file, on a thread of the client's."""
        data = self.item.content()
        fields: Mapping[str, Any] = read_fields(self.item.fields)
        self.fields = dict(fields)
        return data
