"""A small language model that reads images as features: a plain decoder-only transformer over bytes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 256
HEAD = 64


class Block(nn.Module):
    """Attention over what came before, then a feed-forward layer of four times the width; each after a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD)
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`x` and the result are `(B, L, width)`."""
        batch, length, width = x.shape
        qkv = self.qkv(self.norm_1(x)).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        hidden: Tensor = x + self.down(F.gelu(self.up(self.norm_2(x))))
        return hidden


class LanguageModel(nn.Module):
    """Features of images first, then text; the loss is of each byte of the text after the first."""

    def __init__(self, width: int, depth: int, features: int, length: int) -> None:
        """`features` is the width of image features, `length` the longest sequence."""
        super().__init__()
        self.read_image, self.read_text = nn.Linear(features, width), nn.Embedding(VOCABULARY, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm, self.say = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)

    def forward(self, features: Tensor, text: Tensor) -> Tensor:
        """The mean loss of `features` `(B, P, C)` followed by `text`, whole numbers `(B, T)`."""
        x = torch.cat([self.read_image(features), self.read_text(text)], 1)
        hidden = self.blocks(x + self.position[: x.shape[1]])
        said = self.say(self.norm(hidden[:, features.shape[1] : -1]))
        return F.cross_entropy(said.flatten(0, 1).float(), text[:, 1:].flatten())

    @property
    def parameters_in_all(self) -> int:
        """How many numbers are trained."""
        return sum(one.numel() for one in self.parameters())
