"""The promise that makes codes keys: an image's values do not depend on company, order or threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import viq.layers
from viq import ViQ
from viq.patches import normalise, pack_images, patchify

SHAPES = ((1, 1), (16, 16), (1, 400), (17, 33), (75, 203), (64, 48), (128, 128), (112, 160), (255, 257), (300, 210))
THREADS = (1, 2, 3, 4)
DTYPES = ("float32", "bfloat16", "float16", "fp8")
Image = npt.NDArray[np.uint8]

IMAGES = [
    np.random.default_rng((height, width)).integers(0, 256, (height, width, 3), np.uint8) for height, width in SHAPES
]


@torch.inference_mode()
def before_quantization(model: ViQ, images: list[Image]) -> list[Tensor]:
    """`project_in`'s output of each image of one pack."""
    packing = pack_images(images, model.row_multiple)
    sizes = [(image.shape[0], image.shape[1]) for image in images]
    patches = normalise(patchify(images, packing), sizes, packing, model.encoder.project_in.weight.dtype)
    return packing.split(model.encoder.project(patches, packing), 4)


class Alone:
    """A model, and each image's values and codes when computed alone by one thread."""

    def __init__(self, root: Path | None, size: str | None, dtype: str) -> None:
        self.model = ViQ.from_pretrained(root, size, device="cpu", dtype=dtype, parts=("encoder",))
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        self.values = [before_quantization(self.model, [image])[0].clone() for image in IMAGES]
        self.codes = [self.model.encode_pixels([image])[0] for image in IMAGES]
        torch.set_num_threads(before)


@pytest.fixture(scope="session", params=DTYPES)
def golden(request: pytest.FixtureRequest, golden_root: Path) -> Alone:
    return Alone(golden_root, "16k", request.param)


@pytest.fixture(scope="session", params=DTYPES)
def nano(request: pytest.FixtureRequest) -> Alone:
    return Alone(None, None, request.param)


packs = st.lists(st.integers(0, len(SHAPES) - 1), min_size=1, max_size=8)
quietly = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@quietly
@given(pack=packs, count=st.sampled_from(THREADS))
def test_golden_values_are_bit_equal_in_any_pack_order_and_thread_count(
    golden: Alone, threads: Callable[[int], None], pack: list[int], count: int
) -> None:
    threads(count)
    for i, values in zip(pack, before_quantization(golden.model, [IMAGES[i] for i in pack]), strict=True):
        assert torch.equal(values, golden.values[i]), SHAPES[i]


@quietly
@given(pack=packs, count=st.sampled_from(THREADS))
def test_nano_values_are_bit_equal_in_any_pack_order_and_thread_count(
    nano: Alone, threads: Callable[[int], None], pack: list[int], count: int
) -> None:
    threads(count)
    for i, values in zip(pack, before_quantization(nano.model, [IMAGES[i] for i in pack]), strict=True):
        assert torch.equal(values, nano.values[i]), SHAPES[i]


@pytest.mark.parametrize("count", THREADS)
def test_codes_are_equal_alone_packed_and_reversed(nano: Alone, threads: Callable[[int], None], count: int) -> None:
    threads(count)
    assert nano.model.encode_pixels(IMAGES) == nano.codes
    assert nano.model.encode_pixels(IMAGES[::-1]) == nano.codes[::-1]


def test_a_large_image_changes_nothing_for_a_small_one(nano: Alone) -> None:
    large = np.random.default_rng(1).integers(0, 256, (640, 640, 3), np.uint8)
    assert torch.equal(before_quantization(nano.model, [IMAGES[1], large])[0], nano.values[1])
    assert torch.equal(before_quantization(nano.model, [large, IMAGES[1]])[1], nano.values[1])


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="the control is MKL's product")
def test_the_comparison_notices_a_product_that_depends_on_the_rows(
    golden_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = Alone(golden_root, "16k", "float32")
    monkeypatch.setattr(viq.layers, "linear", torch.nn.functional.linear)
    golden.model.row_multiple = 1
    tall = [IMAGES[1], IMAGES[8]]
    alone = [before_quantization(golden.model, [image])[0] for image in tall]
    both = before_quantization(golden.model, tall)
    ours = [before_quantization(golden.model, [image])[0] for image in tall]
    assert all(torch.equal(a, o) for a, o in zip(alone, ours, strict=True))  # repeatable, so a difference is the pack's
    assert not all(torch.equal(a, b) for a, b in zip(alone, both, strict=True))
