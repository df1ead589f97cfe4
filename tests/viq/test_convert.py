"""Training checkpoints to released files: the authors' own conversion is the measure."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from viq.convert import PREFIX, _Networks, _verify, convert, rename, split
from viq.errors import InvalidInput, UnknownModel, WeightsError
from viq.model import ViQ
from viq.tensor_file import TensorFile, open_tensors

GOLDEN = Path(__file__).parent.parent / "golden"
TRAINED = GOLDEN / "vision_tower_4k.pth"
STEMS = ("model_viq_fsq_4k", "embedder", "index_drawer")
HEADS = 4
FORMATS = ("pth", "safetensors")
Alter = Callable[[Mapping[str, Tensor | None]], Path]

every_format = pytest.mark.parametrize("file_format", FORMATS)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Matrices this small only lose by being shared between threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The golden training checkpoint converted with verification, by format."""
    return {
        form: convert(TRAINED, "4k", tmp_path_factory.mktemp(form), num_heads=HEADS, file_format=form, verify=True)
        for form in FORMATS
    }


@pytest.fixture(scope="session")
def trained() -> dict[str, Tensor]:
    """The golden training checkpoint's tensors."""
    return dict(open_tensors(TRAINED))


@pytest.fixture
def alter(tmp_path: Path, trained: dict[str, Tensor]) -> Alter:
    """Writes the training checkpoint with changes, named without the prefix; `None` takes a tensor out."""

    def alter(changes: Mapping[str, Tensor | None]) -> Path:
        changed = {**trained, **{PREFIX + name: tensor for name, tensor in changes.items()}}
        path = tmp_path / "vision_tower.pth"
        torch.save({name: tensor for name, tensor in changed.items() if tensor is not None}, path)
        return path

    return alter


@pytest.fixture
def refusal(tmp_path: Path) -> Callable[..., str]:
    """Converts into a root that holds something, expects a `WeightsError` that names the checkpoint and no change."""

    def refusal(checkpoint: Path, size: str = "4k", file_format: str = "pth", num_heads: int = HEADS) -> str:
        root, absent = tmp_path / "root", tmp_path / "absent"
        (root / "converted_16k").mkdir(parents=True, exist_ok=True)
        (root / "converted_16k" / "viq.json").write_text("{}")
        before = sorted(root.rglob("*")), contents(root)
        for target in (root, absent):
            with pytest.raises(WeightsError) as caught:
                convert(checkpoint, size, target, num_heads=num_heads, file_format=file_format)
        assert (sorted(root.rglob("*")), contents(root)) == before
        assert not absent.exists()
        assert str(checkpoint) in str(caught.value)
        return str(caught.value)

    return refusal


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


# Names, position grids and patch kernels


def test_training_names_become_released_names() -> None:
    tensors = {
        f"{PREFIX}dualvq_head.vq_low.fsq.project_in.weight": torch.zeros(1),
        f"{PREFIX}movq_preprocess_layers.0.fc1.weight": torch.zeros(2),
        f"{PREFIX}movq_head.movq.decoder.conv_in.bias": torch.zeros(3),
        f"{PREFIX}perceptual_loss.net.weight": torch.zeros(4),
        f"{PREFIX}movq_head.vae_cpu.weight": torch.zeros(5),
        "base_model.model.lm_head.weight": torch.zeros(6),
        f"x{PREFIX}norm.weight": torch.zeros(7),
        f"{PREFIX}pos_embed": torch.zeros(1, 128 * 128, 8),
        f"{PREFIX}patch_embed.proj.weight": torch.zeros(8, 3, 16, 16),
    }
    assert set(rename(tensors)) == {
        "fusion_block.vq_low.project_in.weight",
        "vae_preprocess_layers.0.fc1.weight",
        "vae_head.vae.decoder.conv_in.bias",
        "pos_embed",
        "patch_embed.proj.weight",
    }


