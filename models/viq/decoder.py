"""Codes to pictures: the embedder's features, a few blocks, then the VAE decoder.

Symbols: `rows` of the packed sequence, `C` width, `(h, w)` patch grid, `B` pictures of one size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq.embedder import Embedder
from viq.encoder import count
from viq.layers import BLOCK_EPS, Block, Mlp
from viq.packing import Packing
from viq.vae import LATENT_CHANNELS, VaeDecoder

_NORM_GROUPS = 32


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder, all but `heads` read off its tensors."""

    width: int
    heads: int
    blocks: int
    vae_base: int


class LatentHead(nn.Module):
    """Map of features `(B, C, h, w)` to latent `(B, 16, 2h, 2w)`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_NORM_GROUPS, width, eps=1e-6)
        self.conv = nn.Conv2d(width, 4 * LATENT_CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """GroupNorm of each picture by itself, SiLU, convolution, pixel-shuffle by 2."""
        return F.pixel_shuffle(self.conv(F.silu(self.norm(x))), 2)


class Decoder(nn.Module):
    """The layers behind the embedder, which is passed in and held once for both uses."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        width = shape.width
        self.mlp = Mlp(width, width, width)
        self.norm = nn.LayerNorm(width, BLOCK_EPS)
        self.blocks = nn.ModuleList(Block(width, shape.heads) for _ in range(shape.blocks))
        self.latent_head = LatentHead(width)
        self.vae = VaeDecoder(shape.vae_base)

    def forward(self, embedder: Embedder, codes: Tensor, packing: Packing) -> list[Tensor]:
        """Checked codes, int64 `(rows, 4)`, to one image `(3, 16h, 16w)` in [-1, 1] each."""
        latents = self.latents(embedder.features(codes), packing)
        images: list[Tensor] = [torch.empty(0)] * len(latents)
        for members in _same_sized(latents):
            for i, image in zip(members, self.vae(torch.stack([latents[i] for i in members])), strict=True):
                images[i] = image
        return images

    def latents(self, features: Tensor, packing: Packing) -> list[Tensor]:
        """Features `(rows, C)` to one latent `(16, 2h, 2w)` each."""
        x = self.norm(self.mlp(features))
        for block in self.blocks:
            x = block(x, packing)
        # Kept apart from the sequence so that its kernels may compute in a wider dtype.
        x = x.to(self.latent_head.conv.weight.dtype)
        maps = (part.view(1, h, w, -1).permute(0, 3, 1, 2) for part, (h, w) in _parts(x, packing))
        return [self.latent_head(m)[0] for m in maps]


def to_bytes(image: Tensor) -> Tensor:
    """Image `(3, H, W)` in [-1, 1] to uint8 `(H, W, 3)`, truncated as the released code does."""
    scaled = (image.float() * 0.5 + 0.5).clamp_(0, 1) * 255
    return scaled.to(torch.uint8).permute(1, 2, 0).contiguous()


def decoder_shape(shapes: dict[str, tuple[int, ...]], heads: int) -> DecoderShape:
    """The shape that a decoder's tensors imply, by this module's parameter names; may raise `KeyError`."""
    return DecoderShape(shapes["norm.weight"][0], heads, count(shapes, "blocks"), shapes["vae.conv_out.weight"][1])


_MAX_PIXELS = 2**20  # of one VAE call: at the released width its maps then stay under 2 GB in float32


def _same_sized(latents: list[Tensor]) -> list[list[int]]:
    """Indices of latents to decode together: equal sizes, at most `_MAX_PIXELS` a group unless alone."""
    groups: dict[torch.Size, list[list[int]]] = {}
    for i, latent in enumerate(latents):
        at_most = max(1, _MAX_PIXELS // (64 * latent.shape[1] * latent.shape[2]))
        runs = groups.setdefault(latent.shape, [[]])
        if len(runs[-1]) >= at_most:
            runs.append([])
        runs[-1].append(i)
    return [members for runs in groups.values() for members in runs]


def _parts(x: Tensor, packing: Packing) -> list[tuple[Tensor, tuple[int, int]]]:
    return list(zip(packing.split(x), packing.grids, strict=True))
