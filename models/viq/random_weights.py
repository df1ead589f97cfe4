"""Random weights in the released layout, from a seed: for tests and benchmarks.

numpy's PCG64 makes the numbers, so that they are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from viq.config import CODES_PER_PATCH, PATCH, variant
from viq.fsq import codebook
from viq.vae import LATENT_CHANNELS

State = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """Sizes of a network to fill; the defaults are the released ones."""

    size: str = "16k"
    width: int = 1536
    depth: int = 40
    heads: int = 16
    headwise_width: int = 256
    grid: int = 128
    vae_base: int = 96
    head_blocks: int = 3
    headwise_blocks: int = 3


NANO = Layout(size="nano", width=128, depth=4, heads=4, headwise_width=128, vae_base=16)
"""The sizes of the packaged `nano`, but for its smaller position grid."""


class Filler:
    """Draws tensors in the order they are asked for, in `dtype`."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self._draw = np.random.Generator(np.random.PCG64(seed))
        self._dtype = dtype

    def normal(self, *shape: int, std: float) -> Tensor:
        """Normal numbers of mean 0."""
        return torch.from_numpy(self._draw.standard_normal(shape, np.float32) * np.float32(std)).to(self._dtype)

    def linear(self, name: str, out: int, inner: int, gain: float = 1.0) -> State:
        """Weight and bias of a linear layer that keeps the variance, times `gain` squared."""
        return {
            f"{name}.weight": self.normal(out, inner, std=gain * inner**-0.5),
            f"{name}.bias": self.normal(out, std=0.02),
        }

    def norm(self, name: str, width: int) -> State:
        """Gain about 1 and shift about 0."""
        return {
            f"{name}.weight": 1 + self.normal(width, std=0.05),
            f"{name}.bias": self.normal(width, std=0.05),
        }

    def mlp(self, name: str, width: int, hidden: int, out: int, gain: float = 1.0) -> State:
        """Two linear layers."""
        return {**self.linear(f"{name}.fc1", hidden, width), **self.linear(f"{name}.fc2", out, hidden, gain)}

    def block(self, name: str, width: int, gain: float = 0.5) -> State:
        """A pre-norm block whose branches add `gain` of the variance they see."""
        return {
            **self.norm(f"{name}.norm1", width),
            **self.linear(f"{name}.attn.qkv", 3 * width, width),
            **self.linear(f"{name}.attn.proj", width, width, gain),
            **self.norm(f"{name}.norm2", width),
            **self.mlp(f"{name}.mlp", width, 4 * width, width, gain),
        }

    def headwise(self, name: str, width: int, inner: int) -> State:
        """A position-aware head-wise block."""
        narrow = inner < width
        return {
            **self.norm(f"{name}.norm1", width),
            **(self.linear(f"{name}.attn.decrease_dim", inner, width) if narrow else {}),
            **(self.linear(f"{name}.attn.increase_dim", width, inner) if narrow else {}),
            **self.linear(f"{name}.attn.qkv", 3 * inner, inner),
            **self.linear(f"{name}.attn.proj", inner, inner),
            **self.norm(f"{name}.norm2", width),
            **self.mlp(f"{name}.mlp", width, 4 * width, width),
        }

    def conv(self, name: str, out: int, inner: int, *kernel: int) -> State:
        """A convolution of any number of dimensions that keeps the variance."""
        fan = inner * int(np.prod(kernel[-2:]))
        return {
            f"{name}.weight": self.normal(out, inner, *kernel, std=fan**-0.5),
            f"{name}.bias": self.normal(out, std=0.02),
        }

    def gamma(self, name: str, *shape: int) -> State:
        """Gain of a channel norm."""
        return {f"{name}.gamma": 1 + self.normal(*shape, std=0.05)}


def encoder_state(layout: Layout, seed: int = 0, dtype: torch.dtype = torch.float32) -> State:
    """The tensors of `model_viq_fsq_<size>` that codes need."""
    fill, width = Filler(seed, dtype), layout.width
    head = "fusion_block.vq_low"
    state = {
        **fill.conv("patch_embed.proj", width, 3, PATCH, PATCH),
        "pos_embed": fill.normal(1, layout.grid**2, width, std=0.3),
    }
    for i in range(layout.depth):
        state |= fill.block(f"blocks.{i}", width)
    for i in range(layout.head_blocks):
        state |= fill.block(f"{head}_preprocess_layers.{i}", width)
    state |= fill.mlp(f"{head}_pre_token_shuffle_head", width, CODES_PER_PATCH * width, CODES_PER_PATCH * width)
    state |= fill.mlp(f"{head}_post_token_shuffle_head", width, width, width, gain=2.0)
    for i in range(layout.headwise_blocks):
        state |= fill.headwise(f"{head}.fsq_pre_attn.{i}", width, min(width, layout.headwise_width))
    return state | fill.linear(f"{head}.project_in", len(variant(layout.size).levels), width, gain=0.7)


