"""Weights folders: strict and memory-mapped."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.viq.weights_folder import (
    DRAWER,
    EMBEDDER,
    ENCODER,
    SMALL,
    STEMS,
    Write,
    every_file,
    every_format,
    load,
    own,
    refusal,
    save,
    states,
)

from viq.embedder import Embedder
from viq.errors import WeightsError
from viq.fsq import codebook
from viq.random_weights import Layout, drawer_state

# Files of another size


@every_file
@every_format
def test_a_64k_file_in_a_16k_folder_is_refused(write: Write, stem: str, suffix: str) -> None:
    folder = write(suffix)
    save(states("64k")["model_viq_fsq_64k" if stem == ENCODER else stem], folder / f"{stem}{suffix}")
    message = refusal(folder)
    assert f"{stem}{suffix}" in message
    assert "project_in.weight" in message if stem == ENCODER else "ori_codebook.weight" in message


@pytest.mark.parametrize("stem", [EMBEDDER, DRAWER])
@every_format
def test_sizes_whose_tensors_differ_in_the_codebook_alone_are_told_by_it(write: Write, stem: str, suffix: str) -> None:
    folder = write(suffix)
    save(states("4k")[stem], folder / f"{stem}{suffix}")
    message = refusal(folder)
    assert f"{stem}{suffix}: tensor ori_codebook.weight (4096, 5) is not the codebook of size 16k" in message


def test_a_folder_renamed_to_another_size_is_refused(write: Write) -> None:
    folder = write(size="4k")
    target = folder.rename(folder.parent / "converted_16k")
    (target / "model_viq_fsq_4k.pth").rename(target / "model_viq_fsq_16k.pth")
    assert "ori_codebook.weight" in refusal(target)


def test_a_drawer_whose_copy_of_the_embedder_is_not_whole_is_refused(write: Write) -> None:
    message = refusal(write(stem=DRAWER, changes={"projector_2.fc1.bias": None}))
    assert "index_drawer.pth: missing tensor projector_2.fc1.bias" in message


def test_a_codebook_with_one_wrong_value_is_refused(write: Write) -> None:
    values = codebook((8, 8, 8, 6, 5))
    values[15359, 4] += 0.25
    assert "ori_codebook.weight" in refusal(write(stem=EMBEDDER, changes={"ori_codebook.weight": values}))


def test_files_of_different_widths_are_refused(write: Write) -> None:
    folder = write()
    wide = Layout(**{**SMALL.__dict__, "width": 64})
    torch.save(drawer_state(wide), folder / "index_drawer.pth")
    message = refusal(folder)
    assert "widths" in message
    assert "64" in message


# Formats and parts


def test_safetensors_are_preferred_where_both_formats_lie(write: Write) -> None:
    folder = write(".safetensors", seed=5)
    expected = load(folder).family
    write(".pth", seed=6)
    model = load(folder)
    assert model.family == expected
    assert torch.equal(model.embedder.scale, states(seed=5)[EMBEDDER]["_weight"])
    for stem in STEMS:
        (folder / f"{stem}.pth").write_bytes(b"never opened")
    assert load(folder).family == expected


def test_formats_may_be_mixed_file_by_file(write: Write) -> None:
    folder = write(".pth")
    family = load(folder).family
    save_file(states()[DRAWER], folder / "index_drawer.safetensors")
    (folder / "index_drawer.pth").unlink()
    assert load(folder).family == family


@every_format
def test_both_formats_give_the_same_network(write: Write, suffix: str) -> None:
    model = load(write(suffix))
    torch_model = load(write(".pth"))
    for part in ("encoder", "embedder", "decoder"):
        for (name, a), (_, b) in zip(
            getattr(model, part).state_dict().items(), getattr(torch_model, part).state_dict().items(), strict=True
        ):
            assert torch.equal(a, b), name


@every_format
def test_the_encoder_loads_with_the_other_files_gone(write: Write, suffix: str) -> None:
    folder = write(suffix)
    for stem in (EMBEDDER, DRAWER):
        (folder / f"{stem}{suffix}").unlink()
    assert load(folder, "encoder").parts == {"encoder"}


@every_format
def test_the_decoder_loads_from_the_drawer_alone_with_its_copy_of_the_embedder(write: Write, suffix: str) -> None:
    folder = write(suffix)
    family = load(folder).family
    for stem in (ENCODER, EMBEDDER):
        (folder / f"{stem}{suffix}").unlink()
    model = load(folder, "decoder")
    assert model.parts == {"embedder", "decoder"}
    assert model.family == family


@every_format
def test_the_embedder_loads_alone_and_takes_the_family_from_the_manifest(write: Write, suffix: str) -> None:
    folder = write(suffix)
    family = load(folder).family
    for stem in (ENCODER, DRAWER):
        (folder / f"{stem}{suffix}").unlink()
    before = (folder / "viq.json").read_bytes()
    model = load(folder, "embedder")
    assert model.parts == {"embedder"}
    assert model.family == family
    assert isinstance(Embedder.from_pretrained(folder.parent, "16k", device="cpu"), Embedder)
    assert (folder / "viq.json").read_bytes() == before


@pytest.mark.parametrize("family", [None, "", "0123", 5, "XYZ4567890123456"])
def test_without_an_encoder_file_and_a_family_embedding_is_refused(write: Write, family: object) -> None:
    folder = write()
    (folder / f"{ENCODER}.pth").unlink()
    manifest = {"num_heads": 4} if family is None else {"num_heads": 4, "family": family}
    (folder / "viq.json").write_text(json.dumps(manifest))
    message = refusal(folder, "embedder")
    assert str(folder) in message
    assert "family" in message


def test_a_damaged_encoder_file_is_refused_even_where_only_its_family_is_wanted(write: Write) -> None:
    folder = write()
    load(folder)
    (folder / f"{ENCODER}.pth").write_bytes(b"damaged")
    assert f"{ENCODER}.pth" in refusal(folder, "embedder")


@pytest.mark.parametrize("part", ["encoder", "embedder"])
def test_asking_for_a_part_that_was_not_loaded_is_a_weights_error(write: Write, part: str) -> None:
    model = load(write(), part)
    for other in {"encoder", "embedder", "decoder"} - {part}:
        with pytest.raises(WeightsError, match=f"the {other} was not loaded"):
            getattr(model, other)


def test_the_embedders_weights_are_held_once(write: Write) -> None:
    model = load(write())
    whole = states()
    count = {stem: sum(t.numel() for t in state.values()) for stem, state in whole.items()}
    assert sum(p.numel() for p in model.encoder.parameters()) == count[ENCODER]
    assert sum(p.numel() for p in model.embedder.parameters()) == count[EMBEDDER]
    # Of the drawer's cubes one time slice of three is kept, of its copy of the embedder nothing.
    folded = sum(t.numel() // (t.shape[2] if t.dim() == 5 else 1) for t in own(DRAWER).values())
    assert sum(p.numel() for p in model.decoder.parameters()) == folded
    assert not {id(m) for m in model.embedder.modules()} & {id(m) for m in model.decoder.modules()}


# Memory

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def mapped(path: Path) -> list[range]:
    """Addresses at which a file is mapped into this process."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if line.endswith(f" {path.resolve()}")]
    return [range(int(start, 16), int(end, 16)) for start, end in spans]


