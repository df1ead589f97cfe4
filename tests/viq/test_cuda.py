"""The promise on a GPU, where there is one."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from viq import ViQ
from viq.fp8 import Fp8Linear
from viq.layers import Linear

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

needs_fp8 = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="no 8-bit matrix instructions"
)

SHAPES = ((1, 1), (16, 16), (33, 50), (128, 128), (112, 160), (255, 257), (512, 512), (1024, 768))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", pytest.param("fp8", marks=needs_fp8)])
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


@needs_fp8
@torch.inference_mode()
def test_a_product_in_8_bits_on_a_gpu_is_the_one_that_a_cpu_emulates_but_for_rounding() -> None:
    make = torch.Generator().manual_seed(0)
    plain = Linear(1536, 512)
    plain.weight.copy_(torch.randn(plain.weight.shape, generator=make) * 1536**-0.5)
    x = torch.randn(256, 1536, generator=make).to(torch.bfloat16)
    cpu = Fp8Linear(plain.to(torch.bfloat16))
    ours, theirs = cpu(x).float(), Fp8Linear(plain.to("cuda"))(x.cuda()).cpu().float()
    # One step of bfloat16, and what tensor cores lose that keep some 14 bits of a sum between two additions in float32.
    assert ((ours - theirs).abs() <= 2**-7 * ours.abs() + 2**-7).all()
    assert (ours == theirs).float().mean() > 0.5
