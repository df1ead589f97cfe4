"""From a trained network to a packaged folder, through the project's own converter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import nano.export
from nano.export import package, training_state
from nano.network import Network, Sizes, quantised
from nano.trained_norm import TrainedNorm
from viq import ViQ
from viq.convert import PREFIX
from viq.errors import WeightsError
from viq.patches import normalise, pack_images, patchify
from viq.vae import ChannelNorm

HEADS = 4


@pytest.fixture(scope="module")
def network() -> Network:
    made = Network(Sizes(width=64, depth=1, heads=HEADS, grid=8, vae_base=4))
    draw = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, 0, parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.3, draw)
    return made.requires_grad_(False)


def test_what_is_exported_computes_what_was_trained(network: Network, tmp_path: Path) -> None:
    package(network, HEADS, tmp_path)
    # The packaged weights are the trained ones rounded to 16 bits.
    for parameter in network.parameters():
        parameter.copy_(parameter.half().float())
    package(network, HEADS, tmp_path)
    model = ViQ.from_pretrained(tmp_path, "nano", device="cpu", dtype="float32")
    pixels = [np.random.default_rng(0).integers(0, 256, shape, np.uint8) for shape in ((40, 70, 3), (16, 16, 3))]
    packing = pack_images(pixels, 1)
    patches = normalise(patchify(pixels, packing), [(40, 70), (16, 16)], packing, torch.float32)
    trained = network(patches, packing, quantised)
    for picture, expected, original in zip(model.decode(model.encode_pixels(pixels)), trained, pixels, strict=True):
        height, width = original.shape[:2]
        whole = ((expected.clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0)[:height, :width].numpy()
        close = np.abs(picture.astype(np.float32) - whole) <= 1.01
        assert close.mean() > 0.98  # a value at a level's edge may round the other way


def test_the_packaged_folder_is_whole_and_in_half_precision(network: Network, tmp_path: Path) -> None:
    size = package(network, HEADS, tmp_path)
    folder = tmp_path / "converted_nano"
    assert sorted(path.name for path in folder.iterdir()) == [
        "embedder.safetensors", "index_drawer.safetensors", "model_viq_fsq_nano.safetensors", "viq.json",
    ]  # fmt: skip
    assert size == sum(path.stat().st_size for path in folder.iterdir())
    model = ViQ.from_pretrained(tmp_path, device="cpu")
    assert model.encoder.pos_embed.shape == (1, 64, 64)  # as trained: the converter leaves nano's grid


def test_an_incomplete_network_is_not_packaged(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = training_state(network)
    lacking = {name: tensor for name, tensor in state.items() if "norm1" not in name}
    monkeypatch.setattr(nano.export, "training_state", lambda _: lacking)
    with pytest.raises(WeightsError, match="missing tensor"):
        package(network, HEADS, tmp_path)


def test_files_beyond_the_limit_are_refused(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "converted_nano"
    folder.mkdir()
    (folder / "viq.json").write_text("as it was")
    monkeypatch.setattr(nano.export, "LIMIT", 1000)
    with pytest.raises(ValueError, match="at most 1000"):
        package(network, HEADS, tmp_path)
    assert [path.read_text() for path in tmp_path.rglob("*.*")] == ["as it was"]


def test_names_are_those_of_a_released_training_checkpoint(network: Network) -> None:
    golden = torch.load(Path(__file__).parent.parent / "golden" / "vision_tower_4k.pth", weights_only=True)
    ours = {name for name in training_state(network) if ".blocks." not in name}
    assert all(name.startswith(PREFIX) for name in ours)
    assert not ours - set(golden)


@pytest.mark.parametrize("activate", [True, False])
def test_the_trained_norm_has_the_values_and_gradients_of_the_norm_it_stands_for(activate: bool) -> None:
    norms = ChannelNorm(6), TrainedNorm(6)
    draw = torch.Generator().manual_seed(1)
    gamma, x, gradient = torch.rand(6, generator=draw) + 0.5, *torch.randn(2, 2, 6, 5, 4, generator=draw)
    results = []
    for norm in norms:
        norm.gamma.data = gamma.clone()
        inputs = x.clone().requires_grad_()
        out = norm(inputs, activate)
        out.backward(gradient)
        assert norm.gamma.grad is not None
        assert inputs.grad is not None
        results.append((out.detach(), inputs.grad, norm.gamma.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
