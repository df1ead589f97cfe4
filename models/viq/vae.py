"""The Qwen-Image VAE decoder as a plain 2-D network: latent to image.

The published network (diffusers `AutoencoderKLQwenImage`, default configuration) is a video model. Fed a
single frame, every causal 3-D convolution sees zeros before it, so only the last time slice of its
kernel multiplies anything but zero, and the temporal up-samplers pass the first frame through. `fold`
keeps that slice; what remains is exact and 3 to 4 times as fast.

Symbols: `B` pictures, `(H, W)` pixels of the map at hand.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq.attention import attend_wide

LATENT_CHANNELS = 16
_MULTIPLIERS = (4, 4, 4, 2, 1)
_RESNETS = 3
_NORM_EPS = 1e-12


class ChannelNorm(nn.Module):
    """`x / ||x|| * sqrt(channels) * gamma` over the channels of each pixel, then SiLU unless told otherwise."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor, activate: bool = True) -> Tensor:
        """`(B, channels, H, W)` to the same."""
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(_NORM_EPS)
        out = (x / norm).mul_(x.shape[1] ** 0.5).mul_(self.gamma.view(-1, 1, 1))
        return F.silu(out, inplace=True) if activate else out


class ResBlock(nn.Module):
    """Two norm-SiLU-convolution steps beside a shortcut."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.norm2 = ChannelNorm(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`(B, channels, H, W)` to `(B, out, H, W)`."""
        return self.conv2(self.norm2(self.conv1(self.norm1(x)))).add_(self.conv_shortcut(x))  # type: ignore[no-any-return]


class MidAttention(nn.Module):
    """Single-head attention over all pixels of one map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, channels, H, W)` to the same."""
        batch, channels, height, width = x.shape
        qkv = self.to_qkv(self.norm(x, activate=False)).flatten(2).transpose(1, 2)
        q, k, v = (t[:, None].contiguous() for t in qkv.chunk(3, dim=-1))
        out = attend_wide(q, k, v)[:, 0].transpose(1, 2).reshape(batch, channels, height, width)
        return self.proj(out).add_(x)  # type: ignore[no-any-return]


class MidBlock(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList((ResBlock(channels, channels), ResBlock(channels, channels)))
        self.attentions = nn.ModuleList((MidAttention(channels),))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, channels, H, W)` to the same."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))  # type: ignore[no-any-return]


class UpBlock(nn.Module):
    """Residual blocks, then twice the resolution and half the channels where asked."""

    def __init__(self, channels: int, out: int, upsample: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(channels if i == 0 else out, out) for i in range(_RESNETS))
        self.upsample = nn.Conv2d(out, out // 2, 3, padding=1) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        """`(B, channels, H, W)` to `(B, out/2, 2H, 2W)`, or `(B, out, H, W)` in the last block."""
        for block in self.resnets:
            x = block(x)
        if self.upsample is None:
            return x
        return self.upsample(F.interpolate(x, scale_factor=2.0, mode="nearest-exact"))  # type: ignore[no-any-return]


class VaeDecoder(nn.Module):
    """Latent `(B, 16, 2h, 2w)` to image `(B, 3, 16h, 16w)` in [-1, 1]."""

    def __init__(self, base: int) -> None:
        super().__init__()
        dims = [base * multiplier for multiplier in _MULTIPLIERS]
        self.post_quant_conv = nn.Conv2d(LATENT_CHANNELS, LATENT_CHANNELS, 1)
        self.conv_in = nn.Conv2d(LATENT_CHANNELS, dims[0], 3, padding=1)
        self.mid_block = MidBlock(dims[0])
        last = len(dims) - 2
        self.up_blocks = nn.ModuleList(
            UpBlock(dims[i] if i == 0 else dims[i] // 2, dims[i + 1], upsample=i != last) for i in range(last + 1)
        )
        self.norm_out = ChannelNorm(base)
        self.conv_out = nn.Conv2d(base, 3, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        """Decode pictures of one size, clamped to [-1, 1]."""
        return self.unclamped(latent).clamp_(-1, 1)

    def unclamped(self, latent: Tensor) -> Tensor:
        """`forward` before the clamp, beyond which no gradient would pass."""
        x = self.conv_in(self.post_quant_conv(latent.contiguous(memory_format=torch.channels_last)))
        x = self.mid_block(x)
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(self.norm_out(x))  # type: ignore[no-any-return]


def fold(weight: Tensor) -> Tensor:
    """The 2-D kernel that a 3-D one is on a single frame: its last time slice. Norm gains become `(channels,)`."""
    if weight.dim() == 5:
        return weight[:, :, -1]
    if weight.dim() in (3, 4) and weight.shape[1:].numel() == 1:
        return weight.flatten()
    return weight
