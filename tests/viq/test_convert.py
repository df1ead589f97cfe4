"""Training checkpoints to released files: the authors' own conversion is the measure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from tests.viq.conversion import FORMATS, GOLDEN, HEADS, STEMS, TRAINED, contents, every_format
from torch import Tensor

from viq.convert import _Networks, _verify, convert, rename, split
from viq.errors import WeightsError
from viq.model import ViQ
from viq.tensor_file import TensorFile, open_tensors

pytestmark = pytest.mark.usefixtures("one_thread")

# What comes out


@every_format
@pytest.mark.parametrize("stem", STEMS)
def test_every_tensor_equals_what_the_released_converter_makes(
    converted: dict[str, Path], file_format: str, stem: str
) -> None:
    expected = json.loads((GOLDEN / "converted_4k.json").read_text())[stem]
    file = open_tensors(converted[file_format] / f"{stem}.{file_format}")
    assert file.keys() == expected.keys()
    for name, tensor in file.items():
        digest = hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]
        assert [str(tensor.dtype), list(tensor.shape), digest] == expected[name], name


@every_format
def test_the_folder_holds_three_files_and_a_manifest_and_the_root_only_the_folder(
    converted: dict[str, Path], file_format: str
) -> None:
    folder = converted[file_format]
    assert folder.name == "converted_4k"
    assert list(folder.parent.iterdir()) == [folder]
    assert {p.name for p in folder.iterdir()} == {f"{stem}.{file_format}" for stem in STEMS} | {"viq.json"}
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o644}
    assert folder.stat().st_mode & 0o777 == 0o755
    manifest = json.loads((folder / "viq.json").read_text())
    assert (manifest["size"], manifest["levels"], manifest["num_heads"]) == ("4k", [8, 8, 4, 4, 4], HEADS)


@every_format
def test_a_second_run_gives_the_same_bytes_beside_and_in_place(
    converted: dict[str, Path], file_format: str, tmp_path: Path
) -> None:
    first = contents(converted[file_format])
    for _ in range(2):
        again = convert(TRAINED, "4k", tmp_path, num_heads=HEADS, file_format=file_format)
        assert contents(again) == first
        assert list(tmp_path.iterdir()) == [again]


@every_format
def test_the_output_loads_encodes_and_decodes_and_loading_leaves_it_as_it_was(
    converted: dict[str, Path], file_format: str
) -> None:
    folder = converted[file_format]
    before = contents(folder)
    model = ViQ.from_pretrained(folder.parent, device="cpu", dtype="float32")
    assert (model.size, model.width) == ("4k", 64)
    picture = np.random.default_rng(0).integers(0, 256, (33, 50, 3), np.uint8)
    codes = model.encode([picture])
    assert codes[0].array.shape == (3, 4, 4)
    assert int(codes[0].array.max()) < 4096
    assert model.decode(codes)[0].shape == picture.shape
    assert contents(folder) == before


def test_the_family_is_that_of_the_weights_whatever_the_format(converted: dict[str, Path]) -> None:
    families = {json.loads((folder / "viq.json").read_text())["family"] for folder in converted.values()}
    assert len(families) == 1
    model = ViQ.from_pretrained(converted["pth"].parent, device="cpu")
    assert {model.family} == families


def test_both_formats_give_the_same_codes_and_pictures(converted: dict[str, Path]) -> None:
    one, two = (ViQ.from_pretrained(converted[form].parent, device="cpu", dtype="float32") for form in FORMATS)
    picture = np.random.default_rng(1).integers(0, 256, (40, 24, 3), np.uint8)
    codes = one.encode([picture])
    assert codes == two.encode([picture])
    assert np.array_equal(one.decode(codes)[0], two.decode(codes)[0])


def test_progress_names_every_step(tmp_path: Path) -> None:
    said: list[str] = []
    convert(TRAINED, "4k", tmp_path, num_heads=HEADS, verify=True, progress=said.append)
    assert str(TRAINED) in said[0]
    assert [next(s for s in STEMS if s in line) for line in said[1:4]] == list(STEMS)
    assert "verifying" in said[4]


# Verification


def networks(trained: Mapping[str, Tensor], **added: float) -> _Networks:
    """The networks of the golden checkpoint with a number added to some tensors of its files, by released name."""
    states = split(rename(trained), "4k")
    for name, amount in added.items():
        stem, tensor = name.split(":")
        states[stem] = {**states[stem], tensor: states[stem][tensor] + amount}
    return _Networks({stem: TensorFile(Path(stem), state) for stem, state in states.items()}, "4k", HEADS)


def test_networks_that_are_equal_verify(trained: dict[str, Tensor]) -> None:
    _verify(networks(trained), networks(trained))


@pytest.mark.parametrize(
    "change",
    [
        "model_viq_fsq_4k:fusion_block.vq_low.project_in.bias",
        "model_viq_fsq_4k:patch_embed.proj.weight",
        "model_viq_fsq_4k:blocks.0.mlp.fc1.bias",
        "embedder:projector_1.bias",
        "embedder:_bias",
        "index_drawer:vae_preprocess_layers.1.bias",
        "index_drawer:vae_head.vae.decoder.conv_out.bias",
    ],
)
def test_verification_fails_where_one_tensor_of_one_file_differs(trained: dict[str, Tensor], change: str) -> None:
    with pytest.raises(WeightsError, match=r"verification failed: .* differ by up to [0-9]"):
        _verify(networks(trained, **{change: 0.3}), networks(trained))


def test_verification_fails_on_a_single_low_order_bit(trained: dict[str, Tensor]) -> None:
    with pytest.raises(WeightsError, match="verification failed"):
        _verify(networks(trained, **{"index_drawer:vae_head.vae.decoder.conv_out.bias": 1e-6}), networks(trained))


def test_a_file_altered_after_it_was_written_fails_verification_and_nothing_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk, so to say, flips a bit: the verification reads the files, not the memory they were written from."""
    import viq.convert

    write = viq.convert._write

    def write_badly(state: dict[str, Tensor], path: Path) -> None:
        spoilt = {**state, "_bias": state["_bias"] + 1} if path.stem == "embedder" else state
        write(spoilt, path)

    monkeypatch.setattr(viq.convert, "_write", write_badly)
    with pytest.raises(WeightsError, match="verification failed"):
        convert(TRAINED, "4k", tmp_path, num_heads=HEADS, verify=True)
    assert list(tmp_path.iterdir()) == []
