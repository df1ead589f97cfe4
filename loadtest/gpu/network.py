"""The networks at full size with random weights, made on the device from a seed; and the packs that are measured.

Symbols: `C` width, `N` patches of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from viq.config import variant
from viq.encoder import Encoder, EncoderShape
from viq.graphs import Pair
from viq.hardware import prepare_cuda
from viq.packing import Packing

Module = TypeVar("Module", bound=nn.Module)
SIZE = "16k"
FULL = EncoderShape(1536, 40, 16, 3, 3, 256, 128, variant(SIZE).levels)
TINY = EncoderShape(64, 1, 4, 1, 1, 16, 32, variant(SIZE).levels)

# The last layers of branches, by the end of their names, and the gain that keeps the residual stream from growing.
_GAINS = {".attn.proj": 0.5, ".mlp.fc2": 0.5, "mix.fc2": 2.0, "project_in": 0.7}


@dataclass(frozen=True)
class Pack:
    """Images that are computed together; sides in pixels. The prediction is milliseconds at 60 % of the limit."""

    name: str
    sides: tuple[int, ...]
    predicted_ms: float | None = None
    predicted_share_fa2: float | None = None
    predicted_share_cudnn: float | None = None

    def packing(self, multiple: int, dense_from: int = 0) -> Packing:
        """Where the images lie; those of at least `dense_from` patches are attended by cuDNN, if it is not 0."""
        return Packing.of([(side // 16, side // 16) for side in self.sides], multiple, dense_from)

    @property
    def patches(self) -> int:
        """Patches of all images together."""
        return sum((side // 16) ** 2 for side in self.sides)


PACKS = (
    Pack("256²", (256,), 1.7, 0.67, 0.68),
    Pack("512²", (512,), 7.2, 0.65, 0.68),
    Pack("1024²", (1024,), 36.1, 0.59, 0.70),
    Pack("1536²", (1536,), 109, 0.54, 0.71),
    Pack("2048²", (2048,), 262, 0.51, 0.72),
    Pack("11 × 256² = 2816 rows", (256,) * 11),
    Pack("33 × 256² = 8448 rows", (256,) * 33),
    Pack("32 × 256²", (256,) * 32, 53.9, 0.67, 0.68),
    Pack("8 × 512²", (512,) * 8, 57.6),
    Pack("2 × 512² + 16 × 256² + 32 × 128²", (512,) * 2 + (256,) * 16 + (128,) * 32),
    Pack("22 × 256² = 5632 rows", (256,) * 22),
    Pack("44 × 256² = 11264 rows", (256,) * 44),
    Pack("66 × 256² = 16896 rows", (256,) * 66),
    Pack("1024² + 2 × 512² + 8 × 256²", (1024, 512, 512) + (256,) * 8, 64.0, 0.62, 0.69),
    Pack("1536² + 1024² + 2 × 512² + 4 × 256²", (1536, 1024, 512, 512) + (256,) * 4, 166, 0.57, 0.70),
)
# Of these no number of rows is one that needs no rounding.
ODD_PACKS = (Pack("240²", (240,)), Pack("3 × 16²", (16,) * 3), Pack("100 × 48²", (48,) * 100),
             Pack("7 × 400² + 9 × 80²", (400,) * 7 + (80,) * 9), Pack("1040²", (1040,)))  # fmt: skip
DENSE_FROM = 2049
"""Patches of an image from which on cuDNN attends where it is asked for: above all that graphs compute."""
TINY_PACKS = (Pack("64²", (64,)), Pack("64² + 2 × 32²", (64, 32, 32)))


def encoder(device: torch.device, dtype: torch.dtype, tiny: bool, seed: int = 0) -> Encoder:
    """A random encoder. On CUDA the process is set up as the product sets it up."""
    if device.type == "cuda":
        prepare_cuda()
    with torch.device("meta"):
        made = Encoder(TINY if tiny else FULL)
    return randomised(made, device, dtype, seed)


def randomised(module: Module, device: torch.device, dtype: torch.dtype, seed: int) -> Module:
    """`module`, made on the meta device, with random values that keep activations sane."""
    draw = torch.Generator(device).manual_seed(seed)
    module.to(dtype).to_empty(device=device)
    for name, one in module.named_modules():
        for kind, parameter in one.named_parameters(recurse=False):
            with torch.no_grad():
                parameter.normal_(generator=draw)
                parameter.mul_(_deviation(name, kind, parameter))
                if isinstance(one, (nn.LayerNorm, nn.GroupNorm)) and kind == "weight":
                    parameter.add_(1.0)
                if kind == "gamma":
                    parameter.mul_(0.0).add_(1.0)
            parameter.requires_grad_(False)
    return module.eval()


def _deviation(name: str, kind: str, parameter: Tensor) -> float:
    if kind == "pos_embed":
        return 0.3
    if parameter.dim() < 2:
        return 0.05
    gain = next((gain for end, gain in _GAINS.items() if name.endswith(end)), 1.0)
    return float(gain * parameter[0].numel() ** -0.5)


def inputs(packing: Packing, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Normalised patches `(rows, 768)` in [-1, 1], in which image `i` of seed `s` is always the same."""
    rows = torch.zeros((packing.rows, 768), dtype=dtype, device=device)
    for i, (start, end) in enumerate(packing.spans):
        rows[start:end] = image(end - start, device, dtype, seed + i)
    return rows


def image(patches: int, device: torch.device, dtype: torch.dtype, seed: int) -> Tensor:
    """Patches of one image, `(N, 768)`."""
    draw = torch.Generator(device).manual_seed(seed)
    return (torch.rand((patches, 768), generator=draw, device=device) * 2 - 1).to(dtype)


def flop(network: Encoder, packing: Packing) -> float:
    """Floating-point operations of the encoder on the images of a pack, as multiply and add."""
    total = 0.0
    for name, one in network.named_modules():
        fourfold = 4 if name.startswith(("mix", "headwise", "project_in")) else 1
        if isinstance(one, nn.Linear):
            total += 2.0 * packing.patches * fourfold * one.weight.numel()
        elif name.endswith(".attn"):
            squares = sum((end - start) ** 2 for start, end in packing.spans)
            width = one.proj.weight.shape[0] * (4 if name.startswith("headwise") else 1)
            total += 4.0 * squares * width
    return total


def again(run: Callable[[], Pair]) -> tuple[Callable[[], None], Pair]:
    """In place of a recorded graph where there are none: the same function on the same buffers, computed again."""
    values, codes = (one.clone() for one in run())

    def replay() -> None:
        for buffer, result in zip((values, codes), run(), strict=True):
            buffer.copy_(result)

    return replay, (values, codes)
