"""The family of weights is remembered beside them, and not believed when they changed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from viq import fingerprint
from viq.fingerprint import family, remembered_family, sample_check, write_manifest
from viq.model import ViQ
from viq.random_weights import State
from viq.tensor_file import TensorFile, open_tensors

MakeRoot = Callable[..., Path]
BIAS = "fusion_block.vq_low.project_in.bias"


def load(root: Path, size: str = "16k", dtype: str = "float32", parts: tuple[str, ...] = ("encoder",)) -> ViQ:
    return ViQ.from_pretrained(root, size, device="cpu", dtype=dtype, parts=parts)


def manifest_of(root: Path, size: str = "16k") -> dict[str, object]:
    loaded: dict[str, object] = json.loads((root / f"converted_{size}" / "viq.json").read_text())
    return loaded


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
