"""Images to codes on this machine's devices: decoded on every core, packed by patches, in order again at the end.

What is under way is bounded by patches and bytes, so memory does not depend on how many images there are.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from viq.codes import Codes
from viq.cost import encode_cost
from viq.errors import ViQError
from viq_serving.extract.errors import DeviceLost, PlaceError
from viq_serving.extract.quality import QualityGate
from viq_serving.extract.results import Result, Unforeseen, read_fields
from viq_serving.extract.sources import Item
from viq_serving.images import ImageLimits, decode
from viq_serving.openmp import Company, computing_threads, share_threads
from viq_serving.processors import processors
from viq_serving.types import Alpha

log = logging.getLogger("viq.extract")

_BESIDE = 4  # packs at a time on a CPU, at most
CPU_PACK, CUDA_PACK = 1024, 16_384
"""Cost of a pack. On a CPU more gain nothing: activations leave the cache."""

_PACKS_AHEAD = 4  # packs' worth of patches that may wait for the device
_HELD_BYTES = 256 * 2**20  # of image files and fields read and not written yet
_WINDOW = 16_384  # items read and not written yet
_MOST_UNPREPARED = 256

Pixels = npt.NDArray[np.uint8]


class Model(Protocol):
    """What is needed of `viq.ViQ`, which tests stand in for."""

    @property
    def device(self) -> str:
        """Where it computes."""

    def launch_encode(self, images: Sequence[Any]) -> Any:
        """Hand one pack of images to the device."""

    def launch_decode(self, codes: Sequence[Codes]) -> Any:
        """Hand one pack of codes to the device; needed for a quality gate only."""


@dataclass(eq=False)
class _Slot:
    """One item on its way."""

    item: Item
    fields: Mapping[str, Any] = field(default_factory=dict)
    work: Any = None
    pixels: Pixels | None = None
    """Kept for the quality gate alone."""
    cost: int = 0
    result: Codes | ViQError | None = None


class Here:
    """Devices of this process, one model each; use it in a `with` block."""

    def __init__(
        self,
        models: Sequence[Model],
        limits: ImageLimits,
        *,
        exif: bool = True,
        alpha: Alpha = "white",
        min_psnr: float | None = None,
        pack_cost: int | None = None,
        threads: int | None = None,
    ) -> None:
        """With `min_psnr`, in dB, pictures whose codes give back less are `LowQuality`; models then need a decoder."""
        cuda = models[0].device.startswith("cuda")
        self._pack = pack_cost or (CUDA_PACK if cuda else CPU_PACK)
        self._pixels: Callable[[bytes], Pixels] = partial(decode, limits=limits, exif=exif, alpha=alpha)
        self._gate = None if min_psnr is None else QualityGate(min_psnr)
        # On CUDA the next pack is handed over while one is computed; on a CPU a launch returns when all is done.
        self._ahead = 1 if cuda else 0
        self._threads = threads or processors()
        # Operations are small: on a CPU packs beside one another are done sooner than one after another.
        self._computes_with, self._company = computing_threads(), Company()
        beside = 1 if cuda else min(_BESIDE, self._computes_with)
        self._packs = beside * len(models)
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="viq-images")
        self._changed = threading.Condition()
        self._ready: deque[_Slot] = deque()
        self._waiting_cost = self._unprepared = self._held = self._computing = 0
        self._mean_cost = 64.0
        self._closing = False
        self._lost: BaseException | None = None
        self._devices = [
            threading.Thread(target=self._live, args=(model,), name=f"viq-{model.device}", daemon=True)
            for model in models
            for _ in range(beside)
        ]

    def __enter__(self) -> Here:
        for device in self._devices:
            device.start()
        return self

    def __exit__(self, *wrong: object) -> None:
        with self._changed:
            self._closing = True
            self._ready.clear()
            self._changed.notify_all()
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._lost is None:
            for device in self._devices:
                device.join()

    def encoded(self, items: Iterable[Item]) -> Iterator[Result]:
        """What becomes of each of `items`, in their order; they are read as there is room.

        Raises `DeviceLost` if a device can no longer compute, `PlaceError` if what images are read from can no longer
        be read, and whatever reading `items` raises.
        """
        window: deque[_Slot] = deque()
        for item in items:
            slot = _Slot(item)
            window.append(slot)
            with self._changed:
                self._unprepared += 1
                self._held += item.held
            self._pool.submit(self._prepare, slot)
            while window and (self._full(window) or window[0].result is not None):
                yield self._next(window)
        while window:
            yield self._next(window)

    def _full(self, window: deque[_Slot]) -> bool:
        """Wait until there is room, or the first of `window` is done; whether there is still none."""

        def room() -> bool:
            unprepared = max(2 * self._threads, min(_MOST_UNPREPARED, 2 * self._pack / self._mean_cost))
            waits = self._waiting_cost < _PACKS_AHEAD * self._pack * self._packs
            return self._unprepared < unprepared and waits and self._held < _HELD_BYTES and len(window) < _WINDOW

        with self._changed:
            self._changed.wait_for(lambda: room() or window[0].result is not None or self._lost is not None)
            return not room()

    def _next(self, window: deque[_Slot]) -> Result:
        slot = window[0]
        with self._changed:
            self._changed.wait_for(lambda: slot.result is not None or self._lost is not None)
            if slot.result is None:
                raise DeviceLost(f"the device is lost: {self._lost}") from self._lost
            if isinstance(slot.result, PlaceError):
                raise slot.result
            window.popleft()
            self._held -= slot.item.held
        return Result(slot.item, slot.result, slot.fields)

    def _prepare(self, slot: _Slot) -> None:
        """Read and decode one image, on the pool; what is wrong with it is its result."""
        try:
            from viq.patches import Patches

            pixels = self._pixels(slot.item.content())
            slot.work, slot.pixels = Patches.of(pixels), None if self._gate is None else pixels
            slot.fields = read_fields(slot.item.fields)
            slot.cost = encode_cost(len(slot.work.rows))
        except ViQError as error:
            slot.result = error.bare()
        except Exception as error:  # whatever one file makes a decoder do, the others go on
            log.debug("%s could not be prepared", slot.item.key, exc_info=True)
            slot.result = Unforeseen(f"{type(error).__name__}: {error}")
        slot.item.content = _gone
        with self._changed:
            self._unprepared -= 1
            if slot.result is None:
                self._ready.append(slot)
                self._waiting_cost += slot.cost
                self._mean_cost += (slot.cost - self._mean_cost) / 32
            self._changed.notify_all()

    def _live(self, model: Model) -> None:
        """The life of one device's thread."""
        flights: deque[tuple[list[_Slot], Any]] = deque()
        try:
            while True:
                pack = self._taken(wait=not flights)
                if pack is None:
                    return
                if pack:
                    flights.append((pack, self._launched(model, pack)))
                if flights and (not pack or len(flights) > self._ahead):
                    self._landed(model, *flights.popleft())
        except BaseException as error:  # noqa: BLE001  # the one who waits must hear of it, whatever it is
            with self._changed:
                self._lost = self._lost or error
                self._changed.notify_all()

    def _taken(self, *, wait: bool) -> list[_Slot] | None:
        """The next pack, full unless nothing more is on its way; empty if none is due, None at the end."""

        def due() -> bool:
            return bool(self._ready) and (self._waiting_cost >= self._pack or not self._unprepared)

        with self._changed:
            if wait:
                self._changed.wait_for(lambda: due() or self._closing or self._lost is not None)
            if self._closing or self._lost is not None:
                return None
            if not due():
                return []
            pack, room = [self._ready.popleft()], self._pack
            room -= pack[0].cost
            passed: list[_Slot] = []
            while self._ready and room > 0 and len(passed) < _MOST_UNPREPARED:
                slot = self._ready.popleft()
                if slot.cost <= room:
                    pack.append(slot)
                    room -= slot.cost
                else:
                    passed.append(slot)
            self._ready.extendleft(reversed(passed))
            self._waiting_cost -= sum(slot.cost for slot in pack)
            return pack

    def _launched(self, model: Model, pack: list[_Slot]) -> Any:
        with self._changed:
            self._computing += 1
            if model.device.startswith("cpu"):
                share_threads(self._computes_with, self._company.of(self._computing, monotonic()))
        try:
            return model.launch_encode([slot.work for slot in pack])
        except Exception as error:  # noqa: BLE001  # looked at where the pack lands
            return error
        finally:
            with self._changed:
                self._company.note(self._computing, monotonic())
                self._computing -= 1

    def _landed(self, model: Model, pack: list[_Slot], launched: Any) -> None:
        """Answer a pack; if it failed, try it in halves until the images to blame are found."""
        results = self._results(model, pack, launched)
        if isinstance(results, Exception):
            self._recover(model, pack, results)
            return
        with self._changed:
            for slot, codes in zip(pack, results, strict=True):
                slot.work, slot.pixels, slot.result = None, None, codes
            self._changed.notify_all()

    def _recover(self, model: Model, pack: list[_Slot], error: Exception) -> None:
        if len(pack) > 1:
            half = len(pack) // 2
            for part in (pack[:half], pack[half:]):
                self._landed(model, part, self._launched(model, part))
            return
        from viq.patches import Patches

        launched = self._launched_grey(model, Patches.of(np.full((32, 32, 3), 128, np.uint8)))
        grey = self._results(model, [], launched)
        if isinstance(grey, Exception):
            raise grey
        (slot,) = pack
        known = isinstance(error, ViQError)
        with self._changed:
            slot.work = slot.pixels = None
            slot.result = error if known else Unforeseen(f"{type(error).__name__}: {error}")  # type: ignore[assignment]
            self._changed.notify_all()

    def _launched_grey(self, model: Model, grey: Any) -> Any:
        try:
            return model.launch_encode([grey])
        except Exception as error:  # noqa: BLE001  # the caller raises it
            return error

    def _results(self, model: Model, pack: Sequence[_Slot], launched: Any) -> Sequence[Codes | ViQError] | Exception:
        """What became of a pack, judged by the gate if there is one, or the error of all of it."""
        if isinstance(launched, Exception):
            return launched
        try:
            results: Sequence[Codes] = launched.results()
            if self._gate is None or not pack:
                return results
            pairs = zip(pack, results, strict=True)
            return [
                self._gate.judged(slot.pixels, codes, model.launch_decode([codes]).results()[0])
                for slot, codes in pairs
                if slot.pixels is not None
            ]
        except Exception as error:  # noqa: BLE001  # the caller looks at it
            return error


def _gone() -> bytes:
    raise AssertionError("an image is read once")
