"""The GPU steps of the load test, one command: see README.md beside this file.

python -m loadtest.gpu                      # all steps, on the first CUDA device
python -m loadtest.gpu --steps A-C          # some of them: each run stays below ten minutes
python -m loadtest.gpu --tiny --device cpu  # the same code in seconds, with sizes that mean nothing
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import traceback
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "models"), str(ROOT / "service")]

from loadtest.gpu.record import Record, cut_off, machine, slug  # noqa: E402
from loadtest.gpu.steps import Step, named  # noqa: E402

_GONE_S = 20.0


def main() -> int:
    """Run the steps asked for, each in a process of its own; 0 if each ended by itself."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.gpu", description="GPU steps of the load test")
    parser.add_argument("--steps", default="A-I", metavar="A-I", help="letters and ranges, such as A-C,F")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--tiny", action="store_true", help="sizes for a test of this program itself")
    parser.add_argument("--limit-s", type=float, metavar="S", help="seconds a step may take; default: its own limit")
    parser.add_argument("--out", type=Path, default=ROOT / "loadtest" / "results", metavar="DIR")
    args = parser.parse_args()
    try:
        steps = named(args.steps)
    except ValueError as error:
        parser.error(str(error))
    if args.device == "cpu" and not args.tiny:
        parser.error("on a CPU only --tiny ends in reasonable time")
    failed = 0
    for step in steps:
        for variant in (0,) if args.tiny else range(len(step.environments)):
            failed += not _run(step, variant, args)
    return 1 if failed else 0


def _run(step: Step, variant: int, args: argparse.Namespace) -> bool:
    """One step in a process of its own, so that it can be ended and leaves no memory and no setting behind."""
    limit_s, begun = args.limit_s or step.limit_s, time.monotonic()
    context = multiprocessing.get_context("fork")  # torch is loaded once; nothing has used a device yet
    hears, says = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(step, variant, args, limit_s, says))
    child.start()
    says.close()
    child.join(limit_s)
    late = child.is_alive()
    if late:
        child.kill()
        child.join(_GONE_S)  # one that waits in a driver may never go: the next step is not kept waiting for it
    told = f"ended after {limit_s:g} s, what it had measured is kept" if late else f"ended with {child.exitcode}"
    heard = _all_of(hears)
    if child.exitcode != 0 and heard:
        cut_off(Path(heard[0]), told)
    told = heard[-1] if child.exitcode == 0 else told
    print(f"{step.letter} {step.name}: {told} in {time.monotonic() - begun:.1f} s")
    sys.stdout.flush()
    return child.exitcode == 0


def _all_of(hears: Connection) -> list[str]:
    """What a process said before it ended: where its record is, and how that ended."""
    heard = list[str]()
    try:
        while hears.poll():
            heard.append(hears.recv())
    except EOFError:
        pass
    return heard


def _child(step: Step, variant: int, args: argparse.Namespace, limit_s: float, says: Connection) -> None:
    os.environ.update(step.environments[variant])  # read when CUDA starts, so before anything touches it
    import torch

    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("torch finds no CUDA device here; --tiny --device cpu runs the steps on sizes that mean nothing")
        os._exit(2)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # streams and events are of the current one
    if args.tiny:
        torch.set_num_threads(1)
    facts = machine(device)
    folder = args.out / (slug(str(facts["device"])) + ("-tiny" if args.tiny else ""))
    name = f"{step.letter}_{step.name}" + (f"_{variant}" if variant else "")
    record = Record(
        folder / f"{name}.json", step=step.letter, question=step.question, settles=step.settles, machine=facts,
        environment=step.environments[variant], tiny=args.tiny, limit_s=limit_s,
    )  # fmt: skip
    says.send(str(record.path))
    try:
        import_module(f"loadtest.gpu.{step.module}").run(record, device, args.tiny)
    except ImportError as error:
        record.end("skipped", f"this step lacks {error.name or error}")
        print(f"{step.letter}: skipped, it lacks {error.name or error}")
    except Exception as error:  # noqa: BLE001  # whatever it is, it is written down and the next step runs
        traceback.print_exc()
        record.end("failed", f"{type(error).__name__}: {error}")
        sys.stdout.flush()
        os._exit(1)
    else:
        record.end("done")
    says.send(record.summary()["status"])
    print(json.dumps(record.summary()))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
