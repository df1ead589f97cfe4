"""Training steps with the visual encoder in the loop, and from codes that were extracted once; see README.md.

    python loadtest/training_speedup/speedup.py --out loadtest/results/training_speedup.json

Both ways see the same pairs in the same order and begin with the same language model, so their losses are equal: that
is checked at every step. A step is everything between two batches: reading, decoding or encoding, features, forward,
backward, and the optimizer.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from language_model import LanguageModel
from pairs import write
from PIL import Image
from plot import plot
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from viq import Embedder, ViQ
from viq_serving.client.loaders import ShardDataset, packed
from viq_serving.openmp import spin_briefly

Batch = tuple[Any, list[str]]
Step = Callable[[], tuple[float, float]]
_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}  # of losses, whose sums may be taken in another order


class Pictures(Dataset[tuple[np.ndarray[Any, Any], str]]):
    """The pairs as they are: pixels `(H, W, 3)` and text."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with tarfile.open(path) as archive:
            members = archive.getmembers()
        self._places = [(m.offset_data, m.size) for m in members]

    def __len__(self) -> int:
        return len(self._places) // 2

    def __getitem__(self, index: int) -> tuple[np.ndarray[Any, Any], str]:
        with self._path.open("rb") as file:
            image, text = (self._read(file, *self._places[2 * index + i]) for i in (0, 1))
        return np.asarray(Image.open(io.BytesIO(image)).convert("RGB")), text.decode()

    @staticmethod
    def _read(file: Any, at: int, size: int) -> bytes:
        file.seek(at)
        data: bytes = file.read(size)
        return data


def listed(pairs: Sequence[tuple[Any, str]]) -> Batch:
    """A batch of pictures as it is."""
    return [image for image, _ in pairs], [text for _, text in pairs]


