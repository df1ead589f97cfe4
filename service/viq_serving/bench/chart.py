"""Charts of curves, drawn with Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Point = tuple[float, float]
Colour = tuple[int, int, int]

WIDTH, HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 24, 66, 52
_LEGEND_ROWS, _NOTE = 2, 70
_TWICE = 2  # drawn twice as large and made smaller, so that lines are smooth
_GREY, _LIGHT, _INK = (120, 120, 120), (228, 228, 228), (30, 30, 34)
# Colours that are told apart also without red and green: Okabe and Ito, "Color universal design", 2008.
_COLOURS: tuple[Colour, ...] = (
    (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0), (90, 90, 90),
)  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """Points in the order in which they are joined; `dashed` to tell a second measure of one thing apart."""

    name: str
    points: Sequence[Point]
    colour: int
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Curves over one axis; `log_x` and `log_y`: by powers of ten, for values above 0 alone; `note` stands below."""

    title: str
    x: str
    y: str
    curves: Sequence[Curve]
    log_x: bool = False
    log_y: bool = False
    note: str = ""


def draw(charts: Sequence[Chart], path: Path) -> None:
    """Write a PNG of the charts, one below the other."""
    whole = Image.new("RGB", (WIDTH, HEIGHT * max(1, len(charts))), "white")
    for index, chart in enumerate(charts):
        whole.paste(_drawn(chart), (0, index * HEIGHT))
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.quantize(128, dither=Image.Dither.NONE).save(path, "PNG", optimize=True)


def _drawn(chart: Chart) -> Image.Image:
    image = Image.new("RGB", (WIDTH * _TWICE, HEIGHT * _TWICE), "white")
    pen = ImageDraw.Draw(image)
    points = [point for curve in chart.curves for point in curve.points]
    x, x_ticks = _axis([point[0] for point in points], _LEFT, WIDTH - _RIGHT, log=chart.log_x)
    y, y_ticks = _axis([point[1] for point in points], HEIGHT - _BOTTOM, _TOP, log=chart.log_y)
    for value in y_ticks:
        _line(pen, [(_LEFT, y(value)), (WIDTH - _RIGHT, y(value))], _LIGHT)
        _text(pen, (_LEFT - 8, y(value)), _number(value), _GREY, "rm")
    for value in x_ticks:
        _line(pen, [(x(value), HEIGHT - _BOTTOM), (x(value), HEIGHT - _BOTTOM + 4)], _GREY)
        _text(pen, (x(value), HEIGHT - _BOTTOM + 8), _number(value), _GREY, "mt")
    _line(pen, [(_LEFT, _TOP), (_LEFT, HEIGHT - _BOTTOM), (WIDTH - _RIGHT, HEIGHT - _BOTTOM)], _GREY)
    _text(pen, (12, 10), chart.title, _INK, "lt", size=15)
    _text(pen, (_LEFT - 8, _TOP - 10), chart.y, _GREY, "lb")
    _text(pen, (WIDTH - _RIGHT, HEIGHT - 10), chart.x, _GREY, "rb")
    _text(pen, (12, HEIGHT - 10), _shortened(chart.note), _INK, "lb")
    for curve in chart.curves:
        colour = _COLOURS[curve.colour % len(_COLOURS)]
        places = [(x(point[0]), y(point[1])) for point in curve.points]
        (_dashes if curve.dashed else _line)(pen, places, colour, 2)
        for place in places:
            _dot(pen, place, colour)
    _legend(pen, chart.curves)
    return image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def _legend(pen: ImageDraw.ImageDraw, curves: Sequence[Curve]) -> None:
    """The names at the right, in as many lines as they take; of more than two those of dashed curves are left out."""
    rows = _rows(pen, curves)
    if len(rows) > _LEGEND_ROWS:
        rows = _rows(pen, [curve for curve in curves if not curve.dashed])
    for number, row in enumerate(rows[:_LEGEND_ROWS]):
        left, y = float(WIDTH - _RIGHT), 35 + 16 * number
        for curve in reversed(row):
            left -= _width(pen, curve)
            _text(pen, (left + 28, y), curve.name, _INK, "lm")
            colour = _COLOURS[curve.colour % len(_COLOURS)]
            (_dashes if curve.dashed else _line)(pen, [(left, y), (left + 22, y)], colour, 2)
            left -= 16


def _rows(pen: ImageDraw.ImageDraw, curves: Sequence[Curve]) -> list[list[Curve]]:
    """The curves in lines as wide as the chart."""
    rows, room = list[list[Curve]](), 0.0
    for curve in curves:
        if not rows or room < _width(pen, curve):
            rows, room = [*rows, []], float(WIDTH - _RIGHT - 12)
        rows[-1].append(curve)
        room -= _width(pen, curve) + 16
    return rows


def _width(pen: ImageDraw.ImageDraw, curve: Curve) -> float:
    return 28 + pen.textlength(curve.name, font=_font(12)) / _TWICE


def _shortened(note: str) -> str:
    return note if len(note) <= _NOTE else f"{note[: _NOTE - 1]}…"


def _axis(
    values: Sequence[float], begin: float, end: float, *, log: bool
) -> tuple[Callable[[float], float], list[float]]:
    """Where on the picture a value lies, and the values that are marked."""
    known = [value for value in values if math.isfinite(value) and (value > 0 or not log)] or [1.0]
    if not log:
        step = _step(max(known) or 1.0)
        most = step * math.ceil(max(known) / step - 1e-9) or step
        ticks = [step * index for index in range(round(most / step) + 1)]
        return lambda value: begin + (end - begin) * min(max(value, 0.0), most) / most, ticks
    marks = [factor * 10.0**power for power in range(-6, 16) for factor in (1, 2, 5)]
    low = max((mark for mark in marks[:-1] if mark <= min(known) * 1.0001), default=marks[0])
    high = min((mark for mark in marks if mark >= max(known) * 0.9999 and mark > low), default=marks[-1])
    span = math.log(high / low)
    return (
        lambda value: begin + (end - begin) * math.log(min(max(value, low), high) / low) / span,
        [mark for mark in marks if low <= mark <= high],
    )


def _step(most: float) -> float:
    """A round distance of marks, four to eight of them up to `most`."""
    power = 10.0 ** math.floor(math.log10(most / 4))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if most / (power * factor) <= 8)


def _number(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}"


def _line(pen: ImageDraw.ImageDraw, places: Sequence[Point], colour: Colour, width: int = 1) -> None:
    if len(places) > 1:
        pen.line([(a * _TWICE, b * _TWICE) for a, b in places], fill=colour, width=width * _TWICE, joint="curve")


def _dashes(pen: ImageDraw.ImageDraw, places: Sequence[Point], colour: Colour, width: int = 1) -> None:
    for (x0, y0), (x1, y1) in pairwise(places):
        pieces = max(1, round(math.hypot(x1 - x0, y1 - y0) / 5))
        for piece in range(0, pieces, 2):
            a, b = piece / pieces, min(1.0, (piece + 1) / pieces)
            _line(pen, [(x0 + (x1 - x0) * t, y0 + (y1 - y0) * t) for t in (a, b)], colour, width)


def _dot(pen: ImageDraw.ImageDraw, place: Point, colour: Colour) -> None:
    x, y = (value * _TWICE for value in place)
    pen.ellipse([x - 5, y - 5, x + 5, y + 5], fill=colour)


def _text(pen: ImageDraw.ImageDraw, place: Point, text: str, colour: Colour, anchor: str, size: int = 12) -> None:
    pen.text((place[0] * _TWICE, place[1] * _TWICE), text, fill=colour, font=_font(size), anchor=anchor)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * _TWICE)
