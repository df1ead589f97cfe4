"""Weights folders: strict, memory-mapped, and nothing that a file carries ever runs."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from viq.checkpoint import load_decoder, load_embedder, load_encoder, read_manifest
from viq.embedder import Embedder
from viq.errors import WeightsError
from viq.fsq import codebook
from viq.layers import Attention
from viq.model import ViQ
from viq.random_weights import Layout, State, drawer_state, embedder_state, encoder_state
from viq.tensor_file import TensorFile, open_tensors

SMALL = Layout(
    size="16k", width=32, depth=2, heads=4, headwise_width=16, grid=4, vae_base=4, head_blocks=1, headwise_blocks=1
)
ENCODER, EMBEDDER, DRAWER = STEMS = ("model_viq_fsq_16k", "embedder", "index_drawer")
SUFFIXES = (".pth", ".safetensors")
PART = dict(zip(STEMS, ("encoder", "embedder", "decoder"), strict=True))
CPU = torch.device("cpu")
Write = Callable[..., Path]

every_file = pytest.mark.parametrize("stem", STEMS)
every_format = pytest.mark.parametrize("suffix", SUFFIXES)


@cache
def states(size: str = "16k", seed: int = 0) -> dict[str, State]:
    layout = Layout(**{**SMALL.__dict__, "size": size})
    made = (encoder_state(layout, seed), embedder_state(layout, seed), drawer_state(layout, seed))
    return dict(zip((f"model_viq_fsq_{size}", EMBEDDER, DRAWER), made, strict=True))


def save(state: Mapping[str, Tensor], path: Path) -> None:
    if path.suffix == ".pth":
        torch.save(dict(state), path)
    else:
        save_file(dict(state), path)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int, str, str], bytes]:
    """The bytes of an unchanged file, saved once a session: most tests change one of three."""
    folder = tmp_path_factory.mktemp("saved")

    @cache
    def content(size: str, seed: int, stem: str, suffix: str) -> bytes:
        save(states(size, seed)[stem], folder / f"{stem}{suffix}")
        return (folder / f"{stem}{suffix}").read_bytes()

    return content


@pytest.fixture
def write(tmp_path: Path, saved: Callable[[str, int, str, str], bytes]) -> Write:
    """Writes a whole weights folder, with changes to the tensors of one file; returns the folder."""

    def write(
        suffix: str = ".pth",
        stem: str = ENCODER,
        changes: Mapping[str, Tensor | None] | None = None,
        size: str = "16k",
        seed: int = 0,
    ) -> Path:
        folder = tmp_path / f"converted_{size}"
        folder.mkdir(exist_ok=True)
        for name, state in states(size, seed).items():
            path = folder / f"{name}{suffix}"
            if changes and name == stem:
                changed = {**state, **changes}
                save({k: t for k, t in changed.items() if t is not None}, path)
            else:
                path.write_bytes(saved(size, seed, name, suffix))
        (folder / "viq.json").write_text('{"num_heads": 4}\n')
        return folder

    return write


def load(folder: Path, *parts: str, dtype: str = "float32") -> ViQ:
    chosen = parts or ("encoder", "embedder", "decoder")
    return ViQ.from_pretrained(folder.parent, device="cpu", dtype=dtype, parts=chosen)


def refusal(folder: Path, *parts: str) -> str:
    with pytest.raises(WeightsError) as caught:
        load(folder, *parts)
    return str(caught.value)


# Missing, unexpected and misshapen tensors

NEEDED = {
    ENCODER: "fusion_block.vq_low.fsq_pre_attn.0.attn.qkv.weight",
    EMBEDDER: "projector_2.fc1.weight",
    DRAWER: "vae_head.vae.decoder.up_blocks.1.upsamplers.0.resample.1.weight",
}


@every_file
@every_format
def test_a_missing_tensor_is_named_with_its_file(write: Write, stem: str, suffix: str) -> None:
    message = refusal(write(suffix, stem, {NEEDED[stem]: None}))
    assert f"{stem}{suffix}: missing tensor {NEEDED[stem]}" in message


@every_file
@every_format
def test_an_unexpected_tensor_is_named_with_its_file(write: Write, stem: str, suffix: str) -> None:
    for name in ("surplus.weight", f"{NEEDED[stem]}.twin"):
        message = refusal(write(suffix, stem, {name: torch.zeros(3)}))
        assert f"{stem}{suffix}: unexpected tensor {name}" in message


@every_file
@every_format
def test_a_misshapen_tensor_is_named_with_its_file_and_both_shapes(write: Write, stem: str, suffix: str) -> None:
    good = states()[stem][NEEDED[stem]]
    message = refusal(write(suffix, stem, {NEEDED[stem]: torch.zeros(7, *good.shape[1:])}))
    assert f"{stem}{suffix}: tensor {NEEDED[stem]} has shape {(7, *good.shape[1:])}" in message
    assert f"expected {tuple(good.shape)}" in message


def load_alone(stem: str, state: State) -> None:
    """Load one file's tensors without writing them."""
    file = TensorFile(Path(stem), state)
    if stem == ENCODER:
        load_encoder(file, "16k", SMALL.heads, torch.float32, CPU)
    elif stem == EMBEDDER:
        load_embedder(file, "16k", torch.float32, CPU)
    else:
        load_decoder(file, SMALL.heads, torch.float32, CPU)


