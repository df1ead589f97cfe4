"""One request's way: room, preprocessing on the pool, the engine, postprocessing on the pool; each item by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from viq.codes import Codes
from viq_serving.engine.engine import Engine
from viq_serving.engine.work import Entry, Flow, Request, cost_of
from viq_serving.errors import DeadlineExceeded, InvalidInput, NotReady, Overloaded, ViQError
from viq_serving.images import ImageLimits, decode
from viq_serving.metrics import Metrics
from viq_serving.pool import Pool
from viq_serving.products import or_error
from viq_serving.stopwatch import Stopwatch
from viq_serving.types import Features, ImageFile, Method, ModelInfo, Picture, Results, Terms

if TYPE_CHECKING:
    from viq.patches import Patches

_SMALL_PATCHES = 1024
_PATCH_BYTES, _OTHER_BYTES = 768, 2**16  # of a file: pixels as they are, and what else belongs there

_OF_ALL = (Overloaded, NotReady, DeadlineExceeded)

A = TypeVar("A")
B = TypeVar("B")
R = TypeVar("R", Codes, Features, Picture)


@dataclass
class Works:
    """What requests pass through; `trace` gives what each is known by in the traces."""

    engine: Engine
    limits: ImageLimits
    metrics: Metrics
    pool: Pool = field(default_factory=Pool)
    trace: Callable[[], object] = lambda: None


class Passage:
    """One request on its way through the works. Errors among items or patches keep their place."""

    def __init__(self, works: Works, model: ModelInfo, terms: Terms) -> None:
        self._works, self._model, self._terms = works, model, terms
        self._watch = Stopwatch()
        self._request = Request(monotonic())

    @asynccontextmanager
    async def admitted(self, work: Mapping[Method, Sequence[int | ViQError]]) -> AsyncIterator[None]:
        """Hold room for the request; `work` is what each method will be given, in patches."""
        terms = self._terms
        counts = {method: [n for n in patches if isinstance(n, int)] for method, patches in work.items()}
        costs = {
            self._flow(method): float(sum(cost_of(method, n) for n in patches))
            for method, patches in counts.items()
            if patches
        }
        most = max((sum(patches) for patches in counts.values()), default=0)
        left_s = terms.deadline - monotonic()
        async with self._works.engine.admission.admitted(most, costs, left_s, terms) as held:
            asked, trace = monotonic(), self._works.trace()
            self._request = Request(asked, terms.deadline, terms.request_id, held, terms.patient, trace)
            yield

    async def encoded(
        self, inputs: Sequence[ImageFile | Codes | ViQError], patches: Sequence[int | ViQError]
    ) -> list[Codes | ViQError]:
        """Codes of every input: image files are encoded; codes, and inputs with something wrong, are as they came."""
        images = [(i, one) for i, one in enumerate(inputs) if isinstance(one, ImageFile)]
        files, counts = [one for _, one in images], [patches[i] for i, _ in images]
        made = await self.computed("encode", files, counts, self._patches)
        codes: list[Any] = [
            wrong if isinstance(wrong, ViQError) else one for wrong, one in zip(patches, inputs, strict=True)
        ]
        for (index, _), one in zip(images, made, strict=True):
            codes[index] = one
            if isinstance(one, Codes):
                asyncio.get_running_loop().call_soon(self._works.metrics.used, self._model.size, one.array)
        return codes

    async def computed(
        self,
        method: Method,
        items: Sequence[Any],
        patches: Sequence[int | ViQError],
        prepare: Callable[[Any, Entry], object] | None = None,
    ) -> list[Any]:
        """What the engine makes of `items`, once each is prepared."""
        results: list[Any] = [n if isinstance(n, ViQError) else item for n, item in zip(patches, items, strict=True)]
        counts = {i: n for i, n in enumerate(patches) if isinstance(n, int) and not isinstance(items[i], ViQError)}
        if not counts:
            return results
        engine, flow = self._works.engine, self._flow(method)
        entries = [Entry(flow, n, self._request) for n in counts.values()]
        # To wake a second thread takes longer than to decode a small image on the device's own, while that is free.
        here = engine.idle and len(entries) == 1
        job, asked = engine.job(entries), monotonic()
        for entry, index in zip(entries, counts, strict=True):
            if prepare is None:
                entry.work = items[index]
                engine.queue(entry)
                continue
            make = partial(prepare, items[index], entry)
            if here and _small(items[index], entry.patches):
                entry.make = make
                engine.queue(entry)
            else:
                self._works.pool.submit(self._terms.priority, partial(engine.prepare, entry, make))
        answers = await engine.answers(job)
        self._watch.engine(asked, entries, answers)
        for index, answer in zip(counts, answers, strict=True):
            if isinstance(answer.result, _OF_ALL):  # of the request, whichever of its images it met
                raise answer.result
            results[index] = answer.result
        return results

    async def finished(self, work: Callable[[A], B], items: Sequence[A | ViQError]) -> list[B | ViQError]:
        """`work` on every item, on the pool; an item's own error takes its place."""
        lane, pool = self._terms.priority, self._works.pool
        with self._watch.stage("postprocess"):
            results = (pool.run(lane, partial(or_error, work, item)) for item in items)
            return [await next(results)] if len(items) == 1 else await asyncio.gather(*results)

    def results(self, method: Method, items: Sequence[R | ViQError]) -> Results[R]:
        """What the caller is told, and counted when the reply is on its way: nobody can ask for the count before."""
        timings = self._watch.timings()
        sizes = [item.image_size for item in items if not isinstance(item, ViQError)]
        count = partial(self._works.metrics.served, method, self._model.size, sizes, timings)
        asyncio.get_running_loop().call_soon(count)
        return Results(self._model, items, timings)

    def _flow(self, method: Method) -> Flow:
        return Flow(method, self._model.size, self._terms.priority)

    def _patches(self, image: ImageFile, entry: Entry) -> Patches:
        from viq.patches import Patches

        limits, options = self._works.limits, image.options
        patches = Patches.of(decode(image.data, limits, exif=options.exif, alpha=options.alpha))
        if len(patches.rows) > entry.patches:
            raise InvalidInput(f"image has {len(patches.rows)} patches, its header claims {entry.patches}")
        return patches


def _small(image: ImageFile, patches: int) -> bool:
    """Whether `image` is decoded in no time: also few pixels may stand among megabytes that take long to skip."""
    return patches <= _SMALL_PATCHES and len(image.data) <= _PATCH_BYTES * patches + _OTHER_BYTES
