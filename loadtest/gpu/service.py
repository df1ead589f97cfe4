"""Step H: whether copies run beside computing, the engine against the bare model, and the decoder by size."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from statistics import median
from time import perf_counter

import numpy as np
import torch
from loadtest.gpu import network
from loadtest.gpu.end_to_end import picture
from loadtest.gpu.record import Record
from loadtest.gpu.timing import peak_mib, seconds, wait, wall

from viq.codes import Codes
from viq.launched import Launched, gathered, on_host
from viq.patches import Patches, normalise
from viq.row_probe import row_multiple
from viq.vae import LATENT_CHANNELS, VaeDecoder


@torch.inference_mode()
def run(record: Record, device: torch.device, tiny: bool) -> None:
    """Overlap first, which needs nothing but torch; the decoder; then the service's engine, if it is installed."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for what, part in (("overlap", _overlap), ("VAE", _decoder), ("engine", _engine)):
        with record.tried(what=what):
            part(record, device, dtype, tiny)


def _overlap(record: Record, device: torch.device, dtype: torch.dtype, tiny: bool) -> None:
    """Packs one after another, each waited for, against two ahead as the service has them; and the device alone."""
    encoder = network.encoder(device, dtype, tiny)
    multiple = row_multiple(encoder)
    pack = network.TINY_PACKS[-1] if tiny else next(pack for pack in network.PACKS if pack.name == "32 × 256²")
    packing, sizes = pack.packing(multiple), [(side, side) for side in pack.sides]
    draw = np.random.default_rng(0)
    images = [Patches.of(draw.integers(0, 256, (side, side, 3), np.uint8)) for side in pack.sides]

    def launched() -> object:
        there = gathered([image.rows for image in images], packing.rows, device)
        return on_host(encoder(normalise(there, sizes, packing, dtype), packing))

    def one_by_one(count: int) -> None:
        for _ in range(count):
            launched()()  # type: ignore[operator]

    def ahead(count: int) -> None:
        waiting: deque[object] = deque()
        for _ in range(count):
            waiting.append(launched())
            if len(waiting) == 2:
                waiting.popleft()()  # type: ignore[operator]
        while waiting:
            waiting.popleft()()  # type: ignore[operator]

    count = 2 if tiny else 12
    one_by_one(2)
    x = network.inputs(packing, device, dtype)
    bare = seconds(lambda: encoder(x, packing), device, repeats=count, queued=False)
    record.add(
        what="overlap", pack=pack.name, bare_ms=bare * 1e3,
        one_by_one_ms=wall(lambda: one_by_one(count), device) / count * 1e3,
        two_ahead_ms=wall(lambda: ahead(count), device) / count * 1e3,
    )  # fmt: skip


def _decoder(record: Record, device: torch.device, dtype: torch.dtype, tiny: bool) -> None:
    with torch.device("meta"):
        vae = VaeDecoder(4 if tiny else 96)
    vae = network.randomised(vae, device, dtype, 1)
    for parameter in vae.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    for side in (32,) if tiny else (256, 512, 1024, 2048):
        latent = torch.randn(1, LATENT_CHANNELS, side // 8, side // 8, device=device, dtype=dtype)
        peak_mib(device)
        took = seconds(lambda latent=latent: vae(latent), device, repeats=3, warm=1, queued=False)  # type: ignore[misc]
        record.add(
            what="VAE", side=side, ms=took * 1e3, megapixels_per_s=side**2 / took / 1e6, peak_mib=peak_mib(device)
        )


def _engine(record: Record, device: torch.device, dtype: torch.dtype, tiny: bool) -> None:
    from viq.decoder import Decoder, DecoderShape
    from viq.embedder import Embedder, EmbedderShape
    from viq.fsq import codebook
    from viq.model import ViQ
    from viq_serving.engine.engine import EngineLimits
    from viq_serving.images import ImageLimits
    from viq_serving.metrics import Metrics
    from viq_serving.tokenizer import Tokenizer
    from viq_serving.types import ImageFile

    shape = network.TINY if tiny else network.FULL
    encoder = network.encoder(device, dtype, tiny)
    with torch.device("meta"):
        embedder = Embedder(EmbedderShape(shape.width, 15_360, len(shape.levels), 3))
        decoder = Decoder(DecoderShape(shape.width, shape.heads, 3, 4 if tiny else 96))
    network.randomised(embedder, device, dtype, 2)
    network.randomised(decoder, device, dtype, 3)
    embedder.codebook.data = codebook(shape.levels).to(device, dtype)
    model = ViQ(network.SIZE, encoder=encoder, embedder=embedder, decoder=decoder, family="0" * 16, dtype=dtype,
                device=device, untrained=True)  # fmt: skip
    for side, count, callers in ((32, 8, 4),) if tiny else ((256, 2048, 256), (512, 640, 64), (1024, 160, 24)):
        files = [ImageFile(_jpeg(side, seed)) for seed in range(8)]
        cut = [Patches.of(picture(side, seed)) for seed in range(8)]
        most = max(1, 8192 // len(cut[0].rows))  # of the packs that the engine makes

        def bare(count: int = count, cut: list[Patches] = cut, most: int = most) -> None:
            """The device kept busy: two packs ahead, of images decoded and cut already."""
            waiting: deque[Launched[Codes]] = deque()
            for begin in range(0, count, most):
                waiting.append(model.launch_encode([cut[i % 8] for i in range(begin, min(begin + most, count))]))
                if len(waiting) == 2:
                    waiting.popleft().results()
            while waiting:
                waiting.popleft().results()

        async def served(count: int = count, callers: int = callers, files: list[ImageFile] = files) -> list[float]:
            """Seconds behind the engine and without it, in turns."""
            tokenizer = Tokenizer(ImageLimits(), 64, Metrics("gpu"), EngineLimits(max_age_s=600.0))
            await tokenizer.load(lambda: [model])
            taken = list[float]()
            for _ in range(4):  # the first of each is for warming up
                await asyncio.to_thread(wait, device)
                rest, begun = iter(range(count)), perf_counter()

                async def call(rest: Iterator[int] = rest) -> None:
                    for i in rest:
                        await tokenizer.encode([files[i % 8]], tokenizer.model())

                await asyncio.gather(*(call() for _ in range(callers)))
                taken += [perf_counter() - begun, await asyncio.to_thread(wall, bare, device)]
            tokenizer.close()
            return taken

        taken = asyncio.run(served())
        engine, alone = taken[2::2], taken[3::2]
        record.add(
            what="engine", side=side, images=count, callers=callers, bare_images_per_s=count / median(alone),
            engine_images_per_s=count / median(engine),
            share=median(b / e for e, b in zip(engine, alone, strict=True)), aim=0.95,
        )  # fmt: skip


def _jpeg(side: int, seed: int) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture(side, seed)).save(file, "JPEG", quality=90)
    return file.getvalue()
