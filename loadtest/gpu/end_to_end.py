"""Step E: the encoder on packs and on single images, with and without the host's work, and where the time goes."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import numpy as np
import torch
from loadtest.gpu import network
from loadtest.gpu.record import Record
from loadtest.gpu.timing import peak_mib, seconds, wall

from viq.encoder import Encoder
from viq.fsq import quantise
from viq.launched import gathered, on_host
from viq.packing import Packing
from viq.patches import Patches, normalise
from viq.row_probe import row_multiple

_LIMIT_SIDE = 8192


@torch.inference_mode()
def run(record: Record, device: torch.device, tiny: bool) -> None:
    """The share of a product's rate measured here, of each pack; then loops of single images."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    encoder = network.encoder(device, dtype, tiny)
    multiple, side = row_multiple(encoder), 64 if tiny else _LIMIT_SIDE
    square = torch.randn(side, side, device=device, dtype=dtype)
    limit = 2 * side**3 / seconds(lambda: square @ square, device)
    record.add(what="limit", side=side, tflops=limit / 1e12, rows_multiple=multiple)
    for pack in network.TINY_PACKS if tiny else network.PACKS:
        for kernel, dense_from in attentions(pack, tiny):
            with record.tried(what="pack", pack=pack.name, attention=kernel):
                _pack(record, encoder, pack, pack.packing(multiple, dense_from), kernel, limit, device, dtype)
    # The limit of a cold device, or of one with other clocks, would make all shares too small.
    warm = 2 * side**3 / seconds(lambda: square @ square, device)
    record.add(what="limit after the packs", side=side, tflops=warm / 1e12, over_before=warm / limit)
    for image_side, images in ((64, 4),) if tiny else ((256, 256), (512, 64), (1024, 24)):
        for kernel, dense_from in (("varlen", 0), ("cudnn", 1)):
            with record.tried(what="loops", side=image_side, attention_of_the_loops=kernel):
                _loops(record, encoder, multiple, image_side, images, device, dtype, kernel, dense_from)


def attentions(pack: network.Pack, tiny: bool) -> list[tuple[str, int]]:
    """What attends a pack's images, and from how many patches on cuDNN does: both ways where some have so many."""
    most = max((side // 16) ** 2 for side in pack.sides)
    dense_from = 16 if tiny else network.DENSE_FROM
    return [("varlen", 0), *([("cudnn for large images", dense_from)] if most >= dense_from else [])]


def _pack(
    record: Record, encoder: Encoder, pack: network.Pack, packing: Packing, kernel: str, limit: float,
    device: torch.device, dtype: torch.dtype,
) -> None:  # fmt: skip
    x = network.inputs(packing, device, dtype)
    peak_mib(device)
    took = seconds(lambda: encoder(x, packing), device, repeats=5, queued=False)
    reached = network.flop(encoder, packing) / took
    record.add(
        what="pack", pack=pack.name, attention=kernel, rows=packing.rows, ms=took * 1e3,
        tflops=reached / 1e12, share=reached / limit,
        images_per_s=len(pack.sides) / took, peak_mib=peak_mib(device), predicted_60_percent_ms=pack.predicted_ms,
        predicted_share_fa2=pack.predicted_share_fa2, predicted_share_cudnn=pack.predicted_share_cudnn,
    )  # fmt: skip
    if not packing.dense_from:
        _parts(record, encoder, x, packing, pack.name, device)


def _parts(
    record: Record, encoder: Encoder, x: torch.Tensor, packing: Packing, name: str, device: torch.device
) -> None:
    trunk, rotations = encoder.trunk_rows(x, packing), encoder.rotations(packing)
    values = encoder.head(trunk, packing, rotations)
    calls = {
        "trunk": lambda: encoder.trunk_rows(x, packing),
        "head": lambda: encoder.head(trunk, packing, rotations),
        "rotations": lambda: encoder.rotations(packing),
        "quantise": lambda: quantise(values, encoder.levels),
    }
    parts = {f"{part}_ms": seconds(call, device, repeats=3, warm=1, queued=False) * 1e3 for part, call in calls.items()}
    record.add(what="parts", pack=name, **parts)


def _loops(
    record: Record, encoder: Encoder, multiple: int, side: int, count: int, device: torch.device, dtype: torch.dtype,
    kernel: str, dense_from: int,
) -> None:  # fmt: skip
    """Four ways with the same images: one by one as the released code does, one by one without host work, packed from
    pixels that are decoded and cut already, and packed with decoding and cutting on threads beside, as in use.

    The loops are given cuDNN's attention, too, which torch itself takes for a lone image on this GPU: what they lose is
    then no fault of the kernel. Packs are always computed as the product does.
    """
    pixels = [picture(side, seed) for seed in range(count)]
    files = _jpegs(pixels)

    def encoded(images: list[Patches], dense: int = 0) -> torch.Tensor:
        packing = Packing.of([image.grid for image in images], multiple, dense)
        there = gathered([image.rows for image in images], packing.rows, device)
        return encoder(normalise(there, [image.image_size for image in images], packing, dtype), packing)  # type: ignore[no-any-return]

    def released() -> None:
        for data, image in zip(files or pixels, pixels, strict=True):
            decoded = _decoded(data) if isinstance(data, bytes) else image
            encoded([Patches.of(decoded)], dense_from).cpu()

    one = Packing.of([(side // 16, side // 16)], multiple, dense_from)
    x = network.inputs(one, device, dtype)

    def bare() -> None:
        for _ in range(count):
            encoder(x, one)

    ready = [Patches.of(image) for image in pixels]
    most = max(1, 8192 // len(ready[0].rows))

    def packed() -> None:
        waiting = [on_host(encoded(ready[i : i + most])) for i in range(0, count, most)]
        for result in waiting:
            result()

    threads = ThreadPoolExecutor(os.cpu_count())

    def cut(i: int) -> Patches:
        return Patches.of(_decoded(files[i]) if files else pixels[i])

    def used() -> None:
        coming = [threads.submit(cut, i) for i in range(count)]
        waiting = [on_host(encoded([one.result() for one in coming[i : i + most]])) for i in range(0, count, most)]
        for result in waiting:
            result()

    calls = {"released": released, "bare": bare, "packed": packed, "used": used}
    with threads:
        for call in calls.values():
            call()
        rounds = [{name: wall(call, device) / count for name, call in calls.items()} for _ in range(3)]
    taken = {name: median(one[name] for one in rounds) for name in calls}
    record.add(
        what="loops", side=side, attention_of_the_loops=kernel, images=count,
        jpeg="decoded in the loop" if files else "no PIL: pixels",
        released_ms=taken["released"] * 1e3, without_host_work_ms=taken["bare"] * 1e3, packed_ms=taken["packed"] * 1e3,
        in_use_ms=taken["used"] * 1e3,
        in_use_over_released=taken["released"] / taken["used"], packed_over_bare=taken["bare"] / taken["packed"],
        threads=os.cpu_count(),
    )  # fmt: skip


def picture(side: int, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Squares of random colours, `(side, side, 3)`: a file of it is no larger than a photograph's."""
    coarse = np.random.default_rng(seed).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
    return np.kron(coarse, np.ones((8, 8, 1), np.uint8))


def _jpegs(pixels: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]) -> list[bytes]:
    """The pictures as files, none without PIL."""
    try:
        from PIL import Image
    except ImportError:
        return []
    files = []
    for one in pixels:
        file = io.BytesIO()
        Image.fromarray(one).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def _decoded(data: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
