"""Triton's kernels of the GPU steps without a GPU: interpreted on a CPU against torch, and compiled for a Hopper GPU.

In processes of their own: whether Triton interprets is settled when it is imported.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent
SHARED_BYTES = 232_448  # that a program may have on Hopper: 227 KiB
NAMES = [f"{dtype}{fetched}" for dtype in ("float16", "bfloat16") for fetched in ("", " by descriptors")]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed: it is built for Linux on x86-64"
)


def told(*command: str, first: Path | None = None, **environment: str) -> str:
    """What a Python process prints in which `first` is the first folder of modules."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    paths = [first or ROOT, ROOT, ROOT / "models", ROOT / "service", inherited.get("PYTHONPATH", "")]
    environment |= {"PYTHONPATH": os.pathsep.join(str(path) for path in paths if path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=inherited | environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def steps(out: Path, first: Path | None = None) -> dict[str, list[dict[str, Any]]]:
    """The rows of the two steps that have kernels of Triton."""
    options = ("--tiny", "--device", "cpu", "--steps", "C,G", "--out", str(out))
    program = (str(HERE / "interpreter.py"), "loadtest.gpu") if first is None else ("-m", "loadtest.gpu")
    told(*program, *options, first=first, TRITON_INTERPRET="1")
    return {path.stem[0]: json.loads(path.read_text())["rows"] for path in out.glob("*-tiny/*.json")}


def interprets() -> None:
    """Skip where Triton's interpreter cannot run a loop."""
    if tuple(int(part) for part in version("triton").split(".")[:2]) < (3, 7):
        pytest.skip("the interpreter of Triton before 3.7 fails with NumPy 2.4")


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    interprets()
    return dict(json.loads(told("-W", "error", str(HERE / "kernels_interpreted.py"), TRITON_INTERPRET="1")))


@pytest.mark.parametrize("name", NAMES)
def test_a_product_has_the_bits_of_one_sum_rounded_once(interpreted: dict[str, Any], name: str) -> None:
    found = interpreted[name]
    assert found["product"] == 0
    assert found["product: control"] > 0  # rounded before the bias is added


@pytest.mark.parametrize("name", NAMES)
def test_gelu_is_of_the_rounded_product_and_torchs_but_for_the_last_bit_of_erf(
    interpreted: dict[str, Any], name: str
) -> None:
    found = interpreted[name]
    assert found["gelu: formula"] == found["gelu: far"] == 0
    assert found["gelu"] < 0.03 * found["values"]  # the erf of torch's libraries is another on other CPUs
    assert found["gelu: control"] > 0  # of the product as it was before rounding


@pytest.mark.parametrize("name", NAMES)
def test_a_row_of_a_product_has_the_same_bits_alone_and_elsewhere(interpreted: dict[str, Any], name: str) -> None:
    assert interpreted[name]["rows"] == 0
    assert interpreted[name]["rows: control"] > 0  # in two sums, as with split-K


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rotations_sums_and_norms_are_those_of_the_eager_operators(interpreted: dict[str, Any], dtype: str) -> None:
    found = interpreted[f"{dtype} passes"]
    assert found["rotate"] == found["sum"] == found["norm: far"] == found["norm: rows"] == 0
    assert found["norm"] < 0.002 * found["norm: values"]
    assert found["rotate: control"] > 0  # rounded once
    assert found["norm: control"] > 0.02 * found["norm: values"]  # of a sum that was not rounded


def test_shapes_that_the_kernels_are_not_for_are_refused(interpreted: dict[str, Any]) -> None:
    assert interpreted["refused"] == [
        "a product of 24 by 16: both must be multiples of 16",
        "elements to rotate lie 8 apart: they must be neighbours",
    ]


def test_each_kernel_compiles_once_for_hopper_fits_and_spills_nothing(tmp_path: Path) -> None:
    command = ("-W", "error", str(HERE / "kernels_compiled.py"))
    found = json.loads(told(*command, TRITON_CACHE_DIR=str(tmp_path)))
    products = ["_product", "_product", "_product_by_descriptors", "_product_by_descriptors"]  # with GELU and without
    assert [one["name"] for one in found] == [*products, "_rotate", "_add_norm"]
    for one in found:
        assert one["shared"] <= SHARED_BYTES
        assert one["registers"] <= 255
        assert one["spilled"] == 0
        assert one["wgmma"] is (one["name"] in products)


def test_steps_hold_tritons_kernels_against_torchs_by_bits_and_time(tmp_path: Path) -> None:
    interprets()
    found = steps(tmp_path)
    assert not [row for rows in found.values() for row in rows if "error" in row or "skipped" in row]
    products = [row for row in found["C"] if "product" in row and "ms" not in row]
    assert {row["product"] for row in products} == {"triton", "triton, TMA descriptors"}
    for row in products:
        assert row["rows_that_differ"] == row["rows_that_differ_at_the_end"] == row["rows_not_repeatable"] == []
        assert len(row["equal_to_torch"]) == len(row["counts"])
        assert min(row["equal_to_torch"]) > 0.98
    fused = [row for row in found["G"] if "by" in row]
    assert {row["what"] for row in fused} == {"fc1 and GELU", "rotary", "add and LayerNorm"}
    assert all(min(row["values_equal"]) > 0.95 and row["ms"] > 0 and row["predicted"] for row in fused)


def test_steps_go_on_without_triton_and_say_that_it_lacks(tmp_path: Path) -> None:
    package = tmp_path / "without" / "triton"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('raise ModuleNotFoundError("not here", name="triton")\n')
    found = steps(tmp_path / "out", first=package.parent)
    for rows in found.values():
        assert len(rows) > 1
        assert [row["skipped"] for row in rows if "skipped" in row] == ["this lacks triton"]
