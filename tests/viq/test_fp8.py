"""dtype fp8: the products of the trunk in 8 bits, against the format's own definition."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tests.viq.conftest import TINY, MakeRoot, noise
from torch import Tensor

from viq import Embedder, ViQ
from viq.elementwise import gelu
from viq.errors import InvalidInput, ViQError
from viq.fp8 import Fp8Linear, emulated, multiplied, quantised
from viq.hardware import check_fp8
from viq.layers import Linear
from viq.random_weights import encoder_state

# Magnitudes of float8_e4m3fn by code, 0 to 126 (127 is NaN): 4 bits of exponent with a bias of 7, 3 of mantissa.
MAGNITUDES = np.array(
    [(code & 7) / 8 * 2.0**-6 if code < 8 else (1 + (code & 7) / 8) * 2.0 ** ((code >> 3) - 7) for code in range(127)]
)
IMAGES = [noise(*shape) for shape in ((48, 64), (16, 16), (130, 75), (96, 112))]
Array = npt.NDArray[np.float64]


def nearest(values: npt.NDArray[np.float32]) -> Array:
    """The nearest number of the format, of two equally near that with the even code."""
    middles = (MAGNITUDES[1:] + MAGNITUDES[:-1]) / 2
    below, above = (np.searchsorted(middles, np.abs(values.astype(np.float64)), side) for side in ("left", "right"))
    chosen: Array = MAGNITUDES[np.where(below % 2 == 0, below, above)]
    return np.copysign(chosen, values)


def by_definition(x: Tensor) -> tuple[Array, npt.NDArray[np.float32]]:
    """Rows `(rows, K)` in the format, and their scales `(rows, 1)`."""
    values = x.float().numpy()
    scale = np.abs(values).max(1, keepdims=True) / np.float32(448)
    return nearest(values / scale), scale


def operands(inner: int = 256, out: int = 96, rows: int = 64) -> tuple[Tensor, Linear]:
    """Activations some of which are large, as in trained networks, and a layer; both bfloat16."""
    make = torch.Generator().manual_seed(inner)
    x = torch.randn(rows, inner, generator=make)
    x[:, 3] *= 40
    plain = Linear(inner, out).requires_grad_(False)
    plain.weight.copy_(torch.randn(out, inner, generator=make) * inner**-0.5)
    plain.bias.copy_(torch.randn(out, generator=make))
    return x.to(torch.bfloat16), plain.to(torch.bfloat16)


@pytest.fixture(scope="module")
def nano() -> ViQ:
    return ViQ.from_pretrained(device="cpu", dtype="fp8")


@pytest.fixture(scope="module")
def half() -> ViQ:
    return ViQ.from_pretrained(device="cpu", dtype="bfloat16")


# One layer


def test_rows_are_quantised_as_the_format_is_defined() -> None:
    x, plain = operands()
    for tensor in (x, plain.weight, x * 2.0**-100):
        codes, scale = quantised(tensor)
        assert codes.dtype == torch.float8_e4m3fn
        if tensor.abs().max() > 1e-6:  # below, rows count as larger than they are
            expected = by_definition(tensor)
            assert np.array_equal(codes.double().numpy(), expected[0])
            assert np.array_equal(scale.numpy(), expected[1])
        assert codes.float().isfinite().all()


def test_a_layer_gives_the_exact_product_of_8_bit_rows_rounded_once_after_its_bias() -> None:
    x, plain = operands()
    (a, a_scale), (b, b_scale) = by_definition(x), by_definition(plain.weight)
    exact = torch.from_numpy((a * a_scale) @ (b * b_scale).T) + plain.bias.double()
    out = Fp8Linear(plain)(x)
    assert out.dtype == torch.bfloat16
    assert ((out.double() - exact).abs() / exact.abs().clamp_min(1)).max() <= 2**-8
    assert (out == exact.to(torch.bfloat16)).double().mean() > 0.99  # but where a sum in float32 crosses a middle
    assert not torch.equal(out, plain(x))


@pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 13), reason="torch has this on CUDA only"
)
def test_the_call_made_on_cuda_gives_on_a_cpu_what_is_emulated_there() -> None:
    x, plain = operands()
    (a, a_scale), layer = quantised(x), Fp8Linear(plain)
    found, expected = (
        product(a, a_scale, layer.weight, layer.scale, layer.bias).double() for product in (multiplied, emulated)
    )
    assert ((found - expected).abs() / expected.abs().clamp_min(1)).max() <= 2**-7  # a step of bfloat16
    assert (found == expected).double().mean() > 0.98


def test_a_hidden_layer_is_rounded_before_its_gelu() -> None:
    x, plain = operands()
    layer = Fp8Linear(plain)
    assert torch.equal(layer.gelu(x), gelu(layer(x)))


@pytest.mark.parametrize("rows", [32, 64, 96, 960, 1024])
def test_a_row_does_not_depend_on_the_other_rows_or_on_the_threads(rows: int, threads: Callable[[int], None]) -> None:
    x, plain = operands(256, 768, 1100)
    x[500] *= 2.0**60  # whose scale is no other row's
    layer = Fp8Linear(plain)
    threads(1)
    whole = layer(x)
    for count in (1, 2, 3):
        threads(count)
        for start in (0, 40, 1100 - rows):
            assert torch.equal(layer(x[start : start + rows].clone()), whole[start : start + rows])


def test_a_row_of_zeros_gives_the_bias() -> None:
    x, plain = operands()
    x[1] = 0
    plain.weight[2] = 0
    out = Fp8Linear(plain)(x)
    assert torch.equal(out[1], plain.bias)
    assert torch.equal(out[:, 2], plain.bias[2].expand(len(out)))


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_a_value_that_is_no_number_makes_its_row_none_and_no_other(value: float) -> None:
    x, plain = operands()
    clean = Fp8Linear(plain)(x)
    x[5, 7] = value
    out = Fp8Linear(plain)(x)
    assert out[5].isnan().all()
    assert torch.equal(out[:5], clean[:5])
    assert torch.equal(out[6:], clean[6:])


def test_gradients_are_refused() -> None:
    x, plain = operands()
    layer = Fp8Linear(plain)
    with pytest.raises(InvalidInput, match="fp8 has no gradients"):
        layer(x.requires_grad_(True))
    with torch.no_grad():
        layer(x)
    layer.bias.requires_grad_(True)
    with pytest.raises(InvalidInput, match="fp8 has no gradients"):
        layer(x.detach())


# The network


def test_the_trunk_and_nothing_else_is_in_8_bits(nano: ViQ, half: ViQ) -> None:
    trunk = {id(module) for module in nano.encoder.trunk.modules()}
    for module in (one for one in nano.encoder.modules() if isinstance(one, Linear)):
        assert isinstance(module, Fp8Linear) == (id(module) in trunk)
        assert module.weight.dtype == (torch.float8_e4m3fn if id(module) in trunk else torch.bfloat16)
    held, before = (
        sum(tensor.nbytes for tensor in (*model.encoder.trunk.parameters(), *model.encoder.trunk.buffers()))
        for model in (nano, half)
    )
    assert held < 0.55 * before  # the rest are scales, biases and norms: more of a narrow network than of a wide one


def test_weights_are_those_of_the_bfloat16_network_quantised(nano: ViQ, half: ViQ) -> None:
    for name, ours in nano.encoder.trunk.named_modules():
        if isinstance(ours, Fp8Linear):
            expected, scale = by_definition(half.encoder.trunk.get_submodule(name).weight)  # type: ignore[arg-type]
            assert np.array_equal(ours.weight.double().numpy(), expected), name
            assert np.array_equal(ours.scale.numpy(), scale), name


def test_each_weight_of_the_trunk_takes_a_byte_less(nano: ViQ, half: ViQ) -> None:
    trunk = sum(one.weight.numel() for one in half.encoder.trunk.modules() if isinstance(one, Linear))
    scales = sum(4 * one.weight.shape[0] for one in half.encoder.trunk.modules() if isinstance(one, Linear))
    assert half.weight_bytes - nano.weight_bytes == trunk - scales


def test_codes_are_others_than_in_bfloat16_but_mostly_near(nano: ViQ, half: ViQ) -> None:
    ours, theirs = (np.concatenate([c.array.ravel() for c in model.encode(IMAGES)]) for model in (nano, half))
    assert 0.2 < (ours == theirs).mean() < 0.95
    assert nano.family == half.family
    assert nano.fingerprint != half.fingerprint
    assert nano.dtype == "fp8"


def test_features_and_pictures_of_the_same_codes_are_those_of_bfloat16(nano: ViQ, half: ViQ) -> None:
    codes = nano.encode(IMAGES[:2])
    for ours, theirs in zip(nano.embed(codes), half.embed(codes), strict=True):
        assert torch.equal(ours, theirs)
    for a, b in zip(nano.decode(codes), half.decode(codes), strict=True):
        assert np.array_equal(a, b)
    flat = torch.from_numpy(codes[0].array.astype(np.int64)).view(-1)
    alone, other = (Embedder.from_pretrained(device="cpu", dtype=dtype)(flat) for dtype in ("fp8", "bfloat16"))
    assert torch.equal(alone, other)


@pytest.mark.parametrize("name", ["blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc1.bias"])
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_value_that_is_no_number_never_becomes_a_code(make_root: MakeRoot, name: str, value: float) -> None:
    damaged = encoder_state(TINY)[name]
    damaged.view(-1)[3] = value
    root = make_root(encoder={name: damaged})
    with pytest.raises(ViQError, match="no numbers in fp8"):
        ViQ.from_pretrained(root, device="cpu", dtype="fp8", parts=("encoder",)).encode([noise(20, 20)])


def test_a_head_from_a_file_made_in_bfloat16_serves_fp8(nano: ViQ, half: ViQ, tmp_path: Path) -> None:
    half.build_head("torchscript", tmp_path / "head.pt")
    model = ViQ.from_pretrained(
        device="cpu", dtype="fp8", parts=("encoder",), head="torchscript", head_file=tmp_path / "head.pt"
    )
    assert model.invariant
    for ours, expected in zip(model.encode(IMAGES), nano.encode(IMAGES), strict=True):
        assert np.array_equal(ours.array, expected.array)
    assert model.fingerprint not in (nano.fingerprint, half.fingerprint)


@pytest.mark.parametrize("capability", [(7, 0), (8, 0), (8, 6)])
def test_a_device_without_8_bit_products_is_refused_by_its_capability(capability: tuple[int, int]) -> None:
    found = re.escape(".".join(map(str, capability)))
    with pytest.raises(InvalidInput, match=f"fp8 needs compute capability 8.9 or above, cuda:1 has {found}"):
        check_fp8("cuda:1", capability)


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (10, 0)])
def test_a_device_with_8_bit_products_is_taken(capability: tuple[int, int]) -> None:
    check_fp8("cuda", capability)
