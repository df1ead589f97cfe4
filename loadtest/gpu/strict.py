"""Step D: an image's values alone and in any company, on the full-size network; and what the promise costs."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from loadtest.gpu import network
from loadtest.gpu.record import Record
from loadtest.gpu.timing import seconds
from torch import Tensor

from viq import layers
from viq.encoder import Encoder
from viq.packing import Packing
from viq.row_probe import row_multiple

PATCHES = (1, 7, 8, 63, 127, 128, 129, 256, 300, 1024, 1920, 4096)
HUGE = 16_384
PACKS = 40


@torch.inference_mode()
def run(record: Record, device: torch.device, tiny: bool) -> None:
    """The probe's finding, values bit by bit in random packs, a control that must be caught, and the cost."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    encoder = network.encoder(device, dtype, tiny)
    multiple = row_multiple(encoder)
    record.add(what="rows of a pack are rounded up to multiples of", rows=multiple)
    patches, huge, packs = ((1, 7, 40), 150, 4) if tiny else (PATCHES, HUGE, PACKS)
    images = [network.image(n, device, dtype, seed) for seed, n in enumerate((*patches, huge))]
    alone = [_values(encoder, [image], multiple)[0] for image in images]
    order, wrong, compared = random.Random(0), list[str](), 0
    for number in range(packs):
        chosen = [order.randrange(len(patches)) for _ in range(order.randrange(1, 9))]
        chosen += [len(patches)] if number % 8 == 0 else []
        order.shuffle(chosen)
        for i, values in zip(chosen, _values(encoder, [images[i] for i in chosen], multiple), strict=True):
            compared += 1
            if not _same(values, alone[i]):
                wrong.append(f"{len(images[i])} patches in a pack of {[len(images[j]) for j in chosen]}")
    record.add(what="values of an image, alone and in packs", compared=compared, different=len(wrong), which=wrong[:10])
    repeats = sum(not _same(_values(encoder, [images[-2]], multiple)[0], alone[-2]) for _ in range(5 if tiny else 20))
    record.add(what="the same image again", different=repeats)
    with record.tried(what="control without the measures: images that differ"):
        _control(record, encoder, images[:-1], device)
    _cost(record, encoder, multiple, device, dtype, tiny)


def _control(record: Record, encoder: Encoder, images: list[Tensor], device: torch.device) -> None:
    """Without any of the measures the comparison should find differences; if it finds none, it proves little."""
    ours = vars(layers)["linear"]
    _split_k(device, True)
    vars(layers)["linear"] = F.linear
    try:
        alone = [_values(encoder, [image], 1)[0] for image in images]
        together = _values(encoder, images, 1)
        differ = sum(not _same(a, b) for a, b in zip(alone, together, strict=True))
    finally:
        vars(layers)["linear"] = ours
        _split_k(device, False)
    record.add(what="control without the measures: images that differ", different=differ, of=len(images))


def _cost(
    record: Record, encoder: Encoder, multiple: int, device: torch.device, dtype: torch.dtype, tiny: bool
) -> None:
    for pack in network.TINY_PACKS if tiny else network.PACKS:
        if sum(pack.sides) > 9000:
            continue
        taken = {}
        for setting, allowed, rows in (("strict", False, multiple), ("free", True, 1)):
            _split_k(device, allowed)
            packing = pack.packing(rows)
            x = network.inputs(packing, device, dtype)
            taken[setting] = seconds(lambda x=x, packing=packing: encoder(x, packing), device, repeats=5)  # type: ignore[misc]
        _split_k(device, False)
        record.add(what="cost", pack=pack.name, strict_ms=taken["strict"] * 1e3, free_ms=taken["free"] * 1e3,
                   strict_over_free=taken["strict"] / taken["free"])  # fmt: skip


def _split_k(device: torch.device, allowed: bool) -> None:
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = (allowed, allowed)


def _values(encoder: Encoder, images: list[Tensor], multiple: int) -> list[Tensor]:
    packing = Packing.of([(1, len(image)) for image in images], multiple)
    return [part.clone() for part in packing.split(encoder.project(packing.pad(torch.cat(images)), packing), 4)]


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