def embedder_state(layout: Layout, seed: int = 0, dtype: torch.dtype = torch.float32) -> State:
    """The tensors of `embedder`."""
    fill, width = Filler(seed + 1, dtype), layout.width
    levels = variant(layout.size).levels
    state = {
        "ori_codebook.weight": codebook(levels).to(dtype),
        **fill.linear("projector_1", width, len(levels)),
        **fill.mlp("projector_2", CODES_PER_PATCH * width, CODES_PER_PATCH * width, width),
        **fill.mlp("projector_3.0", width, width, width),
        "_weight": 1 + fill.normal(width, std=0.05),
        "_bias": fill.normal(width, std=0.05),
    }
    for i in (1, 2, 3):
        state |= fill.norm(f"projector_3.{i}.norm", width)
        state |= fill.mlp(f"projector_3.{i}.mlp", width, 2 * width, width)
    return state


def drawer_state(layout: Layout, seed: int = 0, dtype: torch.dtype = torch.float32) -> State:
    """The tensors of `index_drawer` that pictures need, its copy of the embedder included."""
    fill, width = Filler(seed + 2, dtype), layout.width
    state = embedder_state(layout, seed, dtype)
    state |= fill.mlp("vae_preprocess_layers.0", width, width, width)
    state |= fill.norm("vae_preprocess_layers.1", width)
    for i in (2, 3, 4):
        state |= fill.block(f"vae_preprocess_layers.{i}", width)
    state |= fill.norm("vae_head.conv_norm_out", width)
    state |= fill.conv("vae_head.conv_out", 4 * LATENT_CHANNELS, width, 3, 3)
    for part in _vae_decoder(fill, layout.vae_base):
        state |= {f"vae_head.vae.{name}": tensor for name, tensor in part.items()}
    return state


def _vae_decoder(fill: Filler, base: int) -> Iterator[State]:
    dims = [base * multiplier for multiplier in (4, 4, 4, 2, 1)]
    yield fill.conv("post_quant_conv", LATENT_CHANNELS, LATENT_CHANNELS, 1, 1, 1)
    yield fill.conv("decoder.conv_in", dims[0], LATENT_CHANNELS, 3, 3, 3)
    middle = "decoder.mid_block"
    yield from (_resnet(fill, f"{middle}.resnets.{i}", dims[0], dims[0]) for i in (0, 1))
    yield fill.gamma(f"{middle}.attentions.0.norm", dims[0], 1, 1)
    yield fill.conv(f"{middle}.attentions.0.to_qkv", 3 * dims[0], dims[0], 1, 1)
    yield fill.conv(f"{middle}.attentions.0.proj", dims[0], dims[0], 1, 1)
    for i, out in enumerate(dims[1:]):
        inner = dims[i] if i == 0 else dims[i] // 2
        block = f"decoder.up_blocks.{i}"
        for j in range(3):
            yield _resnet(fill, f"{block}.resnets.{j}", inner if j == 0 else out, out)
        if i < len(dims) - 2:
            yield fill.conv(f"{block}.upsamplers.0.resample.1", out // 2, out, 3, 3)
    yield fill.gamma("decoder.norm_out", base, 1, 1, 1)
    yield fill.conv("decoder.conv_out", 3, base, 3, 3, 3)


def _resnet(fill: Filler, name: str, inner: int, out: int) -> State:
    return {
        **fill.gamma(f"{name}.norm1", inner, 1, 1, 1),
        **fill.conv(f"{name}.conv1", out, inner, 3, 3, 3),
        **fill.gamma(f"{name}.norm2", out, 1, 1, 1),
        **fill.conv(f"{name}.conv2", out, out, 3, 3, 3),
        **(fill.conv(f"{name}.conv_shortcut", out, inner, 1, 1, 1) if inner != out else {}),
    }
