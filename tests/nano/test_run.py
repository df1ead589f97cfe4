"""A training run: it learns, its steps are reproducible, and stopping it changes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nano.crops import Batch, Crops
from nano.losses import reconstruction
from nano.network import LEVELS, proximal, quantised, trained_parameters
from nano.plot import _rows, plot_losses
from nano.run import Options, Run, averaged_of
from nano.workers import Workers
from viq.fsq import codebook, quantise

TINY = Options(steps=4, patches=32, rate=1e-3, proximal=0.5, width=64, depth=1, grid=8, vae_base=4)


class FewCrops(Crops):
    """Crops whose first batch, which initial values are fitted to, is small."""

    def batch(self, seed: Sequence[int], patches: int) -> Batch:
        return super().batch(seed, min(patches, 96))


@pytest.fixture(scope="module")
def crops(data: Path) -> Crops:
    return FewCrops(data / "train")


def begun(crops: Crops, options: Options = TINY) -> Run:
    return Run(options, crops, Workers(0, 1, ""), torch.device("cpu"))


def values(run: Run) -> list[Tensor]:
    return [p.detach().clone() for p in trained_parameters(run.network)]


def test_a_run_that_is_resumed_goes_on_bit_for_bit_as_one_that_was_not_stopped(crops: Crops, tmp_path: Path) -> None:
    whole = begun(crops)
    for _ in range(TINY.steps):
        whole.advance()
    first = begun(crops)
    first.advance()
    first.save(tmp_path / "state.pt")
    second = begun(crops)
    second.load(tmp_path / "state.pt")
    reports = [second.advance() for _ in range(TINY.steps - 1)]
    assert [r.stage for r in reports] == ["proximal", "quantised", "quantised"]
    assert second.progress == 1
    for ours, theirs in zip(values(second), values(whole), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(*(trained_parameters(r.averaged()) for r in (second, whole)), strict=True):
        assert torch.equal(ours, theirs)


def test_every_trained_parameter_gets_a_gradient_in_both_stages(crops: Crops) -> None:
    network = begun(crops).network
    batch = crops.batch((1, 2), 48)
    for bottleneck in (proximal, quantised):
        network.zero_grad()
        loss, _ = reconstruction(network(batch.patches, batch.packing, bottleneck), batch.targets)
        loss.backward()
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name


def test_the_position_embedding_is_read_anew_after_every_step(crops: Crops) -> None:
    run = begun(crops)
    before = run.network.encoder.position_rows((4, 4)).detach().clone()
    for _ in range(2):
        run.advance()
    assert not torch.equal(run.network.encoder.position_rows((4, 4)), before)


def test_the_quantizer_of_training_gives_what_inference_looks_up() -> None:
    z = torch.randn(500, len(LEVELS), generator=torch.Generator().manual_seed(0)) * 2
    assert torch.equal(quantised(z), codebook(LEVELS)[quantise(z, LEVELS).long()])


def test_the_proximal_stage_keeps_values_in_the_unit_ball_and_leaves_those_that_are(crops: Crops) -> None:
    z = torch.randn(500, len(LEVELS), generator=torch.Generator().manual_seed(0))
    out = proximal(z)
    assert out.abs().max() <= 1
    inside = z.abs().amax(dim=1) <= 1
    assert torch.equal(out[inside], z[inside])


def test_a_state_of_another_architecture_is_refused(crops: Crops, tmp_path: Path) -> None:
    begun(crops).save(tmp_path / "state.pt")
    with pytest.raises(ValueError, match="another architecture"):
        begun(crops, replace(TINY, depth=2)).load(tmp_path / "state.pt")
    network, options, step = averaged_of(tmp_path / "state.pt")
    assert (options, step) == (TINY, 0)
    assert not any(p.requires_grad for p in network.parameters())


def test_a_log_with_a_torn_line_and_steps_taken_twice_is_plotted_without_them(tmp_path: Path) -> None:
    rows = [{"seconds": float(s), "psnr": 10.0 + s} for s in (1, 2, 3)] + [{"seconds": 2.5, "psnr": 20.0}]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "loss.jsonl").write_text("\n".join([*lines[:3], lines[2][:9] + lines[0], lines[3]]) + "\n")
    assert [row["seconds"] for row in _rows(tmp_path / "loss.jsonl")] == [1, 2, 2.5]
    plot_losses(tmp_path / "loss.jsonl", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size
