"""Measures a checkpoint on the held-out pictures, whole: `python -m nano.evaluate`.

Everything goes the way that users go: encode to codes, decode the codes. Writes `quality.json`, `quality.md` and
`sheet.jpg`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from nano.codecs import at_bytes
from nano.measures import codebook_use, psnr, ssim
from nano.quality import held_out
from nano.sheet import Row, contact_sheet
from nano.sources import TRAINABLE, read_sources
from viq import ViQ

Pixels = npt.NDArray[np.uint8]
_KINDS = ("skimage", "photograph", "document")
_ON_SHEET = ("astronaut", "coffee", "chelsea", "rocket", "roman-colosseum", "perched-osprey",
             "cincinnati-bridge", "aitzgorri_by_Aitzol_Berasategi", "document-bars", "document-mail", "document-recipe",
             "document-poster")  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One picture's figures; of a codec at the codes' bytes, its PSNR, SSIM, file size, quality and scale."""

    name: str
    kind: str
    width: int
    height: int
    bytes: int
    psnr: float
    ssim: float
    jpeg: dict[str, float] | None
    webp: dict[str, float] | None


def evaluate(model: ViQ, data: Path, out: Path) -> dict[str, object]:
    """Measure `model` on every held-out picture, write the three files, return what the JSON file holds."""
    pictures = held_out(data)
    shown = _shown()
    measured, rows, codes = [], [], []
    for name, pixels in tqdm(pictures.items(), desc="pictures"):
        [made] = model.encode_pixels([pixels])
        [picture] = model.decode([made])
        codes.append(made.array.reshape(-1))
        size = 2 * made.array.size  # a code fits 16 bits
        coded = {codec: at_bytes(pixels, size, codec) for codec in ("JPEG", "WEBP")}
        figures = {
            codec.lower(): {
                "psnr": round(psnr(c.pixels, pixels), 2),
                "ssim": round(ssim(c.pixels, pixels), 3),
                "bytes": c.size,
                "quality": c.quality,
                "scale": c.scale,
            }
            if c
            else None
            for codec, c in coded.items()
        }
        height, width = pixels.shape[:2]
        measured.append(
            Measured(name, _kind(name), width, height, size, round(psnr(picture, pixels), 2),
                     round(ssim(picture, pixels), 3), figures["jpeg"], figures["webp"])
        )  # fmt: skip
        jpeg = coded["JPEG"]
        if name in shown and jpeg:
            rows.append(Row(name, pixels, picture, jpeg.pixels, psnr(picture, pixels), psnr(jpeg.pixels, pixels)))
    share, entropy = codebook_use(np.concatenate(codes), model.codebook_size)
    report: dict[str, object] = {
        "family": model.family,
        "dtype": model.dtype,
        "codes": sum(len(c) for c in codes),
        "codebook_share": round(share, 4),
        "entropy_bits": round(entropy, 2),
        "mean": _means(measured),
        "pictures": [asdict(m) for m in measured],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "quality.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (out / "quality.md").write_text(_table(measured, report), encoding="utf-8")
    contact_sheet(rows, out / "sheet.jpg")
    return report


def _kind(name: str) -> str:
    if name.startswith("document-"):
        return "document"
    return "skimage" if name in ("astronaut", "coffee", "chelsea", "rocket", "page") else "photograph"


def _shown() -> set[str]:
    """Pictures that may be shown again: the sheet is published under the project's own licence."""
    free = {source.name for source in read_sources() if source.licence in TRAINABLE}
    return {name for name in _ON_SHEET if name in free or name.startswith("document-")}


def _means(measured: Sequence[Measured]) -> dict[str, dict[str, float | None]]:
    means = {}
    for kind in (*_KINDS, "all"):
        chosen = [m for m in measured if kind in (m.kind, "all")]
        if chosen:
            means[kind] = {
                "pictures": len(chosen),
                "psnr": _mean([m.psnr for m in chosen]),
                "ssim": _mean([m.ssim for m in chosen]),
                "jpeg_psnr": _mean([m.jpeg["psnr"] for m in chosen if m.jpeg]),
                "jpeg_ssim": _mean([m.jpeg["ssim"] for m in chosen if m.jpeg]),
                "webp_psnr": _mean([m.webp["psnr"] for m in chosen if m.webp]),
                "webp_ssim": _mean([m.webp["ssim"] for m in chosen if m.webp]),
            }
    return means


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 3) if values else None


def _table(measured: Sequence[Measured], report: dict[str, object]) -> str:
    lines = [
        "PSNR in dB / SSIM, at the same number of bytes (8 a patch; JPEG and WebP files whole, headers included).",
        "",
        "| picture | size | bytes | nano | JPEG | WebP |",
        "|---|---|---|---|---|---|",
    ]
    for m in sorted(measured, key=lambda m: (_KINDS.index(m.kind), m.name)):
        codecs = " | ".join(_cell(c) for c in (m.jpeg, m.webp))
        lines.append(f"| {m.name} | {m.width}×{m.height} | {m.bytes:,} | {m.psnr:.1f} / {m.ssim:.2f} | {codecs} |")
    for kind, mean in _means(measured).items():
        pairs = ((mean[f"{codec}psnr"], mean[f"{codec}ssim"]) for codec in ("", "jpeg_", "webp_"))
        cells = " | ".join("–" if a is None or b is None else f"{a:.2f} / {b:.3f}" for a, b in pairs)
        lines.append(f"| **mean, {kind}** | {mean['pictures']} pictures | | {cells} |")
    lines += [
        "",
        f"Codes seen: {100 * float(str(report['codebook_share'])):.1f} % of 64,000 in {report['codes']:,}; "
        f"entropy {report['entropy_bits']} bits of 15.97.",
        "",
        "A number in brackets: the codec did best when the picture was first shrunk to that share of its sides.",
    ]
    return "\n".join(lines) + "\n"


def _cell(coded: dict[str, float] | None) -> str:
    if coded is None:
        return "does not fit"
    scale = f" [{coded['scale']}]" if coded["scale"] != 1 else ""
    return f"{coded['psnr']:.1f} / {coded['ssim']:.2f}{scale}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("build/nano/data"))
    parser.add_argument("--weights", type=Path, help="weights root to measure; default: the packaged one")
    parser.add_argument("--out", type=Path, default=Path("models/nano/results"))
    arguments = parser.parse_args()
    model = ViQ.from_pretrained(arguments.weights, "nano", device="cpu", dtype="float32")
    try:
        report = evaluate(model, arguments.data, arguments.out)
    except FileNotFoundError as error:
        sys.exit(str(error))
    print(json.dumps(report["mean"], indent=1))


if __name__ == "__main__":
    main()
