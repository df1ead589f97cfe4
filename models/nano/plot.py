"""The loss of a run as a picture, drawn with Pillow alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

_WIDTH, _HEIGHT, _MARGIN = 900, 480, 50


def plot_losses(log: Path, out: Path) -> None:
    """PSNR of the training crops (blue) and of the watched held-out pictures (orange) against minutes."""
    rows = _rows(log)
    steps = [(row["seconds"] / 60, row["psnr"]) for row in rows if "psnr" in row]
    watched = [row for row in rows if "held_out" in row]
    scores = [(row["seconds"] / 60, float(np.mean(list(row["held_out"].values())))) for row in watched]
    if not steps:
        return
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    pen = ImageDraw.Draw(image)
    end = max(x for x, _ in steps) or 1.0
    low, high = 8.0, 28.0

    def place(x: float, y: float) -> tuple[float, float]:
        share = (min(max(y, low), high) - low) / (high - low)
        return _MARGIN + (_WIDTH - 2 * _MARGIN) * x / end, _HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * share

    for level in range(int(low), int(high) + 1, 2):
        pen.line((*place(0, level), *place(end, level)), fill=(225, 225, 225))
        pen.text((12, place(0, level)[1] - 6), f"{level} dB", fill="black")
    for i in range(7):
        pen.text((place(end * i / 6, low)[0] - 12, _HEIGHT - _MARGIN + 8), f"{end * i / 6:.1f} min", fill="black")
    pen.line([place(x, y) for x, y in _smooth(steps)], fill=(40, 90, 180), width=2)
    for x, y in scores:
        px, py = place(x, y)
        pen.ellipse((px - 3, py - 3, px + 3, py + 3), fill=(230, 130, 30))
    image.save(out)


def _rows(log: Path) -> list[dict[str, Any]]:
    """The log's rows without lines that a crash cut short; of steps that a resumed run took again, the later ones."""
    rows: list[dict[str, Any]] = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        while rows and rows[-1]["seconds"] > row["seconds"]:
            rows.pop()
        rows.append(row)
    return rows


def _smooth(points: list[tuple[float, float]], share: float = 0.9) -> list[tuple[float, float]]:
    smooth, value = [], points[0][1]
    for x, y in points:
        value = share * value + (1 - share) * y
        smooth.append((x, value))
    return smooth
