"""Fingerprints: the same for the same codes' sake, and for nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from viq import fingerprint, hardware
from viq.codes import Codes
from viq.errors import FingerprintMismatch, InvalidInput
from viq.fingerprint import family, mode, remembered_family, sample_check, write_manifest
from viq.model import ViQ
from viq.random_weights import Layout, State, encoder_state
from viq.tensor_file import TensorFile, open_tensors

MakeRoot = Callable[..., Path]
CPU = torch.device("cpu")
LAYOUT = Layout(size="16k", width=32, depth=1, heads=4, headwise_width=16, grid=4, vae_base=4, head_blocks=1)
BIAS = "fusion_block.vq_low.project_in.bias"


@pytest.fixture(scope="module")
def state() -> State:
    """The tensors of a tiny encoder."""
    return encoder_state(LAYOUT)


def load(root: Path, size: str = "16k", dtype: str = "float32", parts: tuple[str, ...] = ("encoder",)) -> ViQ:
    return ViQ.from_pretrained(root, size, device="cpu", dtype=dtype, parts=parts)


def manifest_of(root: Path, size: str = "16k") -> dict[str, object]:
    loaded: dict[str, object] = json.loads((root / f"converted_{size}" / "viq.json").read_text())
    return loaded


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
    families = {load(root, dtype=dtype).family for dtype in ("float32", "bfloat16", "float16")}
    families |= {load(root, parts=(part,)).family for part in ("embedder", "decoder")}
    file = open_tensors(root / "converted_16k" / "model_viq_fsq_16k.pth")
    assert families == {family(file, "16k", 4)}


# Memory of the family


def test_the_family_is_remembered_beside_other_keys(make_root: MakeRoot) -> None:
    root = make_root()
    path = root / "converted_16k" / "viq.json"
    path.write_text('{"num_heads": 4, "note": {"mine": [1, "ü"]}}')
    made = load(root).family
    after = manifest_of(root)
    assert after["family"] == made
    assert {key: after[key] for key in ("num_heads", "note")} == {"num_heads": 4, "note": {"mine": [1, "ü"]}}
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_remembered_family_is_used_without_hashing_again(
    make_root: MakeRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_root()
    made = load(root).family
    written = (root / "converted_16k" / "viq.json").stat().st_mtime_ns

    def forbidden(*_: object) -> str:
        raise AssertionError("hashed again")

    monkeypatch.setattr(fingerprint, "family", forbidden)
    assert load(root).family == made
    assert (root / "converted_16k" / "viq.json").stat().st_mtime_ns == written


@pytest.mark.parametrize("change", ["seed", "one tensor", "heads"])
def test_a_stale_memory_is_noticed_and_mended(make_root: MakeRoot, change: str) -> None:
    root = make_root()
    stale = load(root).family
    manifest = manifest_of(root)
    file = open_tensors(root / "converted_16k" / "model_viq_fsq_16k.pth")
    if change == "seed":
        make_root(seed=1)
    elif change == "one tensor":
        make_root(encoder={BIAS: file[BIAS] + 2**-20})
    else:
        manifest["num_heads"] = 2
    (root / "converted_16k" / "viq.json").write_text(json.dumps(manifest))
    renewed = load(root)
    heads = 2 if change == "heads" else 4
    file = open_tensors(root / "converted_16k" / "model_viq_fsq_16k.pth")
    assert renewed.family == family(file, "16k", heads)
    assert renewed.family != stale
    assert manifest_of(root)["family"] == renewed.family


@pytest.mark.parametrize("name", [BIAS, "patch_embed.proj.bias", "fusion_block.vq_low.fsq_pre_attn.0.attn.proj.weight"])
def test_the_sample_covers_every_bit_of_a_small_tensor_and_the_ends_of_a_large_one(state: State, name: str) -> None:
    before = sample_check(state, "16k", 4)
    bits = state[name].numel() * 32
    for bit in {0, 31, bits // 2, bits - 1}:
        flipped = state[name].clone()
        flipped.view(-1).view(torch.int32)[bit // 32] ^= 1 << min(bit % 32, 30)
        assert sample_check({**state, name: flipped}, "16k", 4) != before
    large = torch.zeros(1, 2**20)
    for place in (0, -1):
        other = large.clone()
        other[0, place] = 1
        assert sample_check({"pos_embed": other}, "16k", 4) != sample_check({"pos_embed": large}, "16k", 4)


@pytest.mark.parametrize("told", ["", "0123456789abcdeX", 7, None, ["a"], "0123456789ABCDEF"])
def test_a_family_that_is_none_is_not_believed_whatever_its_check(state: State, tmp_path: Path, told: object) -> None:
    file = TensorFile(tmp_path / "encoder.pth", state)
    manifest = {"family": told, "family_check": sample_check(file, "16k", 4)}
    assert remembered_family(file, manifest, "16k", 4) == family(state, "16k", 4)


def test_a_family_without_its_check_is_not_believed_where_the_encoder_is_at_hand(make_root: MakeRoot) -> None:
    root = make_root()
    (root / "converted_16k" / "viq.json").write_text('{"num_heads": 4, "family": "0123456789abcdef"}')
    made = load(root).family
    assert made != "0123456789abcdef"
    assert manifest_of(root)["family"] == made


def test_a_read_only_folder_works_and_stays_as_it_was(make_root: MakeRoot) -> None:
    root = make_root()
    expected = family(open_tensors(root / "converted_16k" / "model_viq_fsq_16k.pth"), "16k", 4)
    folder = root / "converted_16k"
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    # Root may write anywhere, so the child becomes nobody; it reaches the folder as its working directory only.
    script = """
