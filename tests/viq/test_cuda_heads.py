"""Compiled heads, recorded graphs and cuDNN's attention on a GPU, where there is one. None of it has been run yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from viq import Codes, ViQ

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

SHAPES = ((16, 16), (33, 50), (128, 128), (255, 257), (512, 512), (640, 768))
IMAGES = [np.random.default_rng(shape).integers(0, 256, (*shape, 3), np.uint8) for shape in SHAPES]


def loaded(root: Path, **options: Any) -> ViQ:
    return ViQ.from_pretrained(root, "16k", device="cuda", parts=("encoder",), **options)


def arrays(codes: list[Codes]) -> list[bytes]:
    return [one.array.tobytes() for one in codes]


@pytest.mark.parametrize("head", ["compile", "torchscript", "aoti"])
def test_a_compiled_head_gives_codes_that_do_not_depend_on_the_pack(
    golden_root: Path, tmp_path: Path, head: str
) -> None:
    file = tmp_path / ("head.pt2" if head == "aoti" else "head.pt")
    eager = loaded(golden_root)
    if head != "compile":
        eager.build_head(head, file)
    model = loaded(golden_root, head=head, head_file=() if head == "compile" else file)
    assert model.invariant
    together = model.encode_pixels(IMAGES)
    assert [model.encode_pixels([image])[0] for image in IMAGES] == together
    same = [np.mean(a.array == b.array) for a, b in zip(together, eager.encode_pixels(IMAGES), strict=True)]
    assert np.mean(same) > 0.95


def test_recorded_graphs_have_the_bits_of_the_eager_network(golden_root: Path) -> None:
    eager, graphs = loaded(golden_root), loaded(golden_root, cuda_graphs=True)
    for pack in (IMAGES[:1], IMAGES[:4], IMAGES[3:4] * 3, IMAGES[4:5], IMAGES[:2] * 20, IMAGES):
        assert arrays(graphs.encode_pixels(pack)) == arrays(eager.encode_pixels(pack))


def test_images_attended_by_cudnn_have_the_same_codes_in_any_pack(golden_root: Path) -> None:
    model = loaded(golden_root, cudnn_attention_from=1024)
    alone = [model.encode_pixels([image])[0] for image in IMAGES]
    assert model.encode_pixels(IMAGES) == alone
    assert model.encode_pixels(IMAGES[::-1] * 2) == alone[::-1] * 2