def own(stem: str) -> State:
    """A file's tensors, a drawer's without its copy of the embedder (which is checked by the embedder's means)."""
    whole = states()
    return {name: t for name, t in whole[stem].items() if stem != DRAWER or name not in whole[EMBEDDER]}


@every_file
def test_every_single_tensor_is_missed_by_its_name(stem: str) -> None:
    whole = own(stem)
    load_alone(stem, whole)
    for name in whole:
        with pytest.raises(WeightsError) as caught:
            load_alone(stem, {k: t for k, t in whole.items() if k != name})
        assert f"missing tensor {name}" in str(caught.value)


@every_file
def test_no_single_tensor_may_have_another_shape(stem: str) -> None:
    whole = own(stem)
    for i, (name, tensor) in enumerate(whole.items()):
        wrong = (tensor[None], tensor.reshape(-1)[:0], torch.cat([tensor, tensor]))[i % 3]
        with pytest.raises(WeightsError, match="tensor ") as caught:
            load_alone(stem, {**whole, name: wrong})
        # Of two tensors that disagree about a size either may be the one at fault.
        assert any(other in str(caught.value) for other in whole)


@pytest.mark.parametrize("shape", [(16, 16, 1, 3, 3), (16, 16, 0, 3, 3), (16, 16, 5, 3, 3), (16, 16, 3, 3)])
def test_a_video_kernel_of_another_length_is_refused_though_one_slice_of_it_would_fit(shape: tuple[int, ...]) -> None:
    name = "vae_head.vae.decoder.conv_in.weight"
    with pytest.raises(WeightsError, match=r"conv_in\.weight has shape") as caught:
        load_alone(DRAWER, {**states()[DRAWER], name: torch.zeros(shape)})
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("shape", [(32, 12, 8, 8), (32, 3, 14, 14), (32, 768), (0, 3, 16, 16)])
def test_a_patch_kernel_that_only_has_the_right_number_of_elements_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(WeightsError, match=r"patch_embed\.proj\.weight has shape"):
        load_alone(ENCODER, {**states()[ENCODER], "patch_embed.proj.weight": torch.zeros(shape)})


