"""Fingerprints: the same for the same codes' sake, and for nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from viq import fingerprint, hardware
from viq.codes import Codes
from viq.errors import FingerprintMismatch, InvalidInput
from viq.fingerprint import family, mode
from viq.model import ViQ
from viq.random_weights import State
from viq.tensor_file import open_tensors

MakeRoot = Callable[..., Path]
CPU = torch.device("cpu")
BIAS = "fusion_block.vq_low.project_in.bias"


def load(root: Path, size: str = "16k", dtype: str = "float32", parts: tuple[str, ...] = ("encoder",)) -> ViQ:
    return ViQ.from_pretrained(root, size, device="cpu", dtype=dtype, parts=parts)


# Family


def test_the_family_is_16_hex_digits_that_do_not_change_between_releases(state: State) -> None:
    assert family(state, "16k", 4) == family(state, "16k", 4)
    fixed = {"pos_embed": torch.arange(8.0).view(1, 4, 2), "a": torch.ones(2, dtype=torch.bfloat16)}
    # Others keep codes with this in them: a change here makes every stored fingerprint a stranger.
    assert family(fixed, "16k", 16) == "51b7c2b36225e5c1"


def test_the_order_of_the_tensors_does_not_count(state: State) -> None:
    assert family(dict(reversed(state.items())), "16k", 4) == family(state, "16k", 4)


def test_tensors_that_codes_do_not_need_do_not_count(state: State) -> None:
    more = {"norm.weight": torch.ones(3), "vae_head.conv_out.bias": torch.ones(3), "attn_pool.q": torch.ones(1)}
    assert family({**state, **more}, "16k", 4) == family(state, "16k", 4)


def test_memory_layout_does_not_count(state: State) -> None:
    name = "blocks.0.mlp.fc1.weight"
    assert family({**state, name: state[name].t().contiguous().t()}, "16k", 4) == family(state, "16k", 4)


def test_the_file_format_does_not_count(make_root: MakeRoot) -> None:
    one = load(make_root(suffix=".pth")).family
    for file in (make_root() / "converted_16k").glob("*.pth"):
        file.unlink()
    root = make_root(suffix=".safetensors")
    assert not list((root / "converted_16k").glob("*.pth"))
    assert load(root).family == one


def test_one_bit_of_any_needed_tensor_counts(state: State) -> None:
    families = {family(state, "16k", 4)}
    for name, tensor in state.items():
        flipped = tensor.clone()
        flipped.view(-1).view(torch.int32)[-1] ^= 1
        families.add(family({**state, name: flipped}, "16k", 4))
    assert len(families) == len(state) + 1


def test_names_shapes_and_dtypes_count(state: State) -> None:
    bias = state[BIAS]
    without = {name: t for name, t in state.items() if name != BIAS}
    assert len(
        {
            family(changed, "16k", 4)
            for changed in (
                state,
                without,
                {**without, f"{BIAS}2": bias},
                {**state, BIAS: bias[None]},
                {**state, BIAS: bias.double()},
                {**state, BIAS: bias.view(torch.float16)},
            )
        }
    ) == 6  # fmt: skip


def test_levels_and_heads_count(state: State) -> None:
    families = [family(state, size, heads) for size in ("2k", "4k", "8k", "16k", "64k") for heads in (2, 4)]
    assert len(set(families)) == 10


def test_the_version_of_the_pixel_pipeline_counts(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    before = family(state, "16k", 4)
    monkeypatch.setattr(fingerprint, "PREPROCESSING", "2")
    assert family(state, "16k", 4) != before


def test_a_models_family_does_not_depend_on_dtype_or_parts(make_root: MakeRoot) -> None:
    root = make_root()
    families = {load(root, dtype=dtype).family for dtype in ("float32", "bfloat16", "float16", "fp8")}
    families |= {load(root, parts=(part,)).family for part in ("embedder", "decoder")}
    file = open_tensors(root / "converted_16k" / "model_viq_fsq_16k.pth")
    assert families == {family(file, "16k", 4)}


# Mode


def test_the_mode_is_8_hex_digits_and_differs_by_dtype(make_root: MakeRoot) -> None:
    modes = {dtype: mode(CPU, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    assert len(set(modes.values())) == 3
    assert all(len(m) == 8 and int(m, 16) >= 0 for m in modes.values())
    model = load(make_root(), dtype="bfloat16")
    assert model.fingerprint == f"{model.family}.{modes[torch.bfloat16]}"
    eighth = load(make_root(), dtype="fp8").fingerprint.removeprefix(f"{model.family}.")
    assert len(eighth) == 8
    assert eighth not in modes.values()


def test_the_instruction_set_enters_the_mode_of_bfloat16_but_not_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hardware.instruction_set()
    before = {dtype: mode(CPU, dtype) for dtype in (torch.float32, torch.bfloat16)}
    monkeypatch.setattr(fingerprint, "instruction_set", lambda: "another")
    assert mode(CPU, torch.float32) == before[torch.float32]
    assert mode(CPU, torch.bfloat16) != before[torch.bfloat16]


def test_float32_mode_is_the_same_in_a_process_held_to_older_instructions() -> None:
    """The kernels really are dispatched anew there, unlike in a test that only replaces the name."""
    script = """