import os
from viq.model import ViQ
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    open("converted_16k/probe", "w").close()
except PermissionError:
    print(ViQ.from_pretrained(".", "16k", device="cpu", parts=("encoder",)).family)
"""
    folder.chmod(0o555)
    root.chmod(0o555)
    try:
        done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    finally:
        root.chmod(0o755)
        folder.chmod(0o755)
    assert done.stdout.strip() == expected
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_manifest_that_cannot_be_written_leaves_the_old_one_and_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "viq.json").write_text('{"num_heads": 4}')
    with pytest.raises(TypeError):
        write_manifest(tmp_path, {"num_heads": 4, "family": object()})
    assert [p.name for p in tmp_path.iterdir()] == ["viq.json"]
    assert (tmp_path / "viq.json").read_text() == '{"num_heads": 4}'


def test_a_reader_never_sees_half_a_manifest(tmp_path: Path) -> None:
    manifests = [{"family": letter * 16, "padding": letter * 20_000} for letter in "abcdef"]
    write_manifest(tmp_path, manifests[0])
    done = threading.Event()
    seen: list[object] = []

    def read() -> None:
        while not done.is_set():
            seen.append(json.loads((tmp_path / "viq.json").read_text()))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        for manifest in manifests:
            write_manifest(tmp_path, manifest)
    done.set()
    reader.join()
    assert seen
    assert all(whole in manifests for whole in seen)
    assert [p.name for p in tmp_path.iterdir()] == ["viq.json"]


def test_several_processes_may_remember_at_once(make_root: MakeRoot) -> None:
    root = make_root()
    script = "import sys; from viq.model import ViQ\nprint(ViQ.from_pretrained(sys.argv[1], device='cpu').family)"
    command = [sys.executable, "-c", script, str(root)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    families = {child.communicate()[0].strip() for child in children}
    assert [child.returncode for child in children] == [0, 0]
    assert families == {manifest_of(root)["family"]}
    assert not [p.name for p in (root / "converted_16k").iterdir() if p.name.startswith(".")]


# Mode


def test_the_mode_is_8_hex_digits_and_differs_by_dtype(make_root: MakeRoot) -> None:
    modes = {dtype: mode(CPU, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    assert len(set(modes.values())) == 3
    assert all(len(m) == 8 and int(m, 16) >= 0 for m in modes.values())
    model = load(make_root(), dtype="bfloat16")
    assert model.fingerprint == f"{model.family}.{modes[torch.bfloat16]}"


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
