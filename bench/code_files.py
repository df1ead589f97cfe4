"""How many bytes pictures take as codes: packed, compressed, and beside raw pixels, PNG and JPEG.

    make nano-data && python bench/code_files.py --out bench/results/code_files.json

`nano`'s codes of real pictures it was not trained on. Other sizes: files of codes drawn evenly from their codebooks for
the same grids, which nothing compresses, so these are the most that codes of that size take. `planes` is one other way
to compress that was tried: the digits of codes by their levels, one dimension after another.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import zstandard
from full_size import machine
from PIL import Image

from viq import Codes, ViQ
from viq.config import VARIANTS


def forms(codes: Codes, image: Image.Image) -> Mapping[str, Callable[[], int]]:
    """Bytes of each form; all but those of pixels by the functions that write the files."""
    return {
        "raw": lambda: 3 * image.width * image.height,
        "png": lambda: _file(image, "PNG", optimize=True),
        "jpeg_90": lambda: _file(image, "JPEG", quality=90),
        "jpeg_75": lambda: _file(image, "JPEG", quality=75),
        "jpeg_25": lambda: _file(image, "JPEG", quality=25),
        "npz": lambda: len(codes.npz_bytes()),
        "packed": lambda: len(codes.viq_bytes("never")),
        "viq": lambda: len(codes.viq_bytes()),
        "zstd_3": lambda: 60 + len(zstandard.compress(codes.to_bytes(), 3)),
        "planes": lambda: 60 + len(zstandard.compress(_planes(codes), 19)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, default=Path("build/nano/data/held-out"))
    parser.add_argument("--longest", type=int, default=1024, help="pixels of the longer side at most")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model, rng, rows = ViQ.from_pretrained(parts=("encoder",)), np.random.default_rng(0), list[dict[str, Any]]()
    milliseconds = dict[str, list[float]](write=[], read=[])
    for path in sorted(args.pictures.glob("*.png")):
        image = Image.open(path).convert("RGB")
        image.thumbnail((args.longest, args.longest), Image.Resampling.LANCZOS)
        (codes,) = model.encode([image])
        row: dict[str, Any] = {"picture": path.stem, "kind": "drawn" if "document-" in path.stem else "photograph"}
        row |= {name: form() for name, form in forms(codes, image).items()}
        for size, variant in VARIANTS.items():
            drawn = rng.integers(0, variant.codebook_size, codes.array.shape, dtype=np.uint16)
            row[f"size_{size}"] = len(Codes(drawn, codes.image_size, size, codes.fingerprint).viq_bytes())
        begun = perf_counter()
        data = codes.viq_bytes()
        milliseconds["write"].append(1000 * (perf_counter() - begun))
        begun = perf_counter()
        assert Codes.from_viq(data) == codes
        milliseconds["read"].append(1000 * (perf_counter() - begun))
        rows.append(row)
        print(json.dumps(row), flush=True)
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in ("photograph", "drawn")}
    result = {
        "machine": machine(),
        "median_ms": {name: round(median(values), 2) for name, values in milliseconds.items()},
        "of_raw": {kind: _shares(some) for kind, some in kinds.items() if some},
        "pictures": rows,
    }
    print(json.dumps({name: result[name] for name in ("median_ms", "of_raw")}, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def _shares(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Each form's bytes of all pictures: how many times they fit into the raw ones."""
    names = [name for name in rows[0] if name not in ("picture", "kind", "raw")]
    raw = sum(row["raw"] for row in rows)
    return {"pictures": len(rows), **{name: f"1/{raw / sum(row[name] for row in rows):.1f}" for name in names}}


def _planes(codes: Codes) -> bytes:
    rest, digits = codes.array.astype(np.int64), list[Any]()
    for level in VARIANTS[codes.size].levels:
        digits.append((rest % level).astype(np.uint8))
        rest //= level
    return np.stack(digits).tobytes()


def _file(image: Image.Image, form: str, **options: Any) -> int:
    file = io.BytesIO()
    image.save(file, form, **options)
    return len(file.getvalue())


if __name__ == "__main__":
    main()
