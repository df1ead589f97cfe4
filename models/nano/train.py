"""Trains: `python -m nano.train`. Run it again to go on where it was stopped.

Writes `state.pt` (everything to resume), `loss.jsonl` (a line every few steps, and one an evaluation) and `loss.png`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from time import perf_counter
from typing import TextIO

import torch
from torch.multiprocessing.spawn import spawn
from tqdm import tqdm

from nano.crops import Crops
from nano.plot import plot_losses
from nano.quality import held_out, psnr_of
from nano.run import Options, Run
from nano.workers import Workers

STATE, LOG, PLOT = "state.pt", "loss.jsonl", "loss.png"
_WATCHED = ("astronaut", "coffee", "perched-osprey", "document-bars", "document-letter")
_WATCHED_LONGEST = 384
_LOG_EVERY = 20


def train(rank: int, processes: int, options: Options, data: Path, out: Path, device: str, start: Path | None) -> None:
    """One process of a run, from its saved state if there is one."""
    if processes > 1:
        torch.set_num_threads(1)
        os.setsid()  # Linux shares the processor by session, and they wait for one another at every step
    workers = Workers(rank, processes, str((out / "meeting").resolve()))
    run = Run(options, Crops(data / "train"), workers, torch.device(device))
    if (out / STATE).exists():
        run.load(out / STATE)
    elif start is not None:
        run.begin_from(start)
    if rank:
        while run.progress < 1:
            run.advance()
    else:
        _watched_run(run, data, out)
    workers.close()


def _watched_run(run: Run, data: Path, out: Path, every_s: float = 180.0) -> None:
    """The first process's loop: the same steps, and a bar, a log, evaluations and saved states."""
    watched = held_out(data, _WATCHED, _WATCHED_LONGEST)
    saved = perf_counter()
    recent: list[tuple[float, float]] = []
    bar = tqdm(total=1000, unit="‰", disable=not sys.stderr.isatty())
    with (out / LOG).open("a", encoding="utf-8") as log, bar:
        while run.progress < 1:
            report = run.advance()
            recent.append((report.loss, report.psnr))
            bar.update(int(1000 * report.progress) - bar.n)
            bar.set_postfix_str(f"{report.stage} loss {report.loss:.4f} PSNR {report.psnr:.2f}")
            if report.step % _LOG_EVERY == 0:
                loss, psnr = (sum(column) / len(recent) for column in zip(*recent, strict=True))
                _write(log, {**asdict(report), "loss": loss, "psnr": psnr})  # means since the last line
                recent.clear()
            if perf_counter() - saved > every_s or run.progress >= 1:
                run.save(out / STATE)
                scores = psnr_of(run.averaged(), watched, report.stage == "quantised")
                _write(log, {"step": run.step, "seconds": run.seconds, "stage": report.stage, "held_out": scores})
                plot_losses(out / LOG, out / PLOT)
                saved = perf_counter()


def _write(log: TextIO, row: Mapping[str, object]) -> None:
    log.write(json.dumps(row) + "\n")
    log.flush()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("build/nano/data"))
    parser.add_argument("--out", type=Path, default=Path("build/nano/run"))
    parser.add_argument("--from", dest="start", type=Path, help="state of another run to start from")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, help="default: the number of CPUs, 1 on a GPU")
    for field in fields(Options):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    arguments = parser.parse_args()
    options = Options(**{field.name: getattr(arguments, field.name) for field in fields(Options)})
    processes = arguments.processes or (os.cpu_count() or 1 if arguments.device == "cpu" else 1)
    if not any((arguments.data / "train").glob("*.png")):  # said once, before there are processes
        sys.exit(f"{arguments.data / 'train'}: no prepared pictures; run the data step first (make nano-data)")
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "meeting").unlink(missing_ok=True)
    rest = (processes, options, arguments.data, arguments.out, arguments.device, arguments.start)
    if processes == 1:
        train(0, *rest)
    else:
        # A signal that ends this process at once would leave the others behind.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        spawn(train, rest, nprocs=processes, daemon=True)


if __name__ == "__main__":
    main()
