"""Step I: float16 and fp8 beside bfloat16: how fast their products are, and how many codes agree."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module

import numpy as np
import torch
import torch.nn.functional as F
from loadtest.gpu import network
from loadtest.gpu.ceilings import LAYERS
from loadtest.gpu.record import Record
from loadtest.gpu.timing import seconds
from torch import Tensor

from viq.codes import Codes
from viq.encoder import Encoder
from viq.fsq import basis
from viq.layers import Linear
from viq.packing import Packing
from viq.parts import PARTS
from viq.row_probe import row_multiple

FP8 = torch.float8_e4m3fn
_LARGEST = 448.0  # of float8_e4m3fn
PREDICTED = {"float16 and float32": 0.985, "bfloat16 and float32": 0.89, "fp8 and bfloat16": 0.3}
PAIRS = (("bfloat16", "float32"), ("float16", "float32"), ("fp8", "bfloat16"), ("fp8 in the trunk", "bfloat16"),
         ("fp8", "float32"))  # fmt: skip


@torch.inference_mode()
def run(record: Record, device: torch.device, tiny: bool) -> None:
    """Products of each type, then the codes of the same images in each: random weights, and `nano`'s, trained ones."""
    rows, scale = (64, 64) if tiny else (8192, 1)
    for name, (inner, out, _) in LAYERS.items():
        _products(record, name, rows, max(16, inner // scale), max(16, out // scale), device)
    with record.tried(what="codes of random weights"):
        _random(record, device, tiny)
    with record.tried(what="codes of nano"):
        nano(record, device, 1 if tiny else 48)


def _products(record: Record, name: str, rows: int, inner: int, out: int, device: torch.device) -> None:
    row: dict[str, object] = {}
    for kind in ("bfloat16", "float16", "fp8"):
        dtype = torch.float16 if kind == "float16" else torch.bfloat16
        x, weight = (torch.randn(n, inner, device=device, dtype=dtype) for n in (rows, out))
        bias = torch.randn(out, device=device, dtype=dtype)
        calls: dict[str, Callable[[], Tensor]] = {f"{kind}_ms": partial(F.linear, x, weight, bias)}
        if kind == "fp8":
            calls = {"fp8_ms": _ready(x, weight), "fp8_with_quantising_ms": partial(_scaled, x, weight, bias)}
        try:
            for name_, call in calls.items():
                row[name_] = seconds(call, device) * 1e3
        except RuntimeError as error:
            row[f"{kind}_error"] = str(error).splitlines()[0]
    record.add(what=name, rows=rows, inner=inner, out=out, **row)


def _ready(x: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    """The product alone, of what is in fp8 already."""
    a, b = _quantised(x), _quantised(weight)
    return lambda: torch._scaled_mm(a[0], b[0].t(), a[1], b[1].t(), out_dtype=torch.bfloat16)


def _scaled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    a, b = _quantised(x), _quantised(weight)
    return torch._scaled_mm(a[0], b[0].t(), a[1], b[1].t(), out_dtype=torch.bfloat16) + bias


def _quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` in fp8 and the scale of each row, `(rows, 1)` float32."""
    scale = x.abs().amax(dim=1, keepdim=True).float().clamp_min(1e-12) / _LARGEST
    return (x.float() / scale).to(FP8), scale


@contextmanager
def emulated(weights: Container[int]) -> Iterator[None]:
    """Compute products with the weights of these `id`s as fp8 would, wherever the network asks for one."""
    modules = [vars(import_module(name)) for name in ("viq.layers", "viq.linear")]  # `Mlp.hidden` asks the second
    ours = modules[1]["linear"]

    def product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if id(weight) not in weights:
            return ours(x, weight, bias)  # type: ignore[no-any-return]
        # What is multiplied is fp8 with one scale a row; products and sums are in float32, then rounded once.
        a, b = (q[0].float() * q[1] for q in (_quantised(x), _quantised(weight)))
        return F.linear(a, b, bias.float()).to(x.dtype)

    try:
        for module in modules:
            module["linear"] = product
        yield
    finally:
        for module in modules:
            module["linear"] = ours


def weights_of(encoder: Encoder, *, trunk: bool) -> set[int]:
    """The `id`s of all linear layers' weights, or of the trunk's blocks alone."""
    part = encoder.trunk if trunk else encoder
    return {id(module.weight) for module in part.modules() if isinstance(module, Linear)}


def agreement(one: Tensor, other: Tensor, levels: Sequence[int]) -> dict[str, float]:
    """Shares of codes that are equal, of their levels, and of levels that are more than one step off."""
    steps = (_levels(one, levels) - _levels(other, levels)).abs()
    return {
        "equal": float((one == other).float().mean()),
        "levels_equal": float((steps == 0).float().mean()),
        "levels_off_by_more_than_one": float((steps > 1).float().mean()),
    }


def _levels(codes: Tensor, levels: Sequence[int]) -> Tensor:
    """Codes `(M,)` to the index of each dimension's level, `(M, d)`."""
    return codes.long()[:, None] // torch.tensor(basis(levels)) % torch.tensor(levels)


def _random(record: Record, device: torch.device, tiny: bool) -> None:
    codes = {}
    for kind in ("float32", "bfloat16", "float16"):
        encoder = network.encoder(device, torch.float32, tiny).to(getattr(torch, kind))  # the same weights, rounded
        pack = network.TINY_PACKS[-1] if tiny else network.Pack("", (512, 256, 256))
        packing = pack.packing(row_multiple(encoder))
        codes[kind] = _codes(encoder, packing)
        if kind == "bfloat16":
            for name, trunk in (("fp8", False), ("fp8 in the trunk", True)):
                with emulated(weights_of(encoder, trunk=trunk)):
                    codes[name] = _codes(encoder, packing)
    _add(record, "codes", codes, encoder.levels)


def _codes(encoder: Encoder, packing: Packing) -> Tensor:
    weight = encoder.project_in.weight
    patches = network.inputs(packing, weight.device, torch.float32).to(weight.dtype)
    return encoder(patches, packing)[: packing.patches * 4].cpu()  # type: ignore[no-any-return]


@torch.inference_mode()
def nano(record: Record, device: torch.device, count: int) -> None:
    """The packaged weights on pictures like photographs; and how well what they make of each type's codes looks."""
    from viq.model import ViQ
    from viq_serving.bench.pictures import photograph

    pictures = [photograph((192, 160), np.random.default_rng(number)) for number in range(count)]
    codes, psnr, last = dict[str, list[Codes]](), dict[str, float](), None
    for kind in ("bfloat16", "float16", "float32"):
        parts = PARTS if kind == "float32" else ("encoder",)
        last = ViQ.from_pretrained(device=str(device), dtype=kind, parts=parts)
        made = {kind: last.encode_pixels(pictures)}
        if kind == "bfloat16":
            for name, trunk in (("fp8", False), ("fp8 in the trunk", True)):
                with emulated(weights_of(last.encoder, trunk=trunk)):
                    made[name] = last.encode_pixels(pictures)
        codes |= made
    assert last is not None
    for kind, made_ in codes.items():
        decoded = last.decode(made_, any_fingerprint=True)
        errors = [float(np.mean((a.astype(np.float64) - b) ** 2)) for a, b in zip(decoded, pictures, strict=True)]
        psnr[kind] = float(np.mean([10 * np.log10(255**2 / max(error, 1e-9)) for error in errors]))
    flat = {
        kind: torch.cat([torch.from_numpy(one.array.astype(np.int64)).view(-1) for one in made_])
        for kind, made_ in codes.items()
    }
    _add(record, "codes of nano", flat, last.levels)
    record.add(what="PSNR of nano's pictures, decoded in float32, in dB", pictures=count, **psnr)


def _add(record: Record, what: str, codes: dict[str, Tensor], levels: Sequence[int]) -> None:
    for one, other in PAIRS:
        record.add(what=what, of=[one, other], codes=len(codes[one]), **agreement(codes[one], codes[other], levels),
                   numbers=bool((codes[one] >= 0).all()), predicted=PREDICTED.get(f"{one} and {other}"))  # fmt: skip
