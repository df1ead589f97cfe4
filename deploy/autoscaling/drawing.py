"""Curves over time, one panel above the other, as SVG."""

from __future__ import annotations

from dataclasses import dataclass

WIDTH, HEIGHT, LEFT, TOP, GAP = 720, 110, 50, 24, 40
MOST_POINTS = 360


@dataclass(frozen=True)
class Panel:
    """Curves by their colour, as points of seconds and values, over `seconds` from 0 on."""

    title: str
    seconds: float
    curves: dict[str, list[tuple[float, float]]]


def drawn(panels: list[Panel]) -> str:
    """The SVG of all panels."""
    size = f"0 0 {LEFT + WIDTH + 20} {TOP + len(panels) * (HEIGHT + GAP)}"
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" font-family="sans-serif" font-size="11">']
    parts.append('<rect width="100%" height="100%" fill="#fff"/>')
    for index, panel in enumerate(panels):
        parts += _lines(panel, TOP + index * (HEIGHT + GAP))
    return "\n".join([*parts, "</svg>", ""])


def _lines(panel: Panel, top: int) -> list[str]:
    most = max(value for points in panel.curves.values() for _, value in points) or 1.0
    bottom = top + HEIGHT
    lines = [
        f'<text x="{LEFT}" y="{top - 8}">{panel.title}</text>',
        f'<path d="M{LEFT},{top} V{bottom} H{LEFT + WIDTH}" stroke="#999" fill="none"/>',
        f'<text x="{LEFT - 6}" y="{top + 8}" text-anchor="end">{most:.3g}</text>',
        f'<text x="{LEFT - 6}" y="{bottom}" text-anchor="end">0</text>',
        f'<text x="{LEFT + WIDTH}" y="{bottom + 14}" text-anchor="end">{panel.seconds:.0f} s</text>',
    ]
    for colour, points in panel.curves.items():
        thinned = points[:: max(1, len(points) // MOST_POINTS)]
        places = [(LEFT + WIDTH * t / panel.seconds, bottom - HEIGHT * value / most) for t, value in thinned]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        lines.append(f'<polyline points="{line}" stroke="{colour}" fill="none" stroke-width="1.5"/>')
    return lines