@pytest.mark.parametrize("side", [1, 8, 127, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_square_position_grid_is_resized_bicubically(side: int, dtype: torch.dtype) -> None:
    grid = torch.randn(1, side * side, 8, generator=torch.Generator().manual_seed(side)).to(dtype)
    tensors = {f"{PREFIX}pos_embed": grid, f"{PREFIX}patch_embed.proj.weight": torch.zeros(8, 3, 16, 16)}
    resized = rename(tensors)["pos_embed"]
    map_ = grid.view(1, side, side, 8).permute(0, 3, 1, 2)
    expected = F.interpolate(map_, size=(128, 128), mode="bicubic", align_corners=False)
    assert resized.dtype == dtype
    assert torch.equal(resized, expected.flatten(2).transpose(1, 2))


def test_a_position_grid_and_patch_kernel_of_the_released_size_are_left_alone() -> None:
    draw = torch.Generator().manual_seed(0)
    grid, kernel = torch.randn(1, 128 * 128, 8, generator=draw), torch.randn(8, 3, 16, 16, generator=draw)
    state = rename({f"{PREFIX}pos_embed": grid, f"{PREFIX}patch_embed.proj.weight": kernel})
    assert torch.equal(state["pos_embed"], grid)
    assert torch.equal(state["patch_embed.proj.weight"], kernel)


@pytest.mark.parametrize("shape", [(14, 14), (32, 32), (14, 16)])
def test_a_patch_kernel_of_another_size_is_resized_and_the_result_encodes(
    alter: Alter, tmp_path: Path, shape: tuple[int, int]
) -> None:
    kernel = torch.randn(64, 3, *shape, generator=torch.Generator().manual_seed(0)) * 0.05
    folder = convert(alter({"patch_embed.proj.weight": kernel}), "4k", tmp_path, num_heads=HEADS)
    stored = open_tensors(folder / "model_viq_fsq_4k.pth")["patch_embed.proj.weight"]
    assert torch.equal(stored, F.interpolate(kernel, size=(16, 16), mode="bicubic", align_corners=False))
    model = ViQ.from_pretrained(tmp_path, device="cpu", parts=("encoder",))
    assert model.encode([np.zeros((16, 16, 3), np.uint8)])[0].array.shape == (1, 1, 4)


def test_another_grid_converts_and_verifies(alter: Alter, tmp_path: Path) -> None:
    grid = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(0)) * 0.3
    folder = convert(alter({"pos_embed": grid}), "4k", tmp_path, num_heads=HEADS, verify=True)
    assert open_tensors(folder / "model_viq_fsq_4k.pth")["pos_embed"].shape == (1, 16384, 64)


@pytest.mark.parametrize("shape", [(1, 500, 64), (576, 64), (2, 576, 64), (1, 0, 64), (1, 24, 24, 64), (1, 576, 32)])
def test_a_position_embedding_that_is_no_square_grid_is_refused(
    alter: Alter, refusal: Callable[..., str], shape: tuple[int, ...]
) -> None:
    assert "pos_embed" in refusal(alter({"pos_embed": torch.zeros(shape)}))


@pytest.mark.parametrize("shape", [(64, 768), (64, 3, 0, 16), (64, 4, 16, 16), (64, 3, 1, 16, 16)])
def test_a_patch_kernel_that_is_none_is_refused(
    alter: Alter, refusal: Callable[..., str], shape: tuple[int, ...]
) -> None:
    assert "patch_embed.proj" in refusal(alter({"patch_embed.proj.weight": torch.zeros(shape)}))


def test_a_bfloat16_checkpoint_stays_bfloat16_and_verifies(
    trained: dict[str, Tensor], alter: Alter, tmp_path: Path
) -> None:
    halved = {name.removeprefix(PREFIX): t.bfloat16() for name, t in trained.items() if name.startswith(PREFIX)}
    folder = convert(alter(halved), "4k", tmp_path / "out", num_heads=HEADS, file_format="safetensors", verify=True)
    for stem in STEMS:
        assert {t.dtype for t in open_tensors(folder / f"{stem}.safetensors").values()} == {torch.bfloat16}
    assert ViQ.from_pretrained(tmp_path / "out", device="cpu", dtype="bfloat16").size == "4k"


@every_format
def test_tied_tensors_and_views_convert_as_their_values(
    trained: dict[str, Tensor], alter: Alter, tmp_path: Path, file_format: str
) -> None:
    one = "movq_preprocess_layers.2.norm1.weight"
    two = one.replace("norm1", "norm2")
    both = torch.stack([trained[PREFIX + one], trained[PREFIX + two]])
    tied = trained[f"{PREFIX}norm.weight"].clone()
    path = alter({one: both[0], two: both[1], "norm.weight": tied, "norm.bias": tied})
    folder = convert(path, "4k", tmp_path / "out", num_heads=HEADS, file_format=file_format, verify=True)
    drawer = open_tensors(folder / f"index_drawer.{file_format}")
    assert torch.equal(drawer["vae_preprocess_layers.2.norm2.weight"], both[1])
    encoder = open_tensors(folder / f"model_viq_fsq_4k.{file_format}")
    assert torch.equal(encoder["norm.weight"], tied)
    assert torch.equal(encoder["norm.bias"], tied)


def test_tensors_that_are_dropped_anyway_may_be_of_any_kind(
    trained: dict[str, Tensor], converted: dict[str, Path], tmp_path: Path
) -> None:
    count = torch.tensor(7)
    dropped = {"model.layers.0.position_ids": count, f"{PREFIX}perceptual_loss.bn.num_batches_tracked": count}
    torch.save({**trained, **dropped}, tmp_path / "vision_tower.pth")
    folder = convert(tmp_path / "vision_tower.pth", "4k", tmp_path / "out", num_heads=HEADS)
    assert contents(folder) == contents(converted["pth"])


# Refusals


@pytest.mark.parametrize(
    ("name", "released"),
    [
        ("pos_embed", "pos_embed"),
        ("patch_embed.proj.weight", "patch_embed.proj.weight"),
        ("blocks.0.attn.qkv.bias", "blocks.0.attn.qkv.bias"),
        ("dualvq_head.vq_low.fsq.project_in.weight", "fusion_block.vq_low.project_in.weight"),
        ("dualvq_head.vq_low.fsq.project_in.bias", "fusion_block.vq_low.project_in.bias"),
        ("dualvq_head.vq_low.fsq.project_out.weight", "projector_1.weight"),
        ("dualvq_head.vq_low_norm_trick_post_quantize_affine_bias", "_bias"),
        ("movq_preprocess_layers.1.weight", "vae_preprocess_layers.1.weight"),
        ("movq_head.conv_out.weight", "vae_head.conv_out.weight"),
        ("movq_head.vae.decoder.conv_in.weight", "vae_head.vae.decoder.conv_in.weight"),
    ],
)
def test_a_checkpoint_with_a_tensor_missing_is_refused_by_its_name(
    trained: dict[str, Tensor], alter: Alter, refusal: Callable[..., str], name: str, released: str
) -> None:
    assert PREFIX + name in trained
    message = refusal(alter({name: None}))
    assert released in message
    assert "missing" in message


def test_a_checkpoint_with_an_unknown_tensor_is_refused_by_its_name(alter: Alter, refusal: Callable[..., str]) -> None:
    assert "unexpected tensor adapter.weight" in refusal(alter({"adapter.weight": torch.zeros(2)}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["blocks.0.mlp.fc1.weight", "movq_preprocess_layers.1.bias"])
def test_a_checkpoint_with_a_number_that_is_none_is_refused(
    trained: dict[str, Tensor], alter: Alter, refusal: Callable[..., str], name: str, value: float
) -> None:
    spoilt = trained[PREFIX + name].clone()
    spoilt.view(-1)[-1] = value
    assert name.removeprefix("movq_") in refusal(alter({name: spoilt}))


@pytest.mark.parametrize("size", ["64k", "nano"])
def test_a_checkpoint_of_another_size_is_refused(refusal: Callable[..., str], size: str) -> None:
    message = refusal(TRAINED, size=size)
    assert "project_in.weight" in message
    assert size in message


def test_two_tensors_that_would_become_one_are_refused(
    trained: dict[str, Tensor], alter: Alter, refusal: Callable[..., str]
) -> None:
    twin = "fusion_block.vq_low.project_in.weight"
    original = trained[f"{PREFIX}dualvq_head.vq_low.fsq.project_in.weight"]
    assert twin in refusal(alter({twin: original}))


def test_heads_that_do_not_divide_the_width_are_refused(refusal: Callable[..., str]) -> None:
    assert "5 heads" in refusal(TRAINED, num_heads=5)


def test_released_files_are_no_training_checkpoint(converted: dict[str, Path], refusal: Callable[..., str]) -> None:
    for form in FORMATS:
        assert PREFIX in refusal(converted[form] / f"embedder.{form}")


@pytest.mark.parametrize("length", [0, 1, 100, 4096, 2_000_000, -100, -1])
def test_a_checkpoint_cut_short_is_refused(tmp_path: Path, refusal: Callable[..., str], length: int) -> None:
    path = tmp_path / "cut.pth"
    path.write_bytes(TRAINED.read_bytes()[:length])
    assert refusal(path)


@pytest.mark.parametrize("content", [b"noise" * 1000, b"PK\x03\x04" + b"noise" * 1000])
def test_something_else_is_refused(tmp_path: Path, refusal: Callable[..., str], content: bytes) -> None:
    path = tmp_path / "noise.pth"
    path.write_bytes(content)
    assert refusal(path)


def test_a_checkpoint_that_is_not_there_is_refused(tmp_path: Path, refusal: Callable[..., str]) -> None:
    assert "no such file" in refusal(tmp_path / "absent.pth")


class Bomb:
    """On unpickling makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("place", ["alone", "kept", "dropped", "nested"])
def test_a_hostile_checkpoint_is_refused_and_never_runs(
    trained: dict[str, Tensor], tmp_path: Path, refusal: Callable[..., str], form: str, place: str
) -> None:
    bomb, path = Bomb(tmp_path / "ran"), tmp_path / "hostile.pth"
    content = {
        "alone": bomb,
        "kept": {**trained, f"{PREFIX}norm.weight": bomb},
        "dropped": {**trained, f"{PREFIX}perceptual_loss.weight": bomb},
        "nested": {**trained, "state": {"optimizer": [bomb]}},
    }[place]
    torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    assert refusal(path)
    assert not bomb.marker.exists()


@every_format
def test_a_second_format_of_the_same_model_is_refused_in_one_folder(tmp_path: Path, file_format: str) -> None:
    other = {"pth": "safetensors", "safetensors": "pth"}[file_format]
    convert(TRAINED, "4k", tmp_path, num_heads=HEADS, file_format=other)
    before = contents(tmp_path)
    with pytest.raises(WeightsError, match=f"embedder.{other}"):
        convert(TRAINED, "4k", tmp_path, num_heads=HEADS, file_format=file_format)
    assert contents(tmp_path) == before


def test_an_unknown_size_format_or_number_of_heads_is_the_callers_error(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="5k"):
        convert(TRAINED, "5k", tmp_path, num_heads=HEADS)
    with pytest.raises(InvalidInput, match="onnx"):
        convert(TRAINED, "4k", tmp_path, num_heads=HEADS, file_format="onnx")
    for heads in (0, -4):
        with pytest.raises(InvalidInput, match=str(heads)):
            convert(TRAINED, "4k", tmp_path, num_heads=heads)
    assert list(tmp_path.iterdir()) == []


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
