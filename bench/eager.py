"""The plain way to run the released network: image by image, torch's eager operators, the video VAE as published.

What the benchmarks compare with. Reads the released tensor names; runs the layers after `project_in` too, as
the released encoder's forward does.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage
from torch import Tensor

from viq import rope
from viq.fsq import bound, codebook

State = Mapping[str, Tensor]


class EagerViQ:
    """The whole model from the three state dictionaries, one image at a time."""

    def __init__(
        self, encoder: State, drawer: State, levels: tuple[int, ...], heads: int, dtype: torch.dtype, vae_base: int = 96
    ) -> None:
        self.encoder = {k: v.to(dtype) for k, v in encoder.items() if not k.startswith(("vae_", "attn_pool", "norm."))}
        self.drawer = {k: v.to(dtype) for k, v in drawer.items()}
        self.levels, self.heads, self.dtype = levels, heads, dtype
        self.book = codebook(levels).to(dtype)
        self.vae = published_vae(drawer, vae_base).to(dtype)

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 `(H, W, 3)`, sides multiples of 16, to codes int32 `(4N,)`; the layers that follow run as well."""
        p, head = self.encoder, "fusion_block.vq_low"
        x = ((pixels.permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5).to(self.dtype)
        x = F.conv2d(x, p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], stride=16)
        h, w = x.shape[2:]
        side = round(p["pos_embed"].shape[1] ** 0.5)
        grid = p["pos_embed"].view(1, side, side, -1).permute(0, 3, 1, 2)
        x = (x + F.interpolate(grid, size=(h, w), mode="bilinear", align_corners=False)).flatten(2)[0].T
        x = self._blocks(x, p, "blocks")
        x = self._blocks(F.layer_norm(x, x.shape[-1:]), p, f"{head}_preprocess_layers")
        z = self._mlp(x, p, f"{head}_pre_token_shuffle_head").reshape(x.shape[0] * 4, -1)
        z = self._mlp(z, p, f"{head}_post_token_shuffle_head")
        inner = p[f"{head}.fsq_pre_attn.0.attn.proj.weight"].shape[0]
        table = rope.table((h, w), 4, inner, self.dtype)
        for i in range(_count(p, f"{head}.fsq_pre_attn.")):
            z = self._headwise(z, p, f"{head}.fsq_pre_attn.{i}", table)
        q = torch.round(bound(_linear(z, p, f"{head}.project_in"), self.levels))
        half = torch.tensor([level // 2 for level in self.levels])
        basis = torch.tensor([1, *self.levels[:-1]]).cumprod(0)
        names = ("project_out", "inverse_token_shuffle_head", "postprocess_layers", "norm_trick_post_quantize_affine_")
        self._features((q / half).to(self.dtype), p, [f"{head}.{names[0]}"] + [f"{head}_{n}" for n in names[1:]])
        return ((q + half).int() * basis.int()).sum(-1, dtype=torch.int32)

    @torch.inference_mode()
    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Codes `(4N,)` to image `(3, 16h, 16w)` in [-1, 1]."""
        return self.picture(self.latent(codes, grid))

    @torch.inference_mode()
    def latent(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Codes `(4N,)` to latent `(1, 16, 2h, 2w)`."""
        p = self.drawer
        x = self._features(self.book[codes.long()], p, ["projector_1", "projector_2", "projector_3", "_"])
        x = self._mlp(x, p, "vae_preprocess_layers.0")
        x = _norm(x, p, "vae_preprocess_layers.1", 1e-6)
        x = self._blocks(x, p, "vae_preprocess_layers", first=2)
        m = x.T.reshape(1, -1, *grid)
        m = F.silu(F.group_norm(m, 32, p["vae_head.conv_norm_out.weight"], p["vae_head.conv_norm_out.bias"], 1e-6))
        m = F.conv2d(m, p["vae_head.conv_out.weight"], p["vae_head.conv_out.bias"], padding=1)
        return F.pixel_shuffle(m, 2)

    @torch.inference_mode()
    def picture(self, latent: Tensor) -> Tensor:
        """Latent `(1, 16, 2h, 2w)` to image through the published 3-D VAE."""
        image: Tensor = self.vae.decode(latent[:, :, None], return_dict=False)[0][0, :, 0]
        return image

    def _features(self, values: Tensor, p: State, names: list[str]) -> Tensor:
        lift, merge, refine, affine = names
        x = _linear(values, p, lift)
        x = self._mlp(self._mlp(x.reshape(x.shape[0] // 4, -1), p, merge), p, f"{refine}.0")
        for i in (1, 2, 3):
            x = x + self._mlp(_norm(x, p, f"{refine}.{i}.norm", 1e-5), p, f"{refine}.{i}.mlp")
        return x * p[f"{affine}weight"] + p[f"{affine}bias"]

    def _blocks(self, x: Tensor, p: State, name: str, first: int = 0) -> Tensor:
        for i in range(first, _count(p, f"{name}.")):
            y = _linear(_norm(x, p, f"{name}.{i}.norm1", 1e-6), p, f"{name}.{i}.attn.qkv")
            q, k, v = y.view(x.shape[0], 3, self.heads, -1).permute(1, 2, 0, 3)[:, None]
            y = F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).reshape(x.shape)
            x = x + _linear(y, p, f"{name}.{i}.attn.proj")
            x = x + self._mlp(_norm(x, p, f"{name}.{i}.norm2", 1e-6), p, f"{name}.{i}.mlp")
        return x

    def _headwise(self, z: Tensor, p: State, name: str, table: Tensor) -> Tensor:
        y = _norm(z, p, f"{name}.norm1", 1e-6)
        narrow = f"{name}.attn.decrease_dim.weight" in p
        y = _linear(y, p, f"{name}.attn.decrease_dim") if narrow else y
        q, k, v = _linear(y, p, f"{name}.attn.qkv").view(z.shape[0] // 4, 4, 3, -1).unbind(2)
        q, k = rope.rotate(q, table), rope.rotate(k, table)
        y = F.scaled_dot_product_attention(*[t.transpose(0, 1)[None] for t in (q, k, v)])[0]  # type: ignore[arg-type]
        y = _linear(y.transpose(0, 1).reshape(z.shape[0], -1), p, f"{name}.attn.proj")
        z = z + (_linear(y, p, f"{name}.attn.increase_dim") if narrow else y)
        return z + self._mlp(_norm(z, p, f"{name}.norm2", 1e-6), p, f"{name}.mlp")

    def _mlp(self, x: Tensor, p: State, name: str) -> Tensor:
        return _linear(F.gelu(_linear(x, p, f"{name}.fc1")), p, f"{name}.fc2")


def published_vae(drawer: State, base: int) -> AutoencoderKLQwenImage:
    """diffusers' class, default configuration but for `base`, with the decoder's tensors of a drawer file."""
    vae = AutoencoderKLQwenImage(base_dim=base).eval()
    prefix = "vae_head.vae."
    tensors = {name.removeprefix(prefix): t.float() for name, t in drawer.items() if name.startswith(prefix)}
    missing, unexpected = vae.load_state_dict(tensors, strict=False)
    assert not unexpected, unexpected
    assert all("time_conv" in m or m.startswith(("encoder.", "quant_conv.")) for m in missing), missing
    return vae


def _count(p: State, prefix: str) -> int:
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in p if name.startswith(prefix))


def _linear(x: Tensor, p: State, name: str) -> Tensor:
    return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])


def _norm(x: Tensor, p: State, name: str, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], eps)
