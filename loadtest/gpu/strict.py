"""Step D: an image's values alone and in any company, on the full-size network; and what the promise costs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from statistics import median

import torch
import torch.nn.functional as F
from loadtest.gpu import network
from loadtest.gpu.bits import same_bits
from loadtest.gpu.record import Record
from loadtest.gpu.timing import seconds
from torch import Tensor, nn

from viq import layers
from viq.attention import attention
from viq.encoder import Encoder
from viq.packing import Ends, Packing
from viq.row_probe import row_multiple

PATCHES = (1, 7, 8, 63, 127, 128, 129, 256, 300, 1024, 1920, 4096)
HUGE = 16_384
PACKS = 40


@torch.inference_mode()
def run(record: Record, device: torch.device, tiny: bool) -> None:
    """The probe's finding, values bit by bit in random packs, controls that must be caught, and the cost."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    encoder = network.encoder(device, dtype, tiny)
    multiple = row_multiple(encoder)
    record.add(what="rows of a pack are rounded up to multiples of", rows=multiple)
    patches, huge, packs = ((1, 7, 40), 150, 4) if tiny else (PATCHES, HUGE, PACKS)
    images = [network.image(n, device, dtype, seed) for seed, n in enumerate((*patches, huge))]
    dense_from = 16 if tiny else network.DENSE_FROM
    for kernel, dense, count in (("varlen", 0, packs), ("cudnn for large images", dense_from, packs // 2)):
        with record.tried(what="values of an image, alone and in packs", attention=kernel):
            _promise(record, encoder, images, multiple, kernel, dense, count)
    with record.tried(what="fresh images, twice each"):
        fresh = [network.image(patches[-2], device, dtype, 1000 + seed) for seed in range(5 if tiny else 20)]
        pairs = [[_values(encoder, [image], multiple)[0] for _ in range(2)] for image in fresh]
        different = sum(not same_bits(a, b) for a, b in pairs)
        record.add(what="fresh images, twice each", different=different, of=len(fresh), holds=not different)
    for name, control in _CONTROLS.items():
        with record.tried(what=f"control: {name}"):
            _control(record, encoder, images[:-1], multiple, name, control)
    for pack in network.TINY_PACKS if tiny else (*network.ODD_PACKS, *network.PACKS):
        if tiny or pack.patches <= 9000:
            with record.tried(what="cost", pack=pack.name):
                _cost(record, encoder, pack, multiple, device, dtype)


def _promise(
    record: Record, encoder: Encoder, images: Sequence[Tensor], multiple: int, kernel: str, dense_from: int, packs: int
) -> None:
    """Random packs, the largest image now and then among them, with noise in the rows of nobody."""
    alone = [_values(encoder, [image], multiple, dense_from)[0] for image in images]
    order, wrong, compared, blamed = random.Random(0), list[str](), 0, ""
    for number in range(packs):
        chosen = [order.randrange(len(images) - 1) for _ in range(order.randrange(1, 9))]
        chosen += [len(images) - 1] if number % 8 == 0 else []
        order.shuffle(chosen)
        pack = [images[i] for i in chosen]
        for place, (i, values) in enumerate(
            zip(chosen, _values(encoder, pack, multiple, dense_from, noise=number), strict=True)
        ):
            compared += 1
            if not same_bits(values, alone[i]):
                wrong.append(f"{len(images[i])} patches in a pack of {[len(images[j]) for j in chosen]}")
                blamed = blamed or first_that_differs(encoder, pack, place, multiple, dense_from)
    record.add(
        what="values of an image, alone and in packs", attention=kernel, compared=compared, different=len(wrong),
        which=wrong[:10], first_module_that_differs=blamed or None, holds=not wrong,
    )  # fmt: skip


def first_that_differs(encoder: Encoder, pack: Sequence[Tensor], place: int, multiple: int, dense_from: int = 0) -> str:
    """The first module, in the order of computing, whose rows of an image are others in the pack than alone.

    A projection after attention is blamed for the attention before it. Empty if it is none of them.
    """
    together = _outputs(encoder, pack, place, multiple, dense_from)
    alone = _outputs(encoder, [pack[place]], 0, multiple, dense_from)
    return next((name for (name, a), (_, b) in zip(alone, together, strict=True) if not same_bits(a, b)), "")


def _outputs(
    encoder: Encoder, pack: Sequence[Tensor], place: int, multiple: int, dense_from: int
) -> list[tuple[str, Tensor]]:
    found, packing = list[tuple[str, Tensor]](), _packing(pack, multiple, dense_from)
    start, end = packing.spans[place]

    def watch(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def keep(module: nn.Module, given: object, out: Tensor) -> None:
            times = out.shape[0] // packing.rows
            found.append((name, out[start * times : end * times].cpu()))

        return keep

    # An MLP takes many rows in chunks, so it is looked at as a whole.
    hooks = [
        module.register_forward_hook(watch(name))
        for name, module in encoder.named_modules()
        if isinstance(module, layers.Mlp) or (isinstance(module, (nn.Linear, nn.LayerNorm)) and ".fc" not in name)
    ]
    try:
        encoder.project(packing.pad(torch.cat(list(pack))), packing)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _control(
    record: Record, encoder: Encoder, images: Sequence[Tensor], multiple: int, name: str, without: _Without
) -> None:
    """Without one of the measures the comparison may find differences; without any it must, or it proves little."""
    with without(encoder) as rows:
        alone = [_values(encoder, [image], rows or multiple)[0] for image in images]
        together = _values(encoder, images, rows or multiple)
    differ = sum(not same_bits(a, b) for a, b in zip(alone, together, strict=True))
    must = {"holds": differ > 0} if name == _ALL else {}
    record.add(what=f"control: {name}", different=differ, of=len(images), **must)


@contextmanager
def _split_k_on(encoder: Encoder) -> Iterator[int]:
    _split_k(encoder, True)
    try:
        yield 0
    finally:
        _split_k(encoder, False)


@contextmanager
def _any_rows(encoder: Encoder) -> Iterator[int]:
    yield 1


@contextmanager
def _torchs_product(encoder: Encoder) -> Iterator[int]:
    ours = vars(layers)["linear"]
    vars(layers)["linear"] = F.linear
    try:
        yield 0
    finally:
        vars(layers)["linear"] = ours


@contextmanager
def _padded_attention(encoder: Encoder) -> Iterator[int]:
    """Attention of all images of a pack at once, each padded to the longest."""

    def padded(q: Tensor, k: Tensor, v: Tensor, packing: Packing | Ends) -> Tensor:
        spans = packing.spans
        longest = max(end - start for start, end in spans)
        stacked = [t.new_zeros((len(spans), longest, *t.shape[1:])) for t in (q, k, v)]
        seen = torch.zeros((len(spans), 1, 1, longest), dtype=torch.bool, device=q.device)
        for i, (start, end) in enumerate(spans):
            seen[i, ..., : end - start] = True
            for batch, t in zip(stacked, (q, k, v), strict=True):
                batch[i, : end - start] = t[start:end]
        a, b, c = (batch.transpose(1, 2) for batch in stacked)
        found = F.scaled_dot_product_attention(a, b, c, attn_mask=seen).transpose(1, 2)
        out = torch.zeros_like(q)
        for i, (start, end) in enumerate(spans):
            out[start:end] = found[i, : end - start]
        return out

    vars(layers)["attention"] = padded
    try:
        yield 0
    finally:
        vars(layers)["attention"] = attention


@contextmanager
def _none_of_them(encoder: Encoder) -> Iterator[int]:
    with _split_k_on(encoder), _torchs_product(encoder), _padded_attention(encoder):
        yield 1


_ALL = "none of the measures"
_Without = Callable[[Encoder], AbstractContextManager[int]]
_CONTROLS: dict[str, _Without] = {
    "split-K": _split_k_on,
    "any number of rows": _any_rows,
    "torch's product as it is": _torchs_product,
    "attention padded and stacked": _padded_attention,
    _ALL: _none_of_them,
}


def _cost(
    record: Record, encoder: Encoder, pack: network.Pack, multiple: int, device: torch.device, dtype: torch.dtype
) -> None:
    """The network as it is and with torch's product, split-K and as many rows as there are, in turns."""
    packings = {"strict": pack.packing(multiple), "free": pack.packing(1)}
    inputs = {name: network.inputs(packing, device, dtype) for name, packing in packings.items()}

    def took(name: str) -> float:
        return seconds(lambda: encoder(inputs[name], packings[name]), device, repeats=3, warm=1, queued=False)

    rounds = []
    for _ in range(3):
        strict = took("strict")
        with _split_k_on(encoder), _torchs_product(encoder):
            rounds.append((strict, took("free")))
    record.add(
        what="cost", pack=pack.name, rows=packings["strict"].rows, patches=pack.patches,
        strict_ms=median(strict for strict, _ in rounds) * 1e3, free_ms=median(free for _, free in rounds) * 1e3,
        strict_over_free=median(strict / free for strict, free in rounds),
    )  # fmt: skip


def _split_k(encoder: Encoder, allowed: bool) -> None:
    if encoder.project_in.weight.device.type == "cuda":
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = (allowed, allowed)


def _packing(images: Sequence[Tensor], multiple: int, dense_from: int = 0) -> Packing:
    return Packing.of([(1, len(image)) for image in images], multiple, dense_from)


def _values(
    encoder: Encoder, images: Sequence[Tensor], multiple: int, dense_from: int = 0, noise: int | None = None
) -> list[Tensor]:
    packing = _packing(images, multiple, dense_from)
    rows = packing.pad(torch.cat(list(images)))
    if noise is not None and packing.rows > packing.patches:
        rows[packing.patches :] = network.image(packing.rows - packing.patches, rows.device, rows.dtype, 2000 + noise)
    return [part.clone() for part in packing.split(encoder.project(rows, packing), 4)]
