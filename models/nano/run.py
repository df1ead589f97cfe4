"""One training run: its options, its state on disk, one step of it.

Equal options give equal steps: a step's crops come from its number, so a run that is resumed goes on as if nothing had
happened. With a time budget the learning rate follows the time spent, which is part of the state.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import cos, pi
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from nano.crops import Crops
from nano.initial import initialise
from nano.losses import reconstruction
from nano.network import Network, Sizes, groups, proximal, quantised, trained_parameters
from nano.workers import Workers

_SAMPLE = 2**40  # the batch of no step, that initial values are fitted to


@dataclass(frozen=True)
class Options:
    """How to train. Exactly one of `minutes` and `steps` says when it ends."""

    minutes: float = 60.0
    steps: int = 0
    patches: int = 128
    """A process's patches in one step."""
    rate: float = 5e-4
    warm_up: float = 0.02
    """Share of the run in which the learning rate rises, here and after the quantizer is put in."""
    proximal: float = 0.05
    """Share of the run before the quantizer is put in."""
    average: float = 0.998
    """Decay of the weights' moving average, which is what is exported."""
    seed: int = 0
    width: int = 128
    depth: int = 4
    heads: int = 4
    grid: int = 32
    vae_base: int = 16

    @property
    def sizes(self) -> Sizes:
        """The network's sizes."""
        return Sizes(self.width, self.depth, self.heads, self.grid, self.vae_base)


@dataclass(frozen=True)
class Report:
    """What one step did."""

    step: int
    progress: float
    stage: str
    loss: float
    psnr: float
    rate: float
    norm: float
    seconds: float


class Run:
    """The state of a run, and one step of it."""

    def __init__(self, options: Options, crops: Crops, workers: Workers, device: torch.device) -> None:
        self.options, self._crops, self._workers, self._device = options, crops, workers, device
        self.network = Network(options.sizes)
        initialise(self.network, crops.batch((options.seed, _SAMPLE), 1024), options.seed)
        self.network.to(device)
        self._parameters = trained_parameters(self.network)
        self._optimiser = torch.optim.AdamW(groups(self.network, options.rate, 0.01), betas=(0.9, 0.98), fused=True)
        self._average = [p.detach().clone() for p in self._parameters]
        self.step, self.seconds, self._quantising_from = 0, 0.0, -1.0
        self._clock = perf_counter()

    @property
    def progress(self) -> float:
        """How much of the run is done, 0 to 1."""
        steps = self.options.steps
        return min(1.0, self.step / steps if steps else self.seconds / (60 * self.options.minutes))

    def advance(self) -> Report:
        """Take one step."""
        progress = self.progress
        stage = "proximal" if progress < self.options.proximal else "quantised"
        if stage == "quantised" and self._quantising_from < 0:
            self._quantising_from = progress
        rate = self._rate(progress)
        for group in self._optimiser.param_groups:
            group["lr"] = rate * group["share"]
        batch = self._crops.batch((self.options.seed, self.step, self._workers.rank), self.options.patches)
        batch = batch.to(self._device)
        pictures = self.network(batch.patches, batch.packing, proximal if stage == "proximal" else quantised)
        loss, psnr = reconstruction(pictures, batch.targets)
        self._optimiser.zero_grad()
        loss.backward()
        extra = torch.tensor([loss.item(), psnr.item(), self._spent() * self._workers.count])
        extra = self._workers.average(self._parameters, extra)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        if torch.isfinite(norm):
            self._optimiser.step()
        self._follow()
        self.step += 1
        self.seconds += float(extra[2])
        return Report(self.step, progress, stage, float(extra[0]), float(extra[1]), rate, float(norm), self.seconds)

    def averaged(self) -> Network:
        """A network with the moving average of the weights, on the CPU."""
        return _network(self.options, self._average)

    def save(self, path: Path) -> None:
        """Write the state so that a reader sees the old file or the new one."""
        state = {
            "options": asdict(self.options),
            "step": self.step,
            "seconds": self.seconds,
            "quantising_from": self._quantising_from,
            "network": [p.detach() for p in self._parameters],
            "average": self._average,
            "optimiser": self._optimiser.state_dict(),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a state. Raises `ValueError` if it is of another architecture."""
        state: dict[str, Any] = torch.load(path, map_location=self._device, weights_only=True)
        _give(self._parameters, state["network"], path)
        self._average = [average.clone() for average in state["average"]]
        self._optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]
        self._quantising_from = state["quantising_from"]

    def begin_from(self, path: Path) -> None:
        """Start a new run with the averaged weights of an old one, the quantizer in from the start."""
        state: dict[str, Any] = torch.load(path, map_location=self._device, weights_only=True)
        _give(self._parameters, state["average"], path)
        self._average = [average.clone() for average in state["average"]]
        self._quantising_from = 0.0

    def _spent(self) -> float:
        """Seconds since the last call, in the first process; all count its seconds, so as to agree on the end."""
        now = perf_counter()
        spent, self._clock = now - self._clock, now
        return spent if self._workers.rank == 0 else 0.0

    def _rate(self, progress: float) -> float:
        """Warm-up, then a cosine to zero; a second warm-up when the quantizer has been put in."""
        options = self.options
        warm = progress / options.warm_up
        if self._quantising_from >= 0:
            warm = min(warm, 0.2 + (progress - self._quantising_from) / options.warm_up)
        return options.rate * max(min(1.0, warm), 1e-3) * (0.5 + 0.5 * cos(pi * progress))

    @torch.no_grad()
    def _follow(self) -> None:
        share = 1 - min(self.options.average, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self._average, [p.detach() for p in self._parameters], share)


def averaged_of(path: Path) -> tuple[Network, Options, int]:
    """The network with the averaged weights of a saved state, the options it was trained with, and its steps."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    options = Options(**state["options"])
    return _network(options, state["average"]), options, state["step"]


def _network(options: Options, values: list[Tensor]) -> Network:
    network = Network(options.sizes)
    with torch.no_grad():
        for parameter, value in zip(trained_parameters(network), values, strict=True):
            parameter.copy_(value)
    return network.requires_grad_(False)


def _give(parameters: list[torch.nn.Parameter], values: list[Tensor], path: Path) -> None:
    if [p.shape for p in parameters] != [value.shape for value in values]:
        raise ValueError(f"{path}: of another architecture than the options")
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
