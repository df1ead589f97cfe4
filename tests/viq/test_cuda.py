"""The promise on a GPU, where there is one."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from viq import ViQ

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

SHAPES = ((1, 1), (16, 16), (33, 50), (128, 128), (112, 160), (255, 257), (512, 512), (1024, 768))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("size", ["16k", None])
def test_codes_are_equal_alone_and_in_any_pack(golden_root: Path, size: str | None, dtype: str) -> None:
    model = ViQ.from_pretrained(golden_root if size else None, size, device="cuda", dtype=dtype)
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (*shape, 3), np.uint8) for shape in SHAPES]
    alone = [model.encode_pixels([image])[0] for image in images]
    order = random.Random(0)
    for _ in range(20):
        pack = [order.randrange(len(images)) for _ in range(order.randrange(1, 9))]
        assert model.encode_pixels([images[i] for i in pack]) == [alone[i] for i in pack]


def test_float32_on_a_gpu_agrees_with_the_cpu_but_for_rounding(golden_root: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (160, 112, 3), np.uint8)
    cpu, gpu = (ViQ.from_pretrained(golden_root, "16k", device=d, dtype="float32") for d in ("cpu", "cuda"))
    ours, theirs = cpu.encode_pixels([image])[0], gpu.encode_pixels([image])[0]
    assert (ours.array == theirs.array).mean() > 0.99
    assert np.abs(cpu.decode([ours])[0].astype(int) - gpu.decode([theirs], any_fingerprint=True)[0]).mean() < 2
