"""Names, position grids and patch kernels of training checkpoints become those of released files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.viq.conversion import HEADS, STEMS, Alter, contents, every_format
from torch import Tensor

from viq.convert import PREFIX, convert, rename
from viq.model import ViQ
from viq.tensor_file import open_tensors

pytestmark = pytest.mark.usefixtures("one_thread")


def test_training_names_become_released_names() -> None:
    tensors = {
        f"{PREFIX}dualvq_head.vq_low.fsq.project_in.weight": torch.zeros(1),
        f"{PREFIX}movq_preprocess_layers.0.fc1.weight": torch.zeros(2),
        f"{PREFIX}movq_head.movq.decoder.conv_in.bias": torch.zeros(3),
        f"{PREFIX}perceptual_loss.net.weight": torch.zeros(4),
        f"{PREFIX}movq_head.vae_cpu.weight": torch.zeros(5),
        "base_model.model.lm_head.weight": torch.zeros(6),
        f"x{PREFIX}norm.weight": torch.zeros(7),
        f"{PREFIX}pos_embed": torch.zeros(1, 128 * 128, 8),
        f"{PREFIX}patch_embed.proj.weight": torch.zeros(8, 3, 16, 16),
    }
    assert set(rename(tensors)) == {
        "fusion_block.vq_low.project_in.weight",
        "vae_preprocess_layers.0.fc1.weight",
        "vae_head.vae.decoder.conv_in.bias",
        "pos_embed",
        "patch_embed.proj.weight",
    }


@pytest.mark.parametrize("side", [1, 8, 127, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_square_position_grid_is_resized_bicubically(side: int, dtype: torch.dtype) -> None:
    grid = torch.randn(1, side * side, 8, generator=torch.Generator().manual_seed(side)).to(dtype)
    tensors = {f"{PREFIX}pos_embed": grid, f"{PREFIX}patch_embed.proj.weight": torch.zeros(8, 3, 16, 16)}
    resized = rename(tensors)["pos_embed"]
    map_ = grid.view(1, side, side, 8).permute(0, 3, 1, 2)
    expected = F.interpolate(map_, size=(128, 128), mode="bicubic", align_corners=False)
    assert resized.dtype == dtype
    assert torch.equal(resized, expected.flatten(2).transpose(1, 2))


def test_a_position_grid_and_patch_kernel_of_the_released_size_are_left_alone() -> None:
    draw = torch.Generator().manual_seed(0)
    grid, kernel = torch.randn(1, 128 * 128, 8, generator=draw), torch.randn(8, 3, 16, 16, generator=draw)
    state = rename({f"{PREFIX}pos_embed": grid, f"{PREFIX}patch_embed.proj.weight": kernel})
    assert torch.equal(state["pos_embed"], grid)
    assert torch.equal(state["patch_embed.proj.weight"], kernel)


@pytest.mark.parametrize("shape", [(14, 14), (32, 32), (14, 16)])
def test_a_patch_kernel_of_another_size_is_resized_and_the_result_encodes(
    alter: Alter, tmp_path: Path, shape: tuple[int, int]
) -> None:
    kernel = torch.randn(64, 3, *shape, generator=torch.Generator().manual_seed(0)) * 0.05
    folder = convert(alter({"patch_embed.proj.weight": kernel}), "4k", tmp_path, num_heads=HEADS)
    stored = open_tensors(folder / "model_viq_fsq_4k.pth")["patch_embed.proj.weight"]
    assert torch.equal(stored, F.interpolate(kernel, size=(16, 16), mode="bicubic", align_corners=False))
    model = ViQ.from_pretrained(tmp_path, device="cpu", parts=("encoder",))
    assert model.encode([np.zeros((16, 16, 3), np.uint8)])[0].array.shape == (1, 1, 4)


def test_another_grid_converts_and_verifies(alter: Alter, tmp_path: Path) -> None:
    grid = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(0)) * 0.3
    folder = convert(alter({"pos_embed": grid}), "4k", tmp_path, num_heads=HEADS, verify=True)
    assert open_tensors(folder / "model_viq_fsq_4k.pth")["pos_embed"].shape == (1, 16384, 64)


@pytest.mark.parametrize("shape", [(1, 500, 64), (576, 64), (2, 576, 64), (1, 0, 64), (1, 24, 24, 64), (1, 576, 32)])
def test_a_position_embedding_that_is_no_square_grid_is_refused(
    alter: Alter, refusal: Callable[..., str], shape: tuple[int, ...]
) -> None:
    assert "pos_embed" in refusal(alter({"pos_embed": torch.zeros(shape)}))


@pytest.mark.parametrize("shape", [(64, 768), (64, 3, 0, 16), (64, 4, 16, 16), (64, 3, 1, 16, 16)])
def test_a_patch_kernel_that_is_none_is_refused(
    alter: Alter, refusal: Callable[..., str], shape: tuple[int, ...]
) -> None:
    assert "patch_embed.proj" in refusal(alter({"patch_embed.proj.weight": torch.zeros(shape)}))


def test_a_bfloat16_checkpoint_stays_bfloat16_and_verifies(
    trained: dict[str, Tensor], alter: Alter, tmp_path: Path
) -> None:
    halved = {name.removeprefix(PREFIX): t.bfloat16() for name, t in trained.items() if name.startswith(PREFIX)}
    folder = convert(alter(halved), "4k", tmp_path / "out", num_heads=HEADS, file_format="safetensors", verify=True)
    for stem in STEMS:
        assert {t.dtype for t in open_tensors(folder / f"{stem}.safetensors").values()} == {torch.bfloat16}
    assert ViQ.from_pretrained(tmp_path / "out", device="cpu", dtype="bfloat16").size == "4k"


@every_format
def test_tied_tensors_and_views_convert_as_their_values(
    trained: dict[str, Tensor], alter: Alter, tmp_path: Path, file_format: str
) -> None:
    one = "movq_preprocess_layers.2.norm1.weight"
    two = one.replace("norm1", "norm2")
    both = torch.stack([trained[PREFIX + one], trained[PREFIX + two]])
    tied = trained[f"{PREFIX}norm.weight"].clone()
    path = alter({one: both[0], two: both[1], "norm.weight": tied, "norm.bias": tied})
    folder = convert(path, "4k", tmp_path / "out", num_heads=HEADS, file_format=file_format, verify=True)
    drawer = open_tensors(folder / f"index_drawer.{file_format}")
    assert torch.equal(drawer["vae_preprocess_layers.2.norm2.weight"], both[1])
    encoder = open_tensors(folder / f"model_viq_fsq_4k.{file_format}")
    assert torch.equal(encoder["norm.weight"], tied)
    assert torch.equal(encoder["norm.bias"], tied)


def test_tensors_that_are_dropped_anyway_may_be_of_any_kind(
    trained: dict[str, Tensor], converted: dict[str, Path], tmp_path: Path
) -> None:
    count = torch.tensor(7)
    dropped = {"model.layers.0.position_ids": count, f"{PREFIX}perceptual_loss.bn.num_batches_tracked": count}
    torch.save({**trained, **dropped}, tmp_path / "vision_tower.pth")
    folder = convert(tmp_path / "vision_tower.pth", "4k", tmp_path / "out", num_heads=HEADS)
    assert contents(folder) == contents(converted["pth"])
