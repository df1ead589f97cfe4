"""The GPU steps of the load test, run in small on a CPU: that they run, and what they write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loadtest.gpu import end_to_end, network, precision, products, strict
from loadtest.gpu.record import Record, cut_off
from torch import Tensor

import viq.layers
from viq.attention import attention
from viq.encoder import Encoder
from viq.packing import Ends, Packing

ROOT = Path(__file__).parents[2]


def steps(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtest.gpu", "--out", str(out), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    out = tmp_path_factory.mktemp("results")
    done = steps(out, "--tiny", "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.stem[0]: json.loads(path.read_text()) for path in sorted(out.glob("*-tiny/*.json"))}


def rows(results: dict[str, dict[str, object]], letter: str) -> list[dict[str, object]]:
    found = results[letter]["rows"]
    assert isinstance(found, list)
    return found


def test_every_step_runs_and_writes_what_it_ran_on(results: dict[str, dict[str, object]]) -> None:
    assert list(results) == list("ABCDEFGHI")
    for result in results.values():
        assert result["status"] == "done", result
        assert result["rows"]
        machine = result["machine"]
        assert isinstance(machine, dict)
        assert {"device", "torch", "cuda", "cudnn", "packages"} <= machine.keys()


def test_the_promise_holds_and_the_control_can_fail(results: dict[str, dict[str, object]]) -> None:
    found = {(str(row["what"]), row.get("attention")): row for row in rows(results, "D")}
    for key in (
        ("values of an image, alone and in packs", "varlen"),
        ("values of an image, alone and in packs", "cudnn for large images"),
        ("fresh images, twice each", None),
    ):
        assert found[key]["different"] == 0
        assert found[key]["holds"]
    control = found["control: none of the measures", None]
    assert control["different"] > 0  # type: ignore[operator]
    assert control["holds"]
    assert all(row["equal"] for row in rows(results, "B") if "bits" in row)
    assert all(row["holds"] for row in rows(results, "F"))
    assert all(row["values_equal"] for row in rows(results, "F") if "grids" in row)


@torch.inference_mode()
def test_what_knows_the_pack_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = torch.device("cpu")
    encoder = network.encoder(device, torch.float32, True)
    images = [network.image(patches, device, torch.float32, patches) for patches in (7, 20, 3)]
    assert strict.first_that_differs(encoder, images, 1, 32) == ""

    def aware(q: Tensor, k: Tensor, v: Tensor, packing: Packing | Ends) -> Tensor:
        out = attention(q, k, v, packing)
        return out * 1.001 if isinstance(packing, Packing) and len(packing.grids) > 1 else out

    monkeypatch.setattr(viq.layers, "attention", aware)
    assert strict.first_that_differs(encoder, images, 1, 32) == "trunk.0.attn.proj"
    record = Record(tmp_path / "D.json", step="D")
    strict._promise(record, encoder, images, 32, "varlen", 0, 2)
    assert record.summary()["promises_that_do_not_hold"] == 1
    (row,) = json.loads(record.path.read_text())["rows"]
    assert row["first_module_that_differs"] == "trunk.0.attn.proj"
    assert not row["holds"]
    assert 0 < row["different"] <= row["compared"]


def test_packs_with_large_images_are_measured_with_both_kinds_of_attention(
    results: dict[str, dict[str, object]],
) -> None:
    found = [(row["pack"], row["attention"]) for row in rows(results, "E") if row["what"] == "pack"]
    assert found == [(pack.name, kind) for pack in network.TINY_PACKS for kind in ("varlen", "cudnn for large images")]
    large = {pack.name for pack in network.PACKS if len(end_to_end.attentions(pack, False)) == 2}
    assert large == {
        "1024²", "1536²", "2048²", "1024² + 2 × 512² + 8 × 256²", "1536² + 1024² + 2 × 512² + 4 × 256²",
    }  # fmt: skip
    loops = [row for row in rows(results, "E") if row["what"] == "loops"]
    assert loops
    for row in loops:
        assert row["in_use_over_released"] == pytest.approx(row["released_ms"] / row["in_use_ms"], rel=1e-3)  # type: ignore[operator]


def test_products_are_tried_with_every_number_of_rows_that_packs_have() -> None:
    assert set(range(128, 16_384 + 1, 128)) < set(products.ROWS)
    assert max(products._counts(products.ROWS, True)) == 65_536


def test_predictions_stand_beside_what_was_measured(results: dict[str, dict[str, object]]) -> None:
    assert rows(results, "A")[3]["predicted_tflops"] == 790
    assert any(row.get("what") == "engine" and row["aim"] == 0.95 for row in rows(results, "H"))
    assert not [row for letter in "ADEFGH" for row in rows(results, letter) if "error" in row or "skipped" in row]


def test_tritons_kernels_are_left_out_on_a_cpu_and_that_is_said(results: dict[str, dict[str, object]]) -> None:
    for letter in "CG":
        assert [row for row in rows(results, letter) if "Triton's kernels are for CUDA" in str(row.get("note"))]


def test_types_agree_the_more_the_more_bits_they_have(results: dict[str, dict[str, object]]) -> None:
    found = {" ".join(row["of"]): row for row in rows(results, "I") if row["what"] == "codes of nano"}  # type: ignore[arg-type]
    equal = [found[pair]["equal"] for pair in ("float16 float32", "bfloat16 float32", "fp8 float32")]
    assert 1 >= equal[0] > equal[1] > equal[2] > 0  # type: ignore[operator]
    assert found["fp8 in the trunk bfloat16"]["equal"] > found["fp8 bfloat16"]["equal"]  # type: ignore[operator]
    for row in found.values():
        assert row["equal"] <= row["levels_equal"] <= 1  # type: ignore[operator]
        assert row["levels_off_by_more_than_one"] <= 1 - row["levels_equal"] + 1e-4  # type: ignore[operator]


class Asked:
    """All weights, and which of them were asked for."""

    def __init__(self) -> None:
        self.ids = set[int]()

    def __contains__(self, number: object) -> bool:
        self.ids.add(int(str(number)))
        return True


@torch.inference_mode()
def test_fp8_is_emulated_in_every_linear_layer_and_ends_with_its_block() -> None:
    encoder = network.encoder(torch.device("cpu"), torch.bfloat16, True)
    packing, asked = Packing.of([(4, 4)], 32), Asked()
    x = network.inputs(packing, torch.device("cpu"), torch.bfloat16)
    before = encoder(x, packing)
    with precision.emulated(asked):
        assert not torch.equal(encoder(x, packing), before)
    assert asked.ids == precision.weights_of(encoder)
    assert torch.equal(encoder(x, packing), before)


def test_agreement_counts_codes_their_levels_and_levels_far_off() -> None:
    levels = (8, 8, 8, 6, 5)
    one = torch.tensor([0, 1, 2, 8])
    other = torch.tensor([0, 2, 4, 8])  # of the first level the second is one off, the third two
    found = precision.agreement(one, other, levels)
    assert found == pytest.approx({"equal": 0.5, "levels_equal": 0.9, "levels_off_by_more_than_one": 0.05})


STEPS_THAT_END_BADLY = """
import json, os, signal, sys
from types import ModuleType, SimpleNamespace
from pathlib import Path
import loadtest.gpu.__main__ as program
from loadtest.gpu.steps import Step

