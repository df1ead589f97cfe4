"""All runs of one command: every door under every load, taking turns, with every mix."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from viq.codes import Codes
from viq.errors import InvalidInput
from viq_serving.bench.arrivals import Arrivals, Closed, Poisson
from viq_serving.bench.doors.choice import NEEDS_URL
from viq_serving.bench.doors.door import Method, Target
from viq_serving.bench.doors.payload import Payload
from viq_serving.bench.figures import figures_of
from viq_serving.bench.load import Span
from viq_serving.bench.mixes import Mix
from viq_serving.bench.part import Job
from viq_serving.bench.pictures import Content, FileFormat, PictureFile, digest, pictures_of
from viq_serving.bench.processes import run
from viq_serving.bench.watch import Watch

MOST_REQUESTS, MOST_PICTURES = 5_000_000, 100_000
"""Of one run, and of one mix: what of them is kept in memory."""

CodesOf = Callable[[Sequence[bytes]], list[Codes]]


@dataclass(frozen=True)
class Loads:
    """Callers that wait, rates whatever happens, and rates as shares of what the first such callers achieve."""

    in_flight: tuple[int, ...] = (16,)
    rates: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not (self.rates or self.in_flight):
            raise InvalidInput("there is no load: neither requests in flight nor rates are given")
        if self.shares and not self.in_flight:
            raise InvalidInput("rates in per cent are of what requests in flight achieve, and none are given")


@dataclass(frozen=True)
class Session:
    """What is measured. `codes_of` encodes the pictures for methods that take codes.

    Pictures follow from `seed`; their order and arrivals, other ones in each round, from `arrival_seed`.
    """

    doors: tuple[str, ...]
    method: Method
    target: Target
    loads: Loads
    span: Span
    seed: int
    arrival_seed: int
    pictures: int
    file_format: FileFormat = "jpeg"
    content: Content | None = None
    processes: int = 1
    rounds: int = 1
    check_all: bool = False
    server_pid: int | None = None
    codes_of: CodesOf | None = None

    def __post_init__(self) -> None:
        seconds = self.span.warm_s + (self.span.seconds or 0.0)
        most = max([self.span.requests or 0, *self.loads.in_flight, *(rate * seconds for rate in self.loads.rates)])
        _check_count(most)
        if self.pictures > MOST_PICTURES:
            raise InvalidInput(f"{self.pictures} pictures, the limit is {MOST_PICTURES}")

    def steps(self, mixes: int) -> int:
        """How many runs there are with so many mixes."""
        loads = len(self.loads.in_flight) + len(self.loads.rates) + len(self.loads.shares)
        return mixes * self.rounds * loads * len(self.doors)

    def payload(self, mix: Mix) -> Payload:
        """What requests of `mix` carry."""
        files = pictures_of(mix, self.pictures, self.seed, self.file_format, self.content)
        codes = self.codes_of([one.data for one in files]) if self.codes_of and self.method != "encode" else []
        return Payload(files, self.file_format, codes)

    def runs(self, mix: Mix, payload: Payload, size: str | None = None) -> Iterator[dict[str, Any]]:
        """The result of each run, as soon as it is there. Doors take turns under each load."""
        for round_ in range(self.rounds):
            capacity: dict[str, float] = {}
            for label, callers in self._closed():
                for door in self.doors:
                    row = self._run(door, label, callers, payload, size, round_)
                    capacity.setdefault(door, row["achieved"]["images_per_s"])
                    yield row
                    if self.loads.shares and row["answered"] and not capacity[door]:
                        raise InvalidInput(
                            f"door {door}: no answer came in time for a rate to be a share of: longer runs"
                        )
            for rate in self.loads.rates:
                for door in self.doors:
                    yield self._run(door, f"{rate:g}", Poisson(rate), payload, size, round_)
            for share in self.loads.shares:
                for door in self.doors:
                    if capacity[door] <= 0:  # its closed run says that nothing was answered, and why
                        continue
                    arrivals = Poisson(share * capacity[door])
                    _check_count(arrivals.rate * (self.span.warm_s + (self.span.seconds or 0.0)))
                    yield self._run(door, f"{100 * share:g}%", arrivals, payload, size, round_)

    def _closed(self) -> Iterator[tuple[str, Closed]]:
        for number in self.loads.in_flight:
            yield f"{number} in flight", Closed(number)

    def _run(
        self, door: str, label: str, arrivals: Arrivals, payload: Payload, size: str | None, round_: int
    ) -> dict[str, Any]:
        span, closed = self.span, isinstance(arrivals, Closed)
        seed = self.arrival_seed + round_
        job = Job(door, self.method, self.target, arrivals, span, seed, check_all=self.check_all)
        watch = None if self.server_pid is None else Watch(self.server_pid)
        with watch or nullcontext():
            loads, seen = run(job, payload, self.processes)
        row: dict[str, Any] = {
            "door": door,
            "method": self.method,
            "load": label,
            "loop": "closed" if closed else "open",
            "in_flight": arrivals.in_flight if isinstance(arrivals, Closed) else None,
            "rate": float(f"{arrivals.rate:.6g}") if isinstance(arrivals, Poisson) else None,
            "size": size,
            "round": round_,
            "arrival_seed": seed,
            "warm_up_s": span.warm_s,
            **figures_of(
                loads,
                payload.files,
                closed=closed,
                counted=span.seconds is None,
                connections=self.target.connections * self.processes if door in NEEDS_URL else None,
            ),
        }
        if self.method == "encode":
            row["codes"] = seen.summary()
        if watch is not None:
            row["server"] = {
                "cpu_seconds": round(watch.cpu_seconds, 2),
                "peak_memory_bytes": watch.peak_memory_bytes,
            }
        return row


def _check_count(requests: float) -> None:
    if requests > MOST_REQUESTS:
        raise InvalidInput(f"{requests:.0f} requests in one run, the limit is {MOST_REQUESTS}")


def described(mix: Mix, each: Sequence[dict[str, Any]], session: Session, scale: float) -> dict[str, Any]:
    """What was sent, for the result. `each` has a row for each part of the mix that was sent by itself, else one."""
    told = {"scale": scale, "format": session.file_format}
    if len(each) == 1:
        return {**each[0], "name": mix.name, **told}
    whole = hashlib.sha256("".join(row["digest"] for row in each).encode()).hexdigest()
    shared = {"name": mix.name, "pictures": session.pictures, "seed": session.seed, "digest": whole}
    return {**shared, **told, "each": list(each)}


def mix_row(mix: Mix, files: Sequence[PictureFile], seed: int) -> dict[str, Any]:
    """What pictures of a mix were like; `digest` tells whether two runs had the same files."""
    sizes = sorted({(one.width, one.height) for one in files}, key=lambda size: size[0] * size[1])
    return {
        "name": mix.name,
        "pictures": len(files),
        "seed": seed,
        "sizes": len(sizes),
        "smallest": "{}x{}".format(*sizes[0]),
        "largest": "{}x{}".format(*sizes[-1]),
        "mean_patches": round(sum(one.patches for one in files) / len(files), 1),
        "mean_pixels": round(sum(one.pixels for one in files) / len(files)),
        "mean_bytes": round(sum(len(one.data) for one in files) / len(files)),
        "digest": digest(files),
    }