import torch
from viq.fingerprint import mode
print(torch.backends.cpu.get_cpu_capability(), mode(torch.device("cpu"), torch.float32))
"""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    capability, told = done.stdout.split()
    assert capability == "DEFAULT"
    assert told == mode(CPU, torch.float32)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_number_of_threads_is_no_part_of_a_mode(threads: Callable[[int], None], count: int) -> None:
    before = [mode(CPU, dtype) for dtype in (torch.float32, torch.bfloat16)]
    threads(count)
    assert [mode(CPU, dtype) for dtype in (torch.float32, torch.bfloat16)] == before


# What is done with them


@pytest.fixture
def codes_of(make_root: MakeRoot) -> Callable[[str], Codes]:
    """Codes of one patch row of size 16k that carry a given fingerprint."""
    return lambda carried: Codes(np.zeros((1, 2, 4), np.uint16), (16, 32), "16k", carried)


def use(model: ViQ, codes: Codes, **options: bool) -> Mapping[str, Tensor | object]:
    return {"embed": model.embed([codes], **options)[0], "decode": model.decode([codes], **options)[0]}


def test_codes_of_another_family_are_refused_by_embed_and_decode(
    make_root: MakeRoot, codes_of: Callable[[str], Codes]
) -> None:
    model = load(make_root(), parts=("embedder", "decoder"))
    other = f"0123456789abcdef.{mode(CPU, torch.float32)}"
    for method in (model.embed, model.decode):
        with pytest.raises(FingerprintMismatch) as caught:
            method([codes_of(model.fingerprint), codes_of(other)])
        assert "0123456789abcdef" in str(caught.value)
        assert model.family in str(caught.value)


def test_codes_of_another_family_are_accepted_where_that_is_asked_for(
    make_root: MakeRoot, codes_of: Callable[[str], Codes]
) -> None:
    model = load(make_root(), parts=("embedder", "decoder"))
    own = use(model, codes_of(model.fingerprint))
    foreign = use(model, codes_of("0123456789abcdef.01234567"), any_fingerprint=True)
    assert torch.equal(torch.as_tensor(own["embed"]), torch.as_tensor(foreign["embed"]))
    assert torch.equal(torch.as_tensor(own["decode"]), torch.as_tensor(foreign["decode"]))


def test_only_the_family_is_compared_and_codes_without_a_fingerprint_are_accepted(
    make_root: MakeRoot, codes_of: Callable[[str], Codes]
) -> None:
    model = load(make_root(), parts=("embedder", "decoder"))
    for carried in (f"{model.family}.01234567", ""):
        result = use(model, codes_of(carried))
        assert torch.as_tensor(result["embed"]).shape == (2, model.width)
        assert torch.as_tensor(result["decode"]).shape == (16, 32, 3)


def test_codes_of_another_size_are_refused_whatever_their_fingerprint(make_root: MakeRoot) -> None:
    model = load(make_root(), parts=("embedder", "decoder"))
    codes = Codes(np.zeros((1, 1, 4), np.uint16), (16, 16), "64k", "")
    for method in (model.embed, model.decode):
        with pytest.raises(InvalidInput, match="64k"):
            method([codes], any_fingerprint=True)


def test_codes_of_other_weights_do_not_pass_for_ones_own(make_root: MakeRoot) -> None:
    picture = np.zeros((16, 16, 3), np.uint8)
    theirs = load(make_root(seed=0)).encode([picture])
    ours = load(make_root(seed=1), parts=("encoder", "embedder"))
    assert ours.embed(ours.encode([picture]))[0].shape == (1, ours.width)
    with pytest.raises(FingerprintMismatch):
        ours.embed(theirs)
