"""The network as it is trained: the same modules as at inference, with one of two bottlenecks between them.

Symbols: `rows` of the packed sequence, `d` FSQ dimensions, `C` width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nano.trained_norm import use_trained_norms
from viq.config import variant
from viq.decoder import Decoder, DecoderShape
from viq.embedder import Embedder, EmbedderShape
from viq.encoder import Encoder, EncoderShape
from viq.fsq import bound, codebook
from viq.packing import Packing

Bottleneck = Callable[[Tensor], Tensor]
LEVELS = variant("nano").levels
_FULL_RATE_INPUTS = 64


@dataclass(frozen=True)
class Sizes:
    """What may be chosen; the rest is the released architecture."""

    width: int = 128
    depth: int = 4
    heads: int = 4
    grid: int = 32
    vae_base: int = 16


class Network(nn.Module):
    """Encoder, embedder and decoder, on the CPU and without values until `initialise` or a checkpoint gives them."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, heads = sizes.width, sizes.heads
        self.encoder = Encoder(EncoderShape(width, sizes.depth, heads, 3, 3, min(width, 256), sizes.grid, LEVELS))
        self.embedder = Embedder(EmbedderShape(width, variant("nano").codebook_size, len(LEVELS), 3))
        self.decoder = Decoder(DecoderShape(width, heads, 3, sizes.vae_base))
        self.embedder.codebook.data = codebook(LEVELS)  # given by the levels, never trained
        self.embedder.codebook.requires_grad_(False)
        use_trained_norms(self.decoder.vae)
        for parameter in self.decoder.vae.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def forward(self, patches: Tensor, packing: Packing, bottleneck: Bottleneck) -> list[Tensor]:
        """Normalised patches `(rows, 768)` to one picture `(3, 16h, 16w)` each, not clamped."""
        values = bottleneck(self.encoder.project(patches, packing))
        latents = self.decoder.latents(self.embedder.project(values), packing)
        return self._pictures(latents)

    def _pictures(self, latents: list[Tensor]) -> list[Tensor]:
        groups: dict[torch.Size, list[int]] = {}
        for i, latent in enumerate(latents):
            groups.setdefault(latent.shape, []).append(i)
        pictures = list(latents)
        for members in groups.values():
            made = self.decoder.vae.unclamped(torch.stack([latents[i] for i in members]))
            for i, picture in zip(members, made, strict=True):
                pictures[i] = picture
        return pictures


def proximal(z: Tensor) -> Tensor:
    """Each code's `d` values scaled into the unit ball of the L∞ norm: what stands in for the quantizer at first."""
    return z / z.abs().amax(dim=-1, keepdim=True).clamp_min(1.0)


def quantised(z: Tensor) -> Tensor:
    """The codebook values that inference would look up, with the gradient of the values before rounding."""
    bounded = bound(z, LEVELS)
    rounded = bounded + (torch.round(bounded) - bounded).detach()
    return rounded / torch.tensor([level // 2 for level in LEVELS], device=z.device)


def trained_parameters(network: Network) -> list[nn.Parameter]:
    """The parameters that training changes, in a fixed order."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def groups(network: Network, rate: float, decay: float) -> list[dict[str, Any]]:
    """Parameters for the optimiser: matrices decay, and the more inputs one has, the smaller its steps.

    A step of Adam changes every weight by about the rate, so an output by the rate times the number of inputs.
    """
    by_rate: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.dim() > 1 and "pos_embed" not in name
            share = min(1.0, _FULL_RATE_INPUTS / parameter[0].numel()) if matrix else 1.0
            by_rate.setdefault((share, decay if matrix else 0.0), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "share": share, "lr": rate * share}
        for (share, decay), parameters in by_rate.items()
    ]