@pytest.mark.parametrize(
    ("stem", "prefix", "name"),
    [
        (EMBEDDER, "projector_3.3.", "projector_3.3.norm.weight"),
        (DRAWER, "vae_preprocess_layers.4.", "vae_preprocess_layers.4.norm1.weight"),
        (ENCODER, "fusion_block.vq_low.fsq_pre_attn.", "fusion_block.vq_low.fsq_pre_attn.0.norm1.weight"),
        (ENCODER, "blocks.", "blocks.0.norm1.weight"),
        (ENCODER, "blocks.0.", "blocks.0.norm1.weight"),
    ],
)
def test_a_whole_block_that_is_missing_is_missed(stem: str, prefix: str, name: str) -> None:
    state = {k: t for k, t in states()[stem].items() if not k.startswith(prefix)}
    with pytest.raises(WeightsError, match=f"missing tensor {name}"):
        load_alone(stem, state)


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        (DRAWER, "vae_head.vae.decoder.post_quant_conv.weight"),
        (DRAWER, "vae_head.vae.decoder.up_blocks.0.upsample.weight"),
        (EMBEDDER, "vae_head.conv_out.bias"),
    ],
)
def test_a_second_name_for_a_tensor_of_the_network_is_unexpected(stem: str, name: str) -> None:
    with pytest.raises(WeightsError, match=f"unexpected tensor {name}"):
        load_alone(stem, {**states()[stem], name: torch.zeros(16)})


@every_format
def test_tensors_that_only_training_needs_are_passed_over(write: Write, suffix: str) -> None:
    plain = load(write(suffix)).family
    unneeded = {
        ENCODER: (
            "norm.weight",
            "attn_pool.latent",
            "fusion_block.vq_low.project_out.weight",
            "fusion_block.vq_low_norm_trick_post_quantize_affine_bias",
            "vae_head.vae.encoder.conv_in.weight",
        ),
        DRAWER: (
            "vae_head.vae.encoder.conv_in.weight",
            "vae_head.vae.quant_conv.bias",
            "vae_head.vae.decoder.up_blocks.0.upsamplers.0.time_conv.weight",
        ),
    }
    for stem, names in unneeded.items():
        assert load(write(suffix, stem, {name: torch.ones(5) for name in names})).family == plain


# Files that are not there, not whole, or not weights


@every_file
@every_format
def test_a_missing_file_is_named(write: Write, stem: str, suffix: str) -> None:
    folder = write(suffix)
    (folder / f"{stem}{suffix}").unlink()
    message = refusal(folder)
    assert str(folder) in message
    assert f"{stem}.safetensors" in message
    assert f"{stem}.pth" in message


@every_file
@every_format
def test_a_folder_in_place_of_a_file_is_refused(write: Write, stem: str, suffix: str) -> None:
    folder = write(suffix)
    (folder / f"{stem}{suffix}").unlink()
    (folder / f"{stem}{suffix}").mkdir()
    assert stem in refusal(folder)


@every_file
@every_format
@pytest.mark.parametrize("kept", [0, 1, 5, 8, 20, 100, 1000, 0.5, -4096, -100, -22, -1])
def test_a_file_cut_short_is_refused_and_named(write: Write, stem: str, suffix: str, kept: float) -> None:
    folder = write(suffix)
    path = folder / f"{stem}{suffix}"
    whole = path.read_bytes()
    length = int(kept * len(whole)) if kept == 0.5 else int(kept) % len(whole)
    path.write_bytes(whole[:length])
    assert str(path) in refusal(folder)


