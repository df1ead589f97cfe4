"""Codes of images that come again, and one computation for images that come at the same time.

Used from the event loop alone. Who may be answered with what is decided by the scope in an entry's key: the caller's
name, or nothing where callers share.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic

from viq.codes import Codes
from viq_serving.digest import digest_of
from viq_serving.errors import DeadlineExceeded, ViQError
from viq_serving.metrics import Metrics
from viq_serving.types import ImageFile, ModelInfo, Results, Terms, Timings

ENTRY_BYTES = 640
"""What an entry takes beside its codes: its key, its objects and its place in the order, rounded up."""

_ATTEMPTS = 2  # to be answered by another request; whoever was let down so often computes by itself

Compute = Callable[[Sequence[ImageFile | ViQError], ModelInfo, Terms], Awaitable[Results[Codes]]]
Outcome = Codes | ViQError


@dataclass(eq=False)
class _Flight:
    """One image that a request computes, for itself and for others that ask for it meanwhile.

    `landed` tells what became of it; None if the request ended without knowing: cancelled, too late, refused.
    """

    terms: Terms
    images: int
    landed: asyncio.Future[Outcome | None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def serves(self, terms: Terms, images: int) -> bool:
        """Whether a request of these terms for so many images waits no longer here than it would by itself.

        Who leads must be in the same lane or a better one, ask for no more images at a time, and not wait for room
        that the other would not wait for, as is that of a key with a limit of its own.
        """
        lane = self.terms.priority == "interactive" or terms.priority == "bulk"
        limited = self.terms.caller.patches is not None and self.terms.caller.name != terms.caller.name
        room = not self.terms.patient or (terms.patient and not limited)
        return lane and self.images <= images and room

    def land(self, outcome: Outcome | None) -> None:
        """Tell those who wait, the first time."""
        if not self.landed.done():
            self.landed.set_result(outcome)


class CodesCache:
    """The codes used last, within `max_bytes` with all that holding them takes.

    With `shared`, callers of different keys are answered with one another's codes, and each can find out that
    somebody has sent an image before.
    """

    def __init__(self, max_bytes: int, metrics: Metrics, shared: bool = False) -> None:
        self._max_bytes, self._metrics, self._shared = max_bytes, metrics, shared
        self._kept: OrderedDict[bytes, Codes] = OrderedDict()
        self._flights: dict[bytes, _Flight] = {}
        self.bytes = 0
        metrics.cache_bytes.set_function(lambda: self.bytes)

    async def through(
        self, images: Sequence[ImageFile | ViQError], model: ModelInfo, terms: Terms, compute: Compute
    ) -> Results[Codes]:
        """What `compute` makes of `images`, asked only for those that are neither kept nor being computed.

        Errors are not kept. One of an image by itself answers those that wait for it, too; any other belongs to its
        request, and another that waits computes instead. Raises what `compute` raises, and `DeadlineExceeded` at the
        deadline of `terms`, whoever computes.
        """
        if terms.deadline <= monotonic():
            raise DeadlineExceeded("the deadline has passed already")
        places = await self._places(images, model, terms)
        if not places:
            return await compute(images, model, terms)
        found: dict[bytes, Outcome] = {}
        timings, attempts = Timings(), 0
        while left := [key for key in places if key not in found]:
            kept = {key: self._recalled(key) for key in left if key in self._kept}
            flights = self._serving([key for key in left if key not in kept], terms) if attempts < _ATTEMPTS else {}
            own = [key for key in left if key not in kept and key not in flights]
            made: dict[bytes, Outcome] = {}
            if own:
                results = await self._lead({key: images[places[key][0]] for key in own}, model, terms, compute)
                made, timings = dict(zip(own, results.items, strict=True)), timings + results.timings
            landed, waited_ms = await _landed(flights, terms)
            timings += Timings(queue=waited_ms)
            self._count(model, places, kept, made, landed)
            found |= {**kept, **made, **landed}
            attempts += 1
        items: dict[int, Outcome] = {place: one for place, one in enumerate(images) if isinstance(one, ViQError)}
        items |= {place: found[key] for key, several in places.items() for place in several}
        return Results(model, [items[place] for place in range(len(images))], timings)

    async def _places(
        self, images: Sequence[ImageFile | ViQError], model: ModelInfo, terms: Terms
    ) -> dict[bytes, list[int]]:
        """Where each image stands, by its key; one may be there several times."""
        places: dict[bytes, list[int]] = {}
        scope = "" if self._shared else terms.caller.name
        for place, one in enumerate(images):
            if isinstance(one, ImageFile):
                about = repr((scope, model.size, model.fingerprint, one.options))
                key = hashlib.sha256(await digest_of(one.data) + about.encode()).digest()
                places.setdefault(key, []).append(place)
        return places

    def _recalled(self, key: bytes) -> Codes:
        self._kept.move_to_end(key)
        return self._kept[key]

    def _serving(self, keys: Sequence[bytes], terms: Terms) -> dict[bytes, _Flight]:
        """The computations under way that `keys` may wait for."""
        found = {key: self._flights.get(key) for key in keys}
        return {key: one for key, one in found.items() if one is not None and one.serves(terms, len(keys))}

    async def _lead(
        self, images: Mapping[bytes, ImageFile | ViQError], model: ModelInfo, terms: Terms, compute: Compute
    ) -> Results[Codes]:
        """Compute `images`, by key, so that others can wait for them."""
        flights = {key: _Flight(terms, len(images)) for key in images}
        for key, flight in flights.items():
            other = self._flights.get(key)
            if other is None or not other.serves(terms, len(images)):  # else it is the better one to wait for
                self._flights[key] = flight
        try:
            results = await compute(list(images.values()), model, terms)
            for key, outcome in zip(images, results.items, strict=True):
                if isinstance(outcome, Codes):
                    self._keep(key, outcome)
                flights[key].land(outcome)
            return results
        finally:
            for key, flight in flights.items():
                if self._flights.get(key) is flight:
                    del self._flights[key]
                flight.land(None)

    def _keep(self, key: bytes, codes: Codes) -> None:
        """Keep `codes`, and forget what was not used for longest until all fits."""
        known = self._kept.pop(key, None)
        if known is not None:
            self.bytes -= _weight(known)
        if _weight(codes) > self._max_bytes:
            return
        self._kept[key] = codes
        self.bytes += _weight(codes)
        while self.bytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.bytes -= _weight(oldest)

    def _count(
        self,
        model: ModelInfo,
        places: Mapping[bytes, Sequence[int]],
        kept: Mapping[bytes, Codes],
        made: Mapping[bytes, Outcome],
        landed: Mapping[bytes, Outcome],
    ) -> None:
        """Count every place once: kept, computed here (its first place), or answered by such a computation."""
        again = [(outcome, len(places[key]) - 1) for key, outcome in made.items()]
        again += [(outcome, len(places[key])) for key, outcome in landed.items()]
        hits = [(codes, len(places[key])) for key, codes in kept.items()]
        counts = {"hit": sum(n for _, n in hits), "miss": len(made), "shared": sum(n for _, n in again)}
        for result, count in counts.items():
            self._metrics.cached.labels(result).inc(count)
        sizes = [one.image_size for one, n in (*hits, *again) if isinstance(one, Codes) for _ in range(n)]
        asyncio.get_running_loop().call_soon(self._metrics.recalled, model.size, sizes)


async def _landed(flights: Mapping[bytes, _Flight], terms: Terms) -> tuple[dict[bytes, Outcome], float]:
    """What became of those of `flights` that anything became of, and how many milliseconds that took to hear.

    Raises `DeadlineExceeded` at the deadline of `terms`.
    """
    if not flights:
        return {}, 0.0
    begun = monotonic()
    left_s = None if math.isinf(terms.deadline) else max(0.0, terms.deadline - begun)
    _, late = await asyncio.wait({one.landed for one in flights.values()}, timeout=left_s)
    if late:
        raise DeadlineExceeded("the deadline passed before the request was answered")
    outcomes = {key: one.landed.result() for key, one in flights.items()}
    landed = {key: outcome for key, outcome in outcomes.items() if outcome is not None}
    return landed, 1000 * (monotonic() - begun)


def _weight(codes: Codes) -> int:
    return codes.array.nbytes + ENTRY_BYTES