def ordered(count: int, batches: int, images: int) -> list[list[int]]:
    """Which images each batch holds."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, count, images).tolist() for _ in range(batches)]


def tokens(texts: Sequence[str], sequences: int, length: int, device: torch.device) -> Tensor:
    """Bytes of the texts of each sequence, one after another, again and again up to `length`."""
    each = len(texts) // sequences
    rows = []
    for i in range(sequences):
        data = "\n".join(texts[i * each : (i + 1) * each]).encode() + b"\n"
        rows.append(list((data * (-(-length // len(data))))[:length]))
    return torch.tensor(rows, device=device)


def steps(
    batches: Iterator[Batch], features: Callable[[Any], Tensor], model: LanguageModel, sequences: int, text: int
) -> Iterator[tuple[float, float]]:
    """Loss and seconds of each training step."""
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=device.type == "cuda")
    while True:
        begun = perf_counter()
        given, texts = next(batches)
        visual = features(given)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(visual.float().view(sequences, -1, visual.shape[-1]), tokens(texts, sequences, text, device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        value = loss.item()  # waits for the device
        yield value, perf_counter() - begun


def measured(args: argparse.Namespace, tar: Path, codes: Path, width: int, depth: int, length: int) -> dict[str, Any]:
    """Both ways in turn, step by step."""
    patches = (args.side // 16) ** 2
    images = max(1, round(args.visual * length / patches))
    text = length - images * patches
    if text < 2:
        raise SystemExit(f"sequences of {length} have no room for text beside {images} images of {patches} patches")
    whole = ViQ.from_pretrained(args.weights_root, args.size, device=args.device, parts=("encoder", "embedder"))
    embedder = Embedder.from_pretrained(args.weights_root, args.size, device=args.device)
    device = torch.device(whole.device)
    order = ordered(args.pairs, args.warm_up + args.steps, images * args.sequences)

    def encoded(given: Any) -> Tensor:
        return torch.cat(whole.embed(whole.encode_pixels(given)))

    def extracted(given: Any) -> Tensor:
        made: Tensor = embedder(given.to(device))
        return made

    def of_pictures() -> Iterator[Batch]:
        yield from _loader(Pictures(tar), order, listed, args.workers)

    def of_codes() -> Iterator[Batch]:
        for batch in _loader(ShardDataset(codes), order, packed, args.workers):
            yield batch["codes"], [fields["txt"].decode() for fields in batch["fields"]]

    ways: dict[str, Iterator[tuple[float, float]]] = {}
    for name, batches, features in (("encoder", of_pictures, encoded), ("codes", of_codes, extracted)):
        torch.manual_seed(0)
        model = LanguageModel(width, depth, whole.width, length).to(device)
        ways[name] = steps(batches(), features, model, args.sequences, text)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    losses: list[tuple[float, float]] = []
    for i in range(args.warm_up + args.steps):
        pair = {name: next(way) for name, way in ways.items()}
        losses.append((pair["encoder"][0], pair["codes"][0]))
        if i >= args.warm_up:
            for name in ways:
                seconds[name].append(pair[name][1])
    apart = max(abs(a - b) for a, b in losses)
    if apart > _TOLERANCE[whole.dtype if device.type == "cpu" else "bfloat16"]:
        raise SystemExit(f"the losses of both ways are {apart} apart: they do not train on the same")
    middle = {name: 1000 * median(values) for name, values in seconds.items()}
    return {
        "width": width,
        "depth": depth,
        "parameters": model.parameters_in_all,
        "length": length,
        "images_a_sequence": images,
        "image_tokens": images * patches,
        "step_ms_encoder": round(middle["encoder"], 2),
        "step_ms_codes": round(middle["codes"], 2),
        "faster": round(middle["encoder"] / middle["codes"] - 1, 3),
        "first_and_last_loss": [round(losses[0][0], 4), round(losses[-1][0], 4)],
        "losses_apart": apart,
    }


def _loader(
    dataset: Dataset[Any], order: list[list[int]], collate: Callable[..., Any], workers: int
) -> DataLoader[Any]:
    context = "forkserver" if workers else None
    return DataLoader(
        dataset, batch_sampler=order, collate_fn=collate, num_workers=workers, multiprocessing_context=context
    )


def extract(args: argparse.Namespace, tar: Path, codes: Path) -> float:
    """Run `viq extract`; seconds of it."""
    viq, begun = Path(sys.executable).with_name("viq"), perf_counter()
    model = {"--weights-root": args.weights_root, "--size": args.size, "--device": args.device}
    options = [text for name, value in model.items() if value is not None for text in (name, str(value))]
    subprocess.run([str(viq), "extract", str(tar), "-o", str(codes), *options], check=True, stdout=subprocess.DEVNULL)
    return perf_counter() - begun


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure all; returns what is written to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights-root", help="default: nano")
    parser.add_argument("--size")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--side", type=int, default=128, help="pixels of a side of each image")
    parser.add_argument("--models", nargs="+", default=["64x2", "128x4", "256x4"], metavar="WIDTHxDEPTH")
    parser.add_argument("--lengths", nargs="+", type=int, default=[256, 512, 1024], help="tokens of a sequence")
    parser.add_argument("--visual", type=float, default=0.5, help="part of the tokens that are of images, about")
    parser.add_argument("--sequences", type=int, default=2, help="in a step")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0, help="of each loader")
    parser.add_argument("--out", type=Path, help="JSON; the plot lies beside it, as .png")
    args = parser.parse_args(arguments)
    spin_briefly()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tar, codes = Path(folder, "pairs.tar"), Path(folder, "codes")
        write(tar, args.pairs, args.side)
        seconds = extract(args, tar, codes)
        images, shards = tar.stat().st_size, sum(path.stat().st_size for path in codes.glob("*.tar"))
        for width, depth in (map(int, one.split("x")) for one in args.models):
            for length in args.lengths:
                rows.append(measured(args, tar, codes, width, depth, length))
                print(json.dumps(rows[-1]), flush=True)
    cuda = args.device != "cpu" and torch.cuda.is_available()
    result = {
        "machine": {
            "device": torch.cuda.get_device_name() if cuda else platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "model": args.size or "nano",
        "side": args.side,
        "sequences": args.sequences,
        "extraction": {"pairs": args.pairs, "seconds": round(seconds, 1), "tar_bytes": images, "shard_bytes": shards},
        "steps": rows,
    }
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        plot(result, args.out.with_suffix(".png"))
    return result


if __name__ == "__main__":
    main()
