"""Time per step of both ways as bars, one panel a language model, drawn with Pillow alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_PANEL, _HEIGHT, _TOP, _BOTTOM, _SIDE = 300, 360, 56, 60, 20
_BLUE, _ORANGE = (60, 100, 180), (225, 135, 40)


def plot(result: Mapping[str, Any], out: Path) -> None:
    """Write the picture; each panel has a scale of its own."""
    models = sorted({(row["width"], row["depth"]) for row in result["steps"]})
    image = Image.new("RGB", (2 * _SIDE + _PANEL * len(models), _HEIGHT), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    title = f"ms a step, {result['model']}, {result['sequences']} sequences a step, {result['machine']['device']}:"
    pen.text((_SIDE, 8), title, "black", font)
    x = _SIDE + pen.textlength(title, font) + 8
    for colour, words in ((_BLUE, "encoder in the loop"), (_ORANGE, "extracted codes")):
        pen.text((x, 8), words, colour, font)
        x += pen.textlength(words, font) + 12
    for i, model in enumerate(models):
        rows = [row for row in result["steps"] if (row["width"], row["depth"]) == model]
        _panel(pen, font, _SIDE + i * _PANEL, rows)
    image.save(out)


def _panel(pen: Any, font: Any, left: int, rows: list[Any]) -> None:
    most = max(max(row["step_ms_encoder"], row["step_ms_codes"]) for row in rows)
    floor, room = _HEIGHT - _BOTTOM, _HEIGHT - _TOP - _BOTTOM - 20
    width, depth, millions = rows[0]["width"], rows[0]["depth"], rows[-1]["parameters"] / 1e6
    pen.text((left, 30), f"language model {width} wide, {depth} deep ({millions:.2g} M)", "black", font)
    pen.line((left, floor, left + _PANEL - 24, floor), fill=(150, 150, 150))
    step = (_PANEL - 24) / len(rows)
    for i, row in enumerate(rows):
        begin = left + i * step + 4
        for j, (name, colour) in enumerate((("step_ms_encoder", _BLUE), ("step_ms_codes", _ORANGE))):
            x, wide = begin + j * (step - 8) / 2, (step - 8) / 2 - 3
            top = floor - room * row[name] / most
            pen.rectangle((x, top, x + wide, floor), fill=colour)
            pen.text((x, top - 17), _short(row[name]), "black", font)
        pen.text((begin, floor + 6), f"{row['length']} tokens", "black", font)
        pen.text((begin, floor + 24), f"{100 * row['faster']:+.0f} %", "black", font)


def _short(milliseconds: float) -> str:
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"