def raises(record, device, tiny):
    record.add(row=1)
    with record.tried(what="part"):
        raise RuntimeError("CUDA out of memory\\nmore")
    with record.tried(what="other part"):
        import nothing_of_this_name
    raise ValueError("no such thing")

def killed(record, device, tiny):
    record.add(row=1)
    os.kill(os.getpid(), signal.SIGKILL)

for run in (raises, killed):
    module = ModuleType(run.__name__)
    module.run = run
    sys.modules["loadtest.gpu." + run.__name__] = module
args = SimpleNamespace(device="cpu", tiny=True, out=Path(sys.argv[1]), limit_s=None)
for name in ("raises", "killed", "lacking"):
    program._run(Step(name[0].upper(), name, "", "", 200.0, name), 0, args)
"""


def test_steps_that_raise_are_killed_or_lack_something_are_written_down_as_that(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STEPS_THAT_END_BADLY, str(tmp_path)]
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "models", "service"))
    done = subprocess.run(command, cwd=ROOT, timeout=240, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {path.stem[0]: json.loads(path.read_text()) for path in tmp_path.glob("*/*.json")}
    assert {letter: one["status"] for letter, one in found.items()} == {
        "R": "failed", "K": "ended", "L": "skipped",
    }  # fmt: skip
    assert found["R"]["reason"] == "ValueError: no such thing"
    assert found["R"]["rows"][1:] == [
        {"what": "part", "error": "RuntimeError: CUDA out of memory"},
        {"what": "other part", "skipped": "this lacks nothing_of_this_name"},
    ]
    assert found["K"]["reason"] == "ended with -9"
    assert found["K"]["rows"] == [{"row": 1}]
    assert found["L"]["reason"] == "this step lacks loadtest.gpu.lacking"
    told = [line.partition(" in ")[0] for line in done.stdout.splitlines() if " in " in line]
    assert told[-3:] == ["R raises: ended with 1", "K killed: ended with -9", "L lacking: skipped"]


def test_a_result_is_only_replaced_by_one_that_is_done_too(tmp_path: Path) -> None:
    path = tmp_path / "A_ceilings.json"
    Record(path, step="A").end("failed", "x")
    first = Record(path, step="A")  # what failed is worth nothing
    first.add(number=1)
    first.end("done")
    second = Record(path, step="A")
    second.add(number=2)
    cut_off(second.path, "it was killed")
    assert json.loads(path.read_text())["rows"] == [{"number": 1}]
    assert json.loads((tmp_path / "A_ceilings.unfinished.json").read_text())["status"] == "ended"
    third = Record(path, step="A")
    third.add(number=3)
    third.end("done")
    assert json.loads(path.read_text())["rows"] == [{"number": 3}]
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_some_steps_can_be_asked_for_and_one_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    done = steps(tmp_path, "--tiny", "--device", "cpu", "--steps", "A", "--limit-s", "0.001")
    assert done.returncode == 1
    assert "ended after 0.001 s" in done.stdout
    assert steps(tmp_path, "--steps", "J").returncode == 2


def test_the_network_that_is_measured_has_the_released_size_and_the_work_that_predictions_are_of() -> None:
    with torch.device("meta"):
        encoder = Encoder(network.FULL)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == pytest.approx(1.36e9, rel=0.01)
    tflop = {pack.name: network.flop(encoder, pack.packing(1)) / 1e12 for pack in network.PACKS}
    for name, expected in (("256²", 0.80), ("1024²", 17.1), ("2048²", 124), ("32 × 256²", 25.5)):
        assert tflop[name] == pytest.approx(expected, rel=0.01)