@every_format
def test_bytes_missing_from_the_middle_are_noticed(write: Write, suffix: str) -> None:
    folder = write(suffix)
    path = folder / f"{EMBEDDER}{suffix}"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + whole[len(whole) // 2 + 64 :])
    assert str(path) in refusal(folder)


@every_file
@every_format
@pytest.mark.parametrize(
    "content",
    [
        random.Random(0).randbytes(5000),
        b"PK\x03\x04" + random.Random(1).randbytes(5000),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
        b"\x00" * 4096,
        b"\xff" * 4096,
        b"<!doctype html><title>Not found</title>",
    ],
    ids=["noise", "zip-magic", "lfs-pointer", "zeros", "ones", "html"],
)
def test_a_file_of_something_else_is_refused_and_named(write: Write, stem: str, suffix: str, content: bytes) -> None:
    folder = write(suffix)
    (folder / f"{stem}{suffix}").write_bytes(content)
    assert f"{stem}{suffix}" in refusal(folder)


def test_a_zip_of_something_else_is_refused(write: Write) -> None:
    folder = write()
    for names in ([], ["readme.txt"], ["archive/data.pkl"]):
        with zipfile.ZipFile(folder / "embedder.pth", "w") as archive:
            for name in names:
                archive.writestr(name, b"nothing")
        assert "embedder.pth" in refusal(folder)


def test_each_format_under_the_other_ones_name_is_refused(write: Write) -> None:
    folder = write(".pth")
    (folder / "embedder.pth").rename(folder / "embedder.safetensors")
    assert "embedder.safetensors" in refusal(folder)
    (folder / "embedder.safetensors").unlink()
    save_file(states()[EMBEDDER], folder / "embedder.pth")
    assert "embedder.pth" in refusal(folder)


def test_damage_anywhere_in_a_pickle_is_a_weights_error_or_harmless(write: Write) -> None:
    """Bits flipped in the records that are parsed: whatever the unpickler makes of it, one error class comes out."""
    path = write() / "embedder.pth"
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        record = next(i for i in archive.infolist() if i.filename.endswith("data.pkl"))
    parsed = [*range(record.header_offset, record.header_offset + record.file_size + 200)]
    parsed += range(len(whole) - 3000, len(whole))
    draw = random.Random(0)
    refused = 0
    for _ in range(600):
        damaged = bytearray(whole)
        damaged[draw.choice(parsed)] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with suppress(WeightsError):
            open_tensors(path)
            continue
        refused += 1
    assert refused > 200


def test_damage_anywhere_in_a_safetensors_header_is_a_weights_error_or_harmless(write: Write) -> None:
    path = write(".safetensors") / "embedder.safetensors"
    whole = path.read_bytes()
    header = struct.unpack("<Q", whole[:8])[0]
    draw = random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[draw.randrange(header + 8)] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with suppress(WeightsError):
            open_tensors(path)
            continue
        refused += 1
    assert refused > 100


LIES: dict[str, object] = {
    "out of the file": {"_bias": {"dtype": "F32", "shape": [2**20], "data_offsets": [0, 2**22]}},
    "far out of the file": {"_bias": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]}},
    "a product over 64 bits": {"_bias": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 64]}},
    "more shape than bytes": {"_bias": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 64]}},
    "overlapping": {
        "_bias": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]},
        "_weight": {"dtype": "F32", "shape": [16], "data_offsets": [32, 96]},
    },
    "backwards": {"_bias": {"dtype": "F32", "shape": [16], "data_offsets": [64, 0]}},
    "negative": {"_bias": {"dtype": "F32", "shape": [-16], "data_offsets": [0, 64]}},
    "unknown dtype": {"_bias": {"dtype": "F31", "shape": [16], "data_offsets": [0, 64]}},
    "a hole": {"_bias": {"dtype": "F32", "shape": [8], "data_offsets": [32, 64]}},
    "no tensors": {},
    "a list": [1, 2, 3],
}


@every_file
@pytest.mark.parametrize("lie", LIES)
def test_a_safetensors_header_that_lies_is_refused(write: Write, stem: str, lie: str) -> None:
    folder = write(".safetensors")
    header = json.dumps(LIES[lie]).encode()
    path = folder / f"{stem}.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    assert str(path) in refusal(folder)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**40, 100_000_000, 101])
def test_a_safetensors_header_longer_than_its_file_is_refused(write: Write, length: int) -> None:
    folder = write(".safetensors")
    (folder / "embedder.safetensors").write_bytes(struct.pack("<Q", length) + b"{" * 100)
    assert "embedder.safetensors" in refusal(folder)


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


# Entries that are no plain float tensors


