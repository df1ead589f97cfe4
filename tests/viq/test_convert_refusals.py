"""Training checkpoints that are not whole, of another size, or hostile: refused, and nothing is written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.viq.conversion import FORMATS, HEADS, TRAINED, Alter, contents, every_format
from torch import Tensor

from viq.convert import PREFIX, convert
from viq.errors import InvalidInput, UnknownModel, WeightsError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("name", "released"),
    [
        ("pos_embed", "pos_embed"),
        ("patch_embed.proj.weight", "patch_embed.proj.weight"),
        ("blocks.0.attn.qkv.bias", "blocks.0.attn.qkv.bias"),
        ("dualvq_head.vq_low.fsq.project_in.weight", "fusion_block.vq_low.project_in.weight"),
        ("dualvq_head.vq_low.fsq.project_in.bias", "fusion_block.vq_low.project_in.bias"),
        ("dualvq_head.vq_low.fsq.project_out.weight", "projector_1.weight"),
        ("dualvq_head.vq_low_norm_trick_post_quantize_affine_bias", "_bias"),
        ("movq_preprocess_layers.1.weight", "vae_preprocess_layers.1.weight"),
        ("movq_head.conv_out.weight", "vae_head.conv_out.weight"),
        ("movq_head.vae.decoder.conv_in.weight", "vae_head.vae.decoder.conv_in.weight"),
    ],
)
def test_a_checkpoint_with_a_tensor_missing_is_refused_by_its_name(
    trained: dict[str, Tensor], alter: Alter, refusal: Callable[..., str], name: str, released: str
) -> None:
    assert PREFIX + name in trained
    message = refusal(alter({name: None}))
    assert released in message
    assert "missing" in message


def test_a_checkpoint_with_an_unknown_tensor_is_refused_by_its_name(alter: Alter, refusal: Callable[..., str]) -> None:
    assert "unexpected tensor adapter.weight" in refusal(alter({"adapter.weight": torch.zeros(2)}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["blocks.0.mlp.fc1.weight", "movq_preprocess_layers.1.bias"])
def test_a_checkpoint_with_a_number_that_is_none_is_refused(
    trained: dict[str, Tensor], alter: Alter, refusal: Callable[..., str], name: str, value: float
) -> None:
    spoilt = trained[PREFIX + name].clone()
    spoilt.view(-1)[-1] = value
    assert name.removeprefix("movq_") in refusal(alter({name: spoilt}))


@pytest.mark.parametrize("size", ["64k", "nano"])
def test_a_checkpoint_of_another_size_is_refused(refusal: Callable[..., str], size: str) -> None:
    message = refusal(TRAINED, size=size)
    assert "project_in.weight" in message
    assert size in message


def test_two_tensors_that_would_become_one_are_refused(
    trained: dict[str, Tensor], alter: Alter, refusal: Callable[..., str]
) -> None:
    twin = "fusion_block.vq_low.project_in.weight"
    original = trained[f"{PREFIX}dualvq_head.vq_low.fsq.project_in.weight"]
    assert twin in refusal(alter({twin: original}))


def test_heads_that_do_not_divide_the_width_are_refused(refusal: Callable[..., str]) -> None:
    assert "5 heads" in refusal(TRAINED, num_heads=5)


def test_released_files_are_no_training_checkpoint(converted: dict[str, Path], refusal: Callable[..., str]) -> None:
    for form in FORMATS:
        assert PREFIX in refusal(converted[form] / f"embedder.{form}")


@pytest.mark.parametrize("length", [0, 1, 100, 4096, 2_000_000, -100, -1])
def test_a_checkpoint_cut_short_is_refused(tmp_path: Path, refusal: Callable[..., str], length: int) -> None:
    path = tmp_path / "cut.pth"
    path.write_bytes(TRAINED.read_bytes()[:length])
    assert refusal(path)


@pytest.mark.parametrize("content", [b"noise" * 1000, b"PK\x03\x04" + b"noise" * 1000])
def test_something_else_is_refused(tmp_path: Path, refusal: Callable[..., str], content: bytes) -> None:
    path = tmp_path / "noise.pth"
    path.write_bytes(content)
    assert refusal(path)


def test_a_checkpoint_that_is_not_there_is_refused(tmp_path: Path, refusal: Callable[..., str]) -> None:
    assert "no such file" in refusal(tmp_path / "absent.pth")


class Bomb:
    """On unpickling makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("place", ["alone", "kept", "dropped", "nested"])
def test_a_hostile_checkpoint_is_refused_and_never_runs(
    trained: dict[str, Tensor], tmp_path: Path, refusal: Callable[..., str], form: str, place: str
) -> None:
    bomb, path = Bomb(tmp_path / "ran"), tmp_path / "hostile.pth"
    content = {
        "alone": bomb,
        "kept": {**trained, f"{PREFIX}norm.weight": bomb},
        "dropped": {**trained, f"{PREFIX}perceptual_loss.weight": bomb},
        "nested": {**trained, "state": {"optimizer": [bomb]}},
    }[place]
    torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    assert refusal(path)
    assert not bomb.marker.exists()


@every_format
def test_a_second_format_of_the_same_model_is_refused_in_one_folder(tmp_path: Path, file_format: str) -> None:
    other = {"pth": "safetensors", "safetensors": "pth"}[file_format]
    convert(TRAINED, "4k", tmp_path, num_heads=HEADS, file_format=other)
    before = contents(tmp_path)
    with pytest.raises(WeightsError, match=f"embedder.{other}"):
        convert(TRAINED, "4k", tmp_path, num_heads=HEADS, file_format=file_format)
    assert contents(tmp_path) == before


def test_an_unknown_size_format_or_number_of_heads_is_the_callers_error(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="5k"):
        convert(TRAINED, "5k", tmp_path, num_heads=HEADS)
    with pytest.raises(InvalidInput, match="onnx"):
        convert(TRAINED, "4k", tmp_path, num_heads=HEADS, file_format="onnx")
    for heads in (0, -4):
        with pytest.raises(InvalidInput, match=str(heads)):
            convert(TRAINED, "4k", tmp_path, num_heads=heads)
    assert list(tmp_path.iterdir()) == []
