"""Whether anything became slower: this machine's figures against the committed ones, as ratios to a matrix product.

    python bench/regression.py --against bench/results/regression.json      fails (exit code 1) if one is worse
    python bench/regression.py --out bench/results/regression.json          takes the figures as they are

Measured in turn in each round, each beside a float32 matrix product just before it, which is the unit: what a busy or
another machine slows down, it slows down too, more or less. Both use one thread up to 256 patches, as the service does,
which then does not depend on whether a neighbour has the other core. Rows are the bare model at some sizes,
a mix of thumbnails through the engine with 8 callers (per image), and one request to an idle server by gRPC (p50).
A row is the best of all rounds over the best product: neighbours only ever add to either. It is worse if it is more
than its tolerance above the committed one, also when measured twice more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from viq_serving.heap import keep_freed_memory
from viq_serving.openmp import spin_briefly

keep_freed_memory()
spin_briefly()  # as the service does, and before torch is imported

import grpc  # noqa: E402
import torch  # noqa: E402
from full_size import machine  # noqa: E402
from serving import server  # noqa: E402

from viq import ViQ  # noqa: E402
from viq_serving.bench.arrivals import Closed  # noqa: E402
from viq_serving.bench.load import Span  # noqa: E402
from viq_serving.bench.mixes import mix_of  # noqa: E402
from viq_serving.bench.pictures import pictures_of  # noqa: E402
from viq_serving.engine.engine import CPU_BATCH  # noqa: E402
from viq_serving.images import ImageLimits, decode  # noqa: E402
from viq_serving.pb import viq_pb2 as pb  # noqa: E402
from viq_serving.pb.viq_pb2_grpc import ViQStub  # noqa: E402
from viq_serving.tune.measurement import Measurement, Setting  # noqa: E402

SIDES = (64, 256, 512)
ONE_THREAD = frozenset({"encode_64", "encode_256", "idle_grpc"})
TOLERANCE = {"engine": 0.25, "idle_grpc": 0.4}
"""Share above the committed ratio that is still taken for noise; 0.2 for the others."""

_USUAL = 0.2
_REFERENCE, _PRODUCTS, _IDLE_REQUESTS, _ENGINE_S = 1024, 8, 30, 1.5

THREADS = torch.get_num_threads()
Measure = Callable[[], float]


def reference() -> Measure:
    """Seconds of a float32 product of two matrices of 1024x1024, the best of some."""
    one, other = (torch.randn(_REFERENCE, _REFERENCE) for _ in range(2))

    def measure() -> float:
        return min(timed(lambda: torch.mm(one, other)) for _ in range(_PRODUCTS))

    return measure


@contextmanager
def measures() -> Iterator[Mapping[str, Measure]]:
    """Seconds of each operation, by its name."""
    model = ViQ.from_pretrained()
    with server() as running, grpc.insecure_channel(running.grpc) as channel:
        (small,) = pictures_of(mix_of("64x64"), 1, 0)
        stub, request = ViQStub(channel), pb.EncodeRequest(items=[pb.Item(image=small.data)])
        served = ViQ.from_pretrained()
        served.script_small_packs()
        engine = Measurement(served, pictures_of(mix_of("thumbnails"), 24, 0), Span(0.5, _ENGINE_S), 0, THREADS)

        def idle() -> float:
            return statistics.median(timed(lambda: stub.Encode(request)) for _ in range(_IDLE_REQUESTS))

        def packed() -> float:
            return 1 / float(engine.run(Setting(CPU_BATCH), Closed(8))["achieved"]["images_per_s"])

        rows: dict[str, Measure] = {f"encode_{side}": bare(model, side) for side in SIDES}
        yield {**rows, "engine": packed, "idle_grpc": idle}


def bare(model: ViQ, side: int) -> Measure:
    """Seconds of one picture's encoding by the model alone, the best of some."""
    (file,) = pictures_of(mix_of(f"{side}x{side}"), 1, 0)
    pixels, count = decode(file.data, ImageLimits()), max(3, 20 * 64 // side)
    return lambda: min(timed(lambda: model.encode_pixels([pixels])) for _ in range(count))


def timed(work: Callable[[], object]) -> float:
    begun = perf_counter()
    work()
    return perf_counter() - begun


def measured(rows: Mapping[str, Measure], unit: Measure, rounds: int) -> dict[str, dict[str, float]]:
    """Each row at best in milliseconds, and over the product at best; the first round does not count."""
    taken: dict[str, list[float]] = {name: [] for name in rows}
    products: dict[int, list[float]] = {1: [], THREADS: []}
    for turn in range(rounds + 1):
        for name, measure in rows.items():
            threads = 1 if name in ONE_THREAD else THREADS
            torch.set_num_threads(threads)
            product, seconds = unit(), measure()
            if turn:
                products[threads].append(product)
                taken[name].append(seconds)
    torch.set_num_threads(THREADS)
    return {
        name: {
            "ms": round(1000 * min(seconds), 3),
            "over_reference": round(min(seconds) / min(products[1 if name in ONE_THREAD else THREADS]), 3),
            "median_over_best": round(statistics.median(seconds) / min(seconds), 3),
        }
        for name, seconds in taken.items()
    }


def worse(name: str, found: Mapping[str, float], committed: Mapping[str, float]) -> bool:
    allowed = (1 + TOLERANCE.get(name, _USUAL)) * committed["over_reference"]
    return found["over_reference"] > allowed


def compared(
    rows: Mapping[str, Measure],
    unit: Measure,
    found: dict[str, dict[str, float]],
    committed: Mapping[str, Any],
    rounds: int,
) -> list[str]:
    """The names of rows that are worse also when measured again; prints each row."""
    failed = []
    for name in found:
        if name not in committed["rows"]:
            print(f"{name}: {found[name]['over_reference']} products, no committed figure")
            continue
        before = committed["rows"][name]
        for _ in range(2):
            if worse(name, found[name], before):
                again = measured({name: rows[name]}, unit, rounds)[name]
                found[name] = min(found[name], again, key=lambda row: row["over_reference"])
        bad = worse(name, found[name], before)
        ratio = found[name]["over_reference"] / before["over_reference"]
        tolerance = TOLERANCE.get(name, _USUAL)
        print(
            f"{name:<12} {found[name]['over_reference']:>9.3f} products, committed {before['over_reference']:>9.3f}: "
            f"{ratio:.3f} of it, allowed {1 + tolerance:.2f}{'  WORSE' if bad else ''}",
            flush=True,
        )
        failed += [name] if bad else []
    missing = [name for name in committed["rows"] if name not in found]
    return failed + [f"{name} (not measured any more)" for name in missing]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="result to compare with")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    unit = reference()
    with measures() as rows:
        found = measured(rows, unit, args.rounds)
        result = {
            "machine": machine(),
            "reference": f"float32 product of {_REFERENCE}x{_REFERENCE}",
            "reference_ms": round(1000 * unit(), 3),
            "rounds": args.rounds,
            "rows": found,
        }
        failed = list[str]()
        if args.against is not None:
            committed = json.loads(args.against.read_text())
            for what, value in result["machine"].items():
                if committed["machine"].get(what) != value:
                    print(
                        f"note: {what} is {value} here, the committed figures are of {committed['machine'].get(what)}"
                    )
            failed = compared(rows, unit, found, committed, args.rounds)
        else:
            print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    if failed:
        print(f"worse than the committed figures: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