@pytest.mark.parametrize("entry", [3, 1.5, "text", None, [torch.zeros(2)], {"a": torch.zeros(2)}, torch.float32])
@every_file
def test_an_entry_that_is_no_tensor_is_named(write: Write, stem: str, entry: object) -> None:
    folder = write()
    torch.save({**states()[stem], "epoch": entry}, folder / f"{stem}.pth")
    message = refusal(folder)
    assert f"{stem}.pth" in message
    assert "epoch" in message


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], 5, "text", None, {3: torch.zeros(3)}, {}])
def test_a_file_that_is_no_dictionary_of_named_tensors_is_refused(write: Write, content: object) -> None:
    folder = write()
    torch.save(content, folder / "embedder.pth")
    assert "embedder.pth" in refusal(folder)


def odd_tensors() -> dict[str, Tensor]:
    return {
        "int64": torch.zeros(32, dtype=torch.int64),
        "uint8": torch.zeros(32, dtype=torch.uint8),
        "bool": torch.zeros(32, dtype=torch.bool),
        "complex64": torch.zeros(32, dtype=torch.complex64),
        "float8": torch.zeros(32).to(torch.float8_e4m3fn),
        "sparse": torch.eye(32)[0].to_sparse(),
        "meta": torch.zeros(32, device="meta"),
        "expanded": torch.zeros(1).expand(32),
    }


@every_file
@pytest.mark.parametrize("kind", odd_tensors())
def test_a_tensor_that_is_not_plain_floats_is_named(write: Write, stem: str, kind: str) -> None:
    name = {ENCODER: "patch_embed.proj.bias", EMBEDDER: "_bias", DRAWER: "vae_preprocess_layers.1.bias"}[stem]
    message = refusal(write(".pth", stem, {name: odd_tensors()[kind]}))
    assert f"{stem}.pth: tensor {name}" in message


@pytest.mark.filterwarnings("ignore:.*quantize.*:UserWarning", "ignore:.*deprecated.*:Warning")
def test_a_quantised_tensor_is_named(write: Write) -> None:
    quantised = torch.quantize_per_tensor(torch.zeros(32), 0.1, 0, torch.qint8)
    message = refusal(write(".pth", EMBEDDER, {"_bias": quantised}))
    assert "embedder.pth" in message


@every_file
@pytest.mark.parametrize("kind", ["int64", "uint8", "bool", "complex64", "float8"])
def test_a_safetensors_tensor_that_is_not_plain_floats_is_named(write: Write, stem: str, kind: str) -> None:
    name = {ENCODER: "patch_embed.proj.bias", EMBEDDER: "_bias", DRAWER: "vae_preprocess_layers.1.bias"}[stem]
    message = refusal(write(".safetensors", stem, {name: odd_tensors()[kind]}))
    assert f"{stem}.safetensors: tensor {name}" in message


def test_a_few_bytes_that_claim_terabytes_are_refused_unread(write: Write) -> None:
    folder = write()
    torch.save({"blocks.0.norm1.weight": torch.zeros(1).expand(2**40)}, folder / f"{ENCODER}.pth")
    assert (folder / f"{ENCODER}.pth").stat().st_size < 10_000
    assert "blocks.0.norm1.weight" in refusal(folder)


def test_parameters_and_transposed_tensors_load_as_their_values(write: Write) -> None:
    folder = write()
    state = states()[EMBEDDER]
    as_saved = {
        "projector_2.fc1.weight": torch.nn.Parameter(state["projector_2.fc1.weight"]),
        "projector_2.fc2.weight": state["projector_2.fc2.weight"].t().contiguous().t(),
    }
    torch.save({**state, **as_saved}, folder / "embedder.pth")
    merge = load(folder, "embedder").embedder.merge
    assert torch.equal(merge.fc1.weight, state["projector_2.fc1.weight"])
    assert torch.equal(merge.fc2.weight, state["projector_2.fc2.weight"])
    assert not merge.fc1.weight.requires_grad


# Hostile pickles


