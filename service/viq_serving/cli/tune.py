"""`viq tune`: measures this machine and says how to set the service."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from viq.errors import InvalidInput, ViQError
from viq_serving.cli import options
from viq_serving.cli.bench_options import counts, fraction, positive, seconds
from viq_serving.cli.failures import DONE, Unusable, UsageError, require
from viq_serving.cli.options import weights_root
from viq_serving.cli.outputs import check_output, unfinished
from viq_serving.cli.progress import Progress

if TYPE_CHECKING:
    from viq.model import ViQ
    from viq_serving.tune.advice import Advice
    from viq_serving.tune.measurement import Measurement

HELP = "measure this machine with a mix of sizes, and say which batch budget, limits and replicas to set"

T = TypeVar("T")

_CPU_BUDGETS, _CUDA_BUDGETS = (256, 512, 1024, 2048, 4096), (2048, 4096, 8192, 16_384, 32_768)
_LOADS = (0.5, 0.9)
_PROCESS_BYTES = 400 * 2**20  # of a process with torch, besides its weights
_EPILOG = """
The engine of the service is measured in this process, image files and all, without HTTP or gRPC: callers that wait
for their answers under each batch budget in turn, then with more replicas, also in processes of their own, then
requests at random times at 50 % and 90 % of what that achieved. Nothing else should run meanwhile.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.epilog, parser.formatter_class = _EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--mix", default="photos", help="sizes of images, as those of viq bench; default: photos")
    parser.add_argument("--scale", type=seconds, default=1.0, metavar="F", help="times all sides; default: 1")
    parser.add_argument("--pictures", type=positive, default=32, metavar="N", help="different ones; default: 32")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of pictures and arrivals; default: 0")
    parser.add_argument("--budgets", type=counts, metavar="N,…", help="patches a batch to try; default: by the device")
    parser.add_argument("--replicas", type=counts, metavar="N,…", help="to try; default: 1,2 on a CPU, else 1")
    parser.add_argument(
        "--replica-processes",
        action=argparse.BooleanOptionalAction,
        help="try them as processes of their own, too; default: on a CPU with memory for their weights",
    )
    parser.add_argument("--loads", type=fraction, default=_LOADS, metavar="P%,…", help="default: 50%%,90%%")
    parser.add_argument("--in-flight", type=positive, default=16, metavar="N", help="callers that wait; default: 16")
    parser.add_argument("--duration", type=seconds, default=8.0, metavar="S", help="of each run; default: 8")
    parser.add_argument("--warm-up", type=seconds, default=2.0, metavar="S", help="before each run; default: 2")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="of the choices; default: 3")
    parser.add_argument("--quick", action="store_true", help="one short round of three budgets: seconds, and rough")
    parser.add_argument("--form", choices=("text", "env", "configmap"), default="text", help="default: text")
    parser.add_argument("--json", action="store_true", help="print all that was measured as JSON")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="where the same goes, too")
    options.add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit code."""
    if args.server is not None:
        raise UsageError("--server: tune measures this machine; use viq bench for a server")
    if args.output is not None:
        check_output(args.output)
    require("torch", "prometheus_client")
    from viq_serving.heap import keep_freed_memory
    from viq_serving.openmp import spin_briefly

    spin_briefly()
    keep_freed_memory()
    try:
        advice = _advised(args)
    except InvalidInput as error:
        raise UsageError(str(error)) from None
    except ViQError as error:
        raise Unusable(str(error)) from None
    from viq_serving.tune.forms import written

    text = json.dumps(advice.to_dict(), indent=1) + "\n" if args.json else written(advice, args.form)
    print(text, end="")
    if args.output is not None:
        written_to = unfinished(args.output)
        written_to.write_text(text, encoding="utf-8")
        written_to.replace(args.output)  # a service that starts meanwhile reads the old settings or the new ones
    return DONE


def _advised(args: argparse.Namespace) -> Advice:
    import torch

    from viq_serving.bench.load import Span
    from viq_serving.bench.mixes import mix_of
    from viq_serving.bench.pictures import pictures_of
    from viq_serving.bench.result import machine
    from viq_serving.bench.session import mix_row
    from viq_serving.cli.backends import load
    from viq_serving.settings import TENSORRT_PATCHES
    from viq_serving.tune.advice import Advice
    from viq_serving.tune.measurement import Measurement

    if args.quick:
        args.rounds, args.duration, args.warm_up = 1, min(args.duration, 0.5), min(args.warm_up, 0.1)
    mix = mix_of(args.mix).scaled(args.scale)
    model = load(args, ("encoder", "embedder", "decoder"))
    model.script_small_packs()
    budgets = args.budgets or (_CPU_BUDGETS if model.device.startswith("cpu") else _CUDA_BUDGETS)
    if args.head == "tensorrt":
        budgets = [budget for budget in budgets if budget <= TENSORRT_PATCHES]
    if args.quick and args.budgets is None:
        budgets = budgets[1:4]
    replicas = args.replicas or ((1, 2) if model.device.startswith("cpu") and torch.get_num_threads() > 1 else (1,))
    processes = replicas if _tries_processes(args, model, max(replicas)) else ()
    replicas = replicas if tuple(replicas) != (1,) or processes else ()  # budgets are tried with one
    steps = args.rounds * (len(budgets) + len(replicas) + len(processes)) + len(args.loads)
    with Progress("drawing pictures", args.pictures) as progress:
        files = pictures_of(mix, args.pictures, args.seed, advance=progress.advance)
    described = {"size": model.size, "fingerprint": model.fingerprint, "device": model.device, "dtype": model.dtype}
    described["head"] = model.head
    described_mix = {**mix_row(mix, files, args.seed), "scale": args.scale}
    advice = Advice(described_mix, described, machine(), _asked(args), args.quick)
    span = Span(args.warm_up, args.duration)
    asked = {"root": weights_root(args), "size": args.size, "dtype": args.dtype or "auto"}
    asked |= {"head": args.head or "eager", "head_file": [str(one) for one in args.head_file or ()]}
    measurement = Measurement(model, files, span, args.seed, torch.get_num_threads(), asked)
    with Progress("measuring", steps) as progress:
        _choose(args, advice, measurement, budgets, replicas, processes, progress)
    return advice


def _asked(args: argparse.Namespace) -> dict[str, str]:
    """Settings of the service for what was asked of the model, but for places on this machine."""
    given = {"VIQ_SIZE": args.size, "VIQ_DTYPE": args.dtype, "VIQ_HEAD": args.head}
    return {name: value for name, value in given.items() if value}


def _tries_processes(args: argparse.Namespace, model: ViQ, count: int) -> bool:
    """Whether replicas are tried as processes; raises `UsageError` where they are asked for and cannot be."""
    on_cpu = model.device.startswith("cpu")
    if args.replica_processes and not on_cpu:
        raise UsageError(f"--replica-processes: they are for a CPU, the device is {model.device}")
    if args.replica_processes is not None:
        return bool(args.replica_processes)
    from viq_serving.engine.memory import available_bytes

    needed = count * (model.weight_bytes + _PROCESS_BYTES)
    return on_cpu and needed <= available_bytes() / 2


def _in_turn(tried: Sequence[T], turn: int) -> Sequence[T]:
    """There and back: what a machine that slows down takes from the last, it takes from the first in the next round."""
    return tried[::-1] if turn % 2 else tried


def _choose(
    args: argparse.Namespace,
    advice: Advice,
    measurement: Measurement,
    budgets: Sequence[int],
    replicas: Sequence[int],
    processes: Sequence[int],
    progress: Progress,
) -> None:
    """Budgets in turn, then replicas, threads and processes, then loads of what was chosen."""
    from viq_serving.bench.arrivals import Closed, Poisson
    from viq_serving.tune.measurement import Setting, TuningFailed

    callers = Closed(args.in_flight)
    for turn in range(args.rounds):
        for budget in _in_turn(budgets, turn):
            advice.budgets.setdefault(budget, []).append(measurement.run(Setting(budget), callers))
            progress.advance()
    advice.choose_budget()
    budget = advice.setting.batch_patches
    ways = [Setting(budget, count) for count in replicas] + [Setting(budget, count, True) for count in processes]
    for turn in range(args.rounds):
        for way in _in_turn(ways, turn):
            if way not in ways:
                continue
            try:
                figures = measurement.run(way, callers)
            except TuningFailed as error:
                if args.replica_processes or not way.processes:
                    raise
                ways = [one for one in ways if not one.processes]
                advice.processes.clear()
                print(f"viq tune: goes on without processes: {error}", file=sys.stderr)
            else:
                tried = advice.processes if way.processes else advice.replicas
                tried.setdefault(way.replicas, []).append(figures)
                progress.advance()
    if advice.replicas:
        advice.choose_replicas()
    for share in args.loads:
        advice.loads[share] = measurement.run(advice.setting, Poisson(share * advice.capacity))
        progress.advance()
