"""`ViQ`, the library's face."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import viq.model
from viq import Codes, Embedder, ViQ
from viq.errors import InvalidInput, UnknownModel, ViQError, WeightsError
from viq.fingerprint import mode
from viq.weights_root import PACKAGED

MakeRoot = Callable[..., Path]
SHAPES = ((20, 35), (1, 1), (64, 64), (64, 64), (64, 48), (64, 64))


def noise(height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng((height, width)).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def nano() -> ViQ:
    return ViQ.from_pretrained(device="cpu")


def test_without_a_root_the_model_is_the_packaged_nano(nano: ViQ) -> None:
    assert (nano.size, nano.untrained, nano.dtype, nano.device) == ("nano", False, "float32", "cpu")
    assert nano.family == ViQ.from_pretrained(PACKAGED, device="cpu", dtype="bfloat16", parts=("embedder",)).family
    with pytest.raises(UnknownModel, match="needs a weights root"):
        ViQ.from_pretrained(size="16k")
    with pytest.raises(UnknownModel, match="needs a weights root"):
        Embedder.from_pretrained(size="16k")


def test_a_folder_that_says_so_is_untrained(make_root: MakeRoot) -> None:
    root = make_root()
    manifest = root / "converted_16k" / "viq.json"
    assert not ViQ.from_pretrained(root, device="cpu").untrained
    manifest.write_text('{"num_heads": 4, "untrained": true}')
    assert ViQ.from_pretrained(root, device="cpu").untrained
    manifest.write_text('{"num_heads": 4, "untrained": "yes"}')
    with pytest.raises(WeightsError, match="untrained is 'yes', expected true or false"):
        ViQ.from_pretrained(root, device="cpu")


def test_images_codes_features_and_pictures_have_the_shapes_they_should(nano: ViQ) -> None:
    images = [noise(*shape) for shape in SHAPES]
    codes = nano.encode([Image.fromarray(images[0]), *images[1:]])
    assert [c.image_size for c in codes] == list(SHAPES)
    assert [c.grid for c in codes] == [(2, 3), (1, 1), (4, 4), (4, 4), (4, 3), (4, 4)]
    assert all(c.fingerprint == nano.fingerprint and c.size == "nano" for c in codes)
    assert [tuple(f.shape) for f in nano.embed(codes)] == [(c.grid[0] * c.grid[1], nano.width) for c in codes]
    assert [p.shape for p in nano.decode(codes)] == [(*shape, 3) for shape in SHAPES]


def test_codes_use_much_of_the_codebook_even_on_noise(nano: ViQ) -> None:
    codes = nano.encode([noise(256, 256)])[0]
    assert len(np.unique(codes.array)) > 200  # of 1024: a constant network would not test much


def test_more_images_than_one_pack_holds_come_out_as_alone(nano: ViQ, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [noise(*shape) for shape in SHAPES]
    codes = [nano.encode([image])[0] for image in images]
    pictures = [nano.decode([c])[0] for c in codes]
    monkeypatch.setattr(viq.model, "_PACK_PATCHES", 17)
    assert nano.encode(images) == codes
    for together, alone in zip(nano.decode(codes), pictures, strict=True):
        assert np.abs(together.astype(int) - alone).max() <= 1


def test_pictures_of_one_size_are_decoded_together_as_alone(nano: ViQ) -> None:
    codes = nano.encode([noise(*shape) for shape in SHAPES])
    for together, one in zip(nano.decode(codes), codes, strict=True):
        assert np.abs(together.astype(int) - nano.decode([one])[0]).max() <= 1  # truncation at a last bit


def test_calls_from_several_threads_give_the_codes_of_one(nano: ViQ) -> None:
    images = [noise(16 * i, 48) for i in range(1, 9)]
    expected = [nano.encode([image])[0] for image in images]
    fresh = ViQ.from_pretrained(device="cpu", parts=("encoder",))  # with empty caches
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda image: fresh.encode([image])[0], images * 4)) == expected * 4


def test_empty_lists_are_answered_with_empty_lists(nano: ViQ) -> None:
    assert (nano.encode([]), nano.embed([]), nano.decode([])) == ([], [], [])


def test_the_embedder_alone_gives_the_models_features(make_root: MakeRoot) -> None:
    root = make_root()
    model = ViQ.from_pretrained(root, device="cpu")
    codes = model.encode([noise(40, 70), noise(16, 16)])
    packed = torch.from_numpy(np.concatenate([c.flat for c in codes]).astype(np.int32))
    for path in (root / "converted_16k").glob("*"):
        if path.stem != "embedder":
            path.unlink()
    embedder = Embedder.from_pretrained(root, "16k", device="cpu")
    expected = torch.cat(model.embed(codes))
    assert torch.equal(embedder(packed), expected)
    assert torch.equal(embedder(packed.view(-1, 4)), expected)
    assert embedder(packed[:0]).shape == (0, model.width)


@pytest.mark.parametrize(
    ("codes", "named"),
    [([1, 2, 3], r"\(3,\)"), ([0, 1, 2, 15360], "15360"), ([-1, 0, 0, 0], "-1"), ([0.5] * 4, "float32")],
)
def test_the_embedder_refuses_what_are_no_codes(make_root: MakeRoot, codes: list[float], named: str) -> None:
    embedder = Embedder.from_pretrained(make_root(), "16k", device="cpu")
    with pytest.raises(InvalidInput, match=named):
        embedder(torch.tensor(codes))


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"device": "gpu"}, InvalidInput, "'gpu'"),
        ({"device": "cuda:99"}, InvalidInput, "cuda:99"),
        ({"device": "cpu:1"}, InvalidInput, "cpu:1"),
        ({"dtype": "int8"}, InvalidInput, "int8"),
        ({"parts": ("encoder", "tail")}, InvalidInput, "tail"),
        ({"parts": ()}, InvalidInput, "parts"),
        ({"size": "16k"}, UnknownModel, "weights root"),
        ({"size": "3k"}, UnknownModel, "3k"),
    ],
)
def test_options_there_are_not_are_refused_by_name(options: dict[str, Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        ViQ.from_pretrained(**{"device": "cpu", **options})


def test_a_value_that_is_no_number_never_becomes_a_code(make_root: MakeRoot) -> None:
    bias = torch.zeros(5)
    bias[2] = torch.nan
    root = make_root(encoder={"fusion_block.vq_low.project_in.bias": bias})
    with pytest.raises(ViQError, match="no numbers in float32"):
        ViQ.from_pretrained(root, device="cpu").encode([noise(20, 20)])


def test_what_the_process_has_switched_on_does_not_move_a_code(nano: ViQ) -> None:
    image = noise(80, 112)
    codes = nano.encode([image])
    fresh = ViQ.from_pretrained(device="cpu", parts=("encoder",))
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert fresh.encode([image]) == codes
            assert ViQ.from_pretrained(device="cpu").encode([image]) == codes
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_drawer_without_its_last_layer_is_told_so(make_root: MakeRoot) -> None:
    root = make_root(drawer={"vae_head.conv_out.weight": None})
    with pytest.raises(WeightsError, match=r"missing tensor vae_head\.conv_out\.weight"):
        ViQ.from_pretrained(root, device="cpu")


def test_numerics_that_depend_on_the_batch_have_a_mode_of_their_own() -> None:
    cpu = torch.device("cpu")
    assert mode(cpu, torch.float32) == mode(cpu, torch.float32, "strict") != mode(cpu, torch.float32, "none")


def test_a_part_that_was_not_loaded_is_named() -> None:
    encoder = ViQ.from_pretrained(device="cpu", parts=("encoder",))
    codes = encoder.encode([noise(16, 16)])
    assert encoder.parts == {"encoder"}
    with pytest.raises(WeightsError, match="embedder was not loaded"):
        encoder.embed(codes)
    with pytest.raises(WeightsError, match="decoder was not loaded"):
        encoder.decode(codes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "fp8"])
def test_every_dtype_goes_all_the_way(make_root: MakeRoot, dtype: str) -> None:
    model = ViQ.from_pretrained(make_root(), device="cpu", dtype=dtype)
    codes = model.encode([noise(33, 20)])
    assert model.dtype == dtype
    assert model.embed(codes)[0].dtype == getattr(torch, "bfloat16" if dtype == "fp8" else dtype)
    assert model.decode(codes)[0].std() > 1


@pytest.mark.parametrize("size", ["2k", "4k", "8k", "16k", "64k"])
def test_every_released_size_encodes_and_decodes(make_root: MakeRoot, size: str) -> None:
    model = ViQ.from_pretrained(make_root(size), device="cpu")
    codes = model.encode([noise(33, 64)])[0]
    assert (model.size, codes.size) == (size, size)
    assert codes.array.max() < model.codebook_size
    assert len(np.unique(codes.array)) > 30
    assert model.decode([codes])[0].shape == (33, 64, 3)
    assert Codes.from_npz(codes.npz_bytes()) == codes
