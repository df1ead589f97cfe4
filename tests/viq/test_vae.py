"""The folded 2-D decoder against the video model it is folded from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import viq.attention
from viq.attention import attend_wide
from viq.checkpoint import load_decoder
from viq.decoder import Decoder
from viq.random_weights import Layout, drawer_state
from viq.tensor_file import TensorFile

if TYPE_CHECKING:
    from diffusers import AutoencoderKLQwenImage

TOLERANCE = 5e-5  # float32 sums in another order; a wrong time slice is off by tenths
LAYOUT = Layout(size="16k", width=64, heads=4, vae_base=8)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    file = TensorFile(Path("random"), drawer_state(LAYOUT))
    return load_decoder(file, LAYOUT.heads, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def published() -> AutoencoderKLQwenImage:
    from diffusers import AutoencoderKLQwenImage  # takes seconds, which only this file should

    vae = AutoencoderKLQwenImage(base_dim=LAYOUT.vae_base).eval()
    prefix = "vae_head.vae."
    state = {k.removeprefix(prefix): v for k, v in drawer_state(LAYOUT).items() if k.startswith(prefix)}
    unread = vae.load_state_dict(state, strict=False)
    assert not unread.unexpected_keys
    assert all(k.startswith(("encoder.", "quant_conv.")) or "time_conv" in k for k in unread.missing_keys)
    return vae


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (4, 3), (6, 6)])
@torch.inference_mode()
def test_a_single_frame_comes_out_the_same(
    decoder: Decoder, published: AutoencoderKLQwenImage, grid: tuple[int, int]
) -> None:
    latent = torch.randn(1, 16, 2 * grid[0], 2 * grid[1], generator=torch.Generator().manual_seed(0))
    theirs = published.decode(latent[:, :, None], return_dict=False)[0][:, :, 0]
    ours = decoder.vae(latent)
    assert ours.shape == (1, 3, 16 * grid[0], 16 * grid[1])
    assert (ours - theirs).abs().max() < TOLERANCE
    assert theirs.abs().max() > 0.1


@torch.inference_mode()
def test_pictures_of_one_size_come_out_together_as_alone(decoder: Decoder) -> None:
    latents = torch.randn(5, 16, 6, 8, generator=torch.Generator().manual_seed(1))
    together = decoder.vae(latents)
    for i in range(5):
        assert (decoder.vae(latents[i : i + 1])[0] - together[i]).abs().max() < TOLERANCE


@torch.inference_mode()
def test_scores_that_would_be_held_are_of_few_queries_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (torch.randn(2, 1, 50, 24, generator=torch.Generator().manual_seed(i)) for i in range(3))
    whole, asked = attend_wide(q, k, v), list[int]()

    def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        asked.append(q.shape[2])
        return scaled_dot_product_attention(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attended)
    monkeypatch.setattr(viq.attention, "_HOLD_SCORES", {"cpu"})
    monkeypatch.setattr(viq.attention, "_QUERY_CHUNK", 16)
    torch.testing.assert_close(attend_wide(q, k, v), whole)
    assert asked == [16, 16, 16, 2]