def resident_kib(path: Path) -> int:
    """Memory of this process's mappings of a file."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if not first.endswith(":"):
            inside = line.endswith(f" {path.resolve()}")
        elif inside and first == "Rss:":
            total += int(line.split()[1])
    return total


@linux
@every_format
def test_weights_in_the_compute_dtype_stay_in_the_file(write: Write, suffix: str) -> None:
    folder = write(suffix)
    model = load(folder)
    for stem, module in ((ENCODER, model.encoder), (EMBEDDER, model.embedder)):
        spans = mapped(folder / f"{stem}{suffix}")
        assert spans
        for name, parameter in module.named_parameters():
            assert any(parameter.data_ptr() in span for span in spans), name
    spans = mapped(folder / f"{DRAWER}{suffix}")
    for name, parameter in model.decoder.blocks.named_parameters():
        assert any(parameter.data_ptr() in span for span in spans), name


@linux
@every_format
def test_weights_in_another_dtype_are_cast_and_their_file_is_let_go(write: Write, suffix: str) -> None:
    folder = write(suffix)
    model = load(folder, dtype="bfloat16")
    assert {p.dtype for p in model.encoder.parameters()} == {torch.bfloat16}
    assert mapped(folder / f"{ENCODER}{suffix}") == []
    assert torch.equal(model.embedder.scale, states()[EMBEDDER]["_weight"].bfloat16())


@linux
@every_format
def test_tensors_that_nobody_needs_are_never_read(write: Write, suffix: str) -> None:
    ballast = torch.zeros(8, 2**20)  # 32 MiB
    folder = write(suffix, ENCODER, {"attn_pool.ballast": ballast})
    model = load(folder)
    path = folder / f"{ENCODER}{suffix}"
    assert path.stat().st_size > 32 * 2**20
    assert 0 < resident_kib(path) < 8 * 1024
    assert model.family == load(write(suffix)).family


@linux
@every_format
def test_a_file_replaced_while_it_is_in_use_does_not_move_the_weights(write: Write, suffix: str) -> None:
    folder = write(suffix)
    model = load(folder)
    before = model.embedder.scale.clone()
    other = folder / "new"
    save(states(seed=9)[EMBEDDER], other.with_suffix(suffix))
    other.with_suffix(suffix).replace(folder / f"{EMBEDDER}{suffix}")
    assert torch.equal(model.embedder.scale, before)


def test_nothing_but_the_manifest_is_written_by_loading(write: Write) -> None:
    folder = write(".safetensors")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    load(folder)
    after = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert after.keys() == before.keys()
    assert {name for name in before if before[name] != after[name]} <= {"viq.json"}
    assert load_file(folder / "embedder.safetensors").keys() == states()[EMBEDDER].keys()
    shutil.rmtree(folder)
