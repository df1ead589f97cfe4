"""The promise held at a server: the same pictures through every door, alone, several and many at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from viq.codes import Codes
from viq.errors import ViQError
from viq_serving.client.errors import UNREACHABLE
from viq_serving.verify.here import Order, passes
from viq_serving.verify.patience import patiently
from viq_serving.verify.pictures import Picture, shuffled
from viq_serving.verify.report import Check, compare

Door = Callable[[Sequence[bytes]], Sequence[Codes | ViQError]]
"""Codes of image files, an item that failed as its error; raises if all did."""


def steps(pictures: int, single: int, several: int) -> int:
    """How many pictures are encoded in all, through so many doors."""
    return pictures * (1 + 2 * single + several)


@dataclass(frozen=True)
class Room:
    """The most that one request may hold."""

    images: int
    bytes: int
    patches: int


class There:
    """The pictures as files, the doors by name, and the codes that all must give."""

    def __init__(
        self,
        pictures: Sequence[Picture],
        single: Mapping[str, Door],
        several: Mapping[str, Door],
        room: Room,
        advance: Callable[[int], None],
    ) -> None:
        """`single` doors take one file, `several` as many as there is `room` for; `advance` counts what is answered."""
        self._names, self._files = [one.name for one in pictures], [one.png() for one in pictures]
        self._patches = [one.patches for one in pictures]
        self._single, self._several, self._room, self._advance = single, several, room, advance

    def alone(self, fingerprint: str) -> list[Codes]:
        """What all must give: each picture's codes through the first door, with the fingerprint that they should bear.

        Raises what the server refuses them with.
        """
        door, codes = next(iter(self._single.values())), []
        for file in self._files:
            (one,) = patiently(lambda file=file: door([file]))  # type: ignore[misc]  # mypy infers no such lambda
            if isinstance(one, ViQError):
                raise one
            codes.append(replace(one, fingerprint=fingerprint))
            self._advance(1)
        return codes

    def one_by_one(self, expected: Sequence[Codes]) -> Iterator[Check]:
        """Every door, the first one once more, one picture after another."""
        for name, door in self._single.items():
            found = [self._asked(door, [file])[0] for file in self._files]
            yield compare(f"{name}, one by one", self._names, expected, found)

    def together(self, expected: Sequence[Codes]) -> Iterator[Check]:
        """Every door that takes several, in the orders of `passes`, one order each door in turn."""
        orders = list(passes(len(self._files)).items())
        for index, (name, door) in enumerate(self._several.items()):
            order_name, order = orders[index % len(orders)]
            found: dict[int, Codes | ViQError] = {}
            for group in self._fitting(order):
                found.update(zip(group, self._asked(door, [self._files[i] for i in group]), strict=True))
            yield self._check(f"{name}, {order_name}", expected, found)

    def at_once(self, expected: Sequence[Codes], clients: int) -> Iterator[Check]:
        """Every picture through every door, by `clients` callers at a time, so that they share batches."""
        work = [(name, index) for name in self._single for index in range(len(self._files))]
        asked = [work[n] for n in shuffled(len(work), 3)]
        with ThreadPoolExecutor(clients) as pool:
            answers = list(pool.map(lambda one: self._asked(self._single[one[0]], [self._files[one[1]]])[0], asked))
        by_door: dict[str, dict[int, Codes | ViQError]] = {name: {} for name in self._single}
        for (name, index), answer in zip(asked, answers, strict=True):
            by_door[name][index] = answer
        for name, found in by_door.items():
            yield self._check(f"{name}, {clients} callers at once", expected, found)

    def _fitting(self, order: Order) -> Iterator[Sequence[int]]:
        """The groups of `order`, cut where one request has no room for them."""
        for whole in order:
            group, held, patches = list[int](), 0, 0
            for index in whole:
                size, cost = len(self._files[index]), self._patches[index]
                full = len(group) == self._room.images or held + size > self._room.bytes
                if group and (full or patches + cost > self._room.patches):
                    yield group
                    group, held, patches = [], 0, 0
                group.append(index)
                held, patches = held + size, patches + cost
            yield group

    def _check(self, name: str, expected: Sequence[Codes], found: Mapping[int, Codes | ViQError]) -> Check:
        return compare(name, self._names, expected, [found[index] for index in range(len(self._files))])

    def _asked(self, door: Door, files: Sequence[bytes]) -> Sequence[Codes | ViQError]:
        """What `door` answers; what it refuses is every file's answer, but a server that is gone ends it all."""
        try:
            answers = patiently(lambda: door(files))
        except ViQError as error:
            if error.code == UNREACHABLE:
                raise
            answers = [error.bare()] * len(files)
        except (KeyError, ValueError, TypeError) as error:
            answers = [ViQError(f"the reply cannot be read: {error!r}")] * len(files)
        self._advance(len(files))
        return answers
