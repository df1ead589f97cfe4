"""Step I: float16 and fp8 beside bfloat16: how fast their products are, and how many codes agree."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from loadtest.gpu import network
from loadtest.gpu.ceilings import LAYERS
from loadtest.gpu.record import Record
from loadtest.gpu.timing import seconds
from torch import Tensor

from viq.codes import Codes
from viq.config import variant
from viq.encoder import Encoder
from viq.fp8 import Fp8Linear, multiplied, quantise_trunk, quantised
from viq.fsq import basis
from viq.layers import Linear
from viq.packing import Packing
from viq.row_probe import row_multiple

Pixels = npt.NDArray[np.uint8]
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
        x, plain = torch.randn(rows, inner, device=device, dtype=dtype), Linear(inner, out, device=device, dtype=dtype)
        calls: dict[str, Callable[[], Tensor]] = {f"{kind}_ms": partial(F.linear, x, plain.weight, plain.bias)}
        if kind == "fp8":
            layer = Fp8Linear(plain)
            ready = partial(multiplied, *quantised(x), layer.weight, layer.scale, layer.bias)
            calls = {"fp8_ms": ready, "fp8_with_quantising_ms": partial(layer, x)}
        try:
            for name_, call in calls.items():
                row[name_] = seconds(call, device) * 1e3
        except RuntimeError as error:
            row[f"{kind}_error"] = str(error).splitlines()[0]
    record.add(what=name, rows=rows, inner=inner, out=out, **row)


@contextmanager
def emulated(weights: Container[int]) -> Iterator[None]:
    """Compute products with the weights of these `id`s as fp8 would, wherever the network asks for one."""
    modules = [vars(import_module(name)) for name in ("viq.layers", "viq.linear")]  # `Mlp.hidden` asks the second
    ours = modules[1]["linear"]

    def product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if id(weight) not in weights:
            return ours(x, weight, bias)  # type: ignore[no-any-return]
        # What is multiplied is fp8 with one scale a row; products and sums are in float32, then rounded once.
        a, b = (q[0].float() * q[1] for q in (quantised(x), quantised(weight)))
        return F.linear(a, b, bias.float()).to(x.dtype)

    try:
        for module in modules:
            module["linear"] = product
        yield
    finally:
        for module in modules:
            module["linear"] = ours


def weights_of(encoder: Encoder) -> set[int]:
    """The `id`s of all linear layers' weights."""
    return {id(module.weight) for module in encoder.modules() if isinstance(module, Linear)}


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
    codes, pack = dict[str, Tensor](), network.TINY_PACKS[-1] if tiny else network.Pack("", (512, 256, 256))
    for kind in ("float32", "float16", "bfloat16"):
        encoder = network.encoder(device, torch.float32, tiny).to(getattr(torch, kind))  # the same weights, rounded
        packing = pack.packing(row_multiple(encoder))
        codes[kind] = _codes(encoder, packing)
    with emulated(weights_of(encoder)):
        codes["fp8"] = _codes(encoder, packing)
    with record.tried(what="codes of random weights, fp8 in the trunk"):
        quantise_trunk(encoder)
        codes["fp8 in the trunk"] = _codes(encoder, pack.packing(row_multiple(encoder)))
    _add(record, "codes", codes, encoder.levels)


def _codes(encoder: Encoder, packing: Packing) -> Tensor:
    weight = encoder.project_in.weight
    patches = network.inputs(packing, weight.device, torch.float32).to(weight.dtype)
    return encoder(patches, packing)[: packing.patches * 4].cpu()  # type: ignore[no-any-return]


@torch.inference_mode()
def nano(record: Record, device: torch.device, count: int) -> None:
    """The packaged weights on pictures like photographs; and how well what they make of each type's codes looks."""
    pictures = photographs(count)
    codes = {kind: encoded(pictures, kind, str(device)) for kind in ("float32", "float16", "bfloat16")}
    with record.tried(what="codes of nano, fp8 in the trunk"):
        codes["fp8 in the trunk"] = encoded(pictures, "fp8", str(device))
    codes["fp8"] = encoded_wholly_in_fp8(pictures, str(device))
    _add(record, "codes of nano", {kind: flat(made) for kind, made in codes.items()}, variant("nano").levels)
    seen = {kind: round(one, 4) for kind, one in decoded_psnr(codes, pictures, str(device)).items()}
    record.add(what="PSNR of nano's pictures, decoded in float32, in dB", pictures=count, **seen)


def photographs(count: int) -> list[Pixels]:
    """Pictures like photographs, uint8 `(160, 192, 3)`, the same ones each time."""
    from viq_serving.bench.pictures import photograph

    return [photograph((192, 160), np.random.default_rng(number)) for number in range(count)]


def encoded(pictures: Sequence[Pixels], dtype: str, device: str) -> list[Codes]:
    """Codes of pictures by the packaged weights."""
    from viq.model import ViQ

    return ViQ.from_pretrained(device=device, dtype=dtype, parts=("encoder",)).encode_pixels(pictures)


def encoded_wholly_in_fp8(pictures: Sequence[Pixels], device: str) -> list[Codes]:
    """The same with all linear layers in fp8, the quantization head's, too: emulated, the product has no such mode."""
    from viq.model import ViQ

    model = ViQ.from_pretrained(device=device, dtype="bfloat16", parts=("encoder",))
    with emulated(weights_of(model.encoder)):
        return model.encode_pixels(pictures)


def decoded_psnr(codes: Mapping[str, Sequence[Codes]], pictures: Sequence[Pixels], device: str) -> dict[str, float]:
    """Mean PSNR in dB of the pictures that the packaged weights in float32 make of each kind of codes."""
    from viq.model import ViQ
    from viq_serving.similarity import psnr

    model, found = ViQ.from_pretrained(device=device, dtype="float32"), dict[str, float]()
    for kind, made in codes.items():
        decoded = model.decode(made, any_fingerprint=True)
        found[kind] = float(np.mean([psnr(a, b) for a, b in zip(decoded, pictures, strict=True)]))
    return found


def flat(codes: Sequence[Codes]) -> Tensor:
    """Codes of several pictures, int64 `(M,)`."""
    return torch.from_numpy(np.concatenate([one.array.astype(np.int64).reshape(-1) for one in codes]))


def _add(record: Record, what: str, codes: dict[str, Tensor], levels: Sequence[int]) -> None:
    for one, other in PAIRS:
        if one not in codes:  # for want of a kernel, which is written down
            continue
        record.add(what=what, of=[one, other], codes=len(codes[one]), **agreement(codes[one], codes[other], levels),
                   numbers=bool((codes[one] >= 0).all()), predicted=PREDICTED.get(f"{one} and {other}"))  # fmt: skip