class Bomb:
    """On unpickling calls `function(*arguments)`."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def bombs(marker: Path) -> dict[str, Bomb]:
    return {
        "os.system": Bomb(os.system, f"touch '{marker}'"),
        "os.mkdir": Bomb(os.mkdir, str(marker)),
        "exec": Bomb(exec, f"import os; os.mkdir({str(marker)!r})"),
        "torch.save": Bomb(torch.save, {}, str(marker)),
    }


WRAPPINGS: dict[str, Callable[[State, Bomb], object]] = {
    "alone": lambda _, bomb: bomb,
    "entry": lambda state, bomb: {**state, "zzz": bomb},
    "first": lambda state, bomb: {"aaa": bomb, **state},
    "nested": lambda state, bomb: {**state, "optimizer": {"state": [({"deep": bomb},)]}},
}


def dump(content: object, path: Path, form: str) -> None:
    if form == "zip":
        torch.save(content, path)
    elif form == "legacy":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("call", bombs(Path()))
def test_the_hostile_pickles_here_do_run_where_pickles_are_trusted(tmp_path: Path, call: str) -> None:
    marker = tmp_path / "ran"
    pickle.loads(pickle.dumps(bombs(marker)[call], protocol=2))  # noqa: S301 - the point
    assert marker.exists()
    again = tmp_path / "ran again"
    dump({"x": bombs(again)[call]}, tmp_path / "hostile.pth", "zip")
    torch.load(tmp_path / "hostile.pth", weights_only=False)
    assert again.exists()


@every_file
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_hostile_pickle_is_refused_and_never_runs(write: Write, stem: str, form: str, wrapping: str) -> None:
    folder = write()
    marker = folder.parent / "ran"
    for bomb in bombs(marker).values():
        dump(WRAPPINGS[wrapping](states()[stem], bomb), folder / f"{stem}.pth", form)
        assert f"{stem}.pth" in refusal(folder, PART[stem])
        assert not marker.exists()


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_hostile_pickle_under_the_name_of_a_safetensors_file_never_runs(write: Write, form: str) -> None:
    folder = write(".safetensors")
    marker = folder.parent / "ran"
    dump({"_bias": bombs(marker)["os.system"]}, folder / "embedder.safetensors", form)
    assert "embedder.safetensors" in refusal(folder)
    assert not marker.exists()


# viq.json


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"num_heads": 0}',
        b'{"num_heads": -4}',
        b'{"num_heads": true}',
        b'{"num_heads": "16"}',
        b'{"num_heads": 4.0}',
        b'{"num_heads": null}',
        b'{"num_heads": [4]}',
        b'{"num_heads": 4, "size": "4k"}',
        b'{"num_heads": 4, "size": 16}',
        b'{"num_heads": 4, "levels": [8, 8, 4, 4, 4]}',
        b'{"num_heads": 4, "levels": "88865"}',
        b'{"num_heads": 4, "levels": null}',
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused_and_named(write: Write, content: bytes) -> None:
    folder = write()
    (folder / "viq.json").write_bytes(content)
    assert str(folder / "viq.json") in refusal(folder)
    assert (folder / "viq.json").read_bytes() == content


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("heads", [3, 5, 64, 10**30])
def test_heads_that_do_not_divide_the_width_are_refused(write: Write, part: str, heads: int) -> None:
    folder = write()
    (folder / "viq.json").write_text(json.dumps({"num_heads": heads}))
    message = refusal(folder, part)
    assert str(heads) in message
    assert "width 32" in message


def test_without_a_manifest_there_are_16_heads(write: Write) -> None:
    folder = write()
    (folder / "viq.json").unlink()
    assert read_manifest(folder, "16k") == {}
    assert [m.heads for m in load(folder).encoder.modules() if isinstance(m, Attention)] == [16, 16, 16]


def test_a_manifest_that_agrees_is_accepted(write: Write) -> None:
    folder = write()
    (folder / "viq.json").write_text('{"num_heads": 4, "size": "16k", "levels": [8, 8, 8, 6, 5], "note": "mine"}')
    assert load(folder).parts == {"encoder", "embedder", "decoder"}


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
