"""Pages, charts, screens and textures to train on, drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from nano.drawing import Colour, Fonts, canvas, mix, paragraph

Draw = np.random.Generator
_SYLLABLES = [
    "an",
    "ber",
    "ci",
    "dol",
    "en",
    "fa",
    "gra",
    "hin",
    "is",
    "jo",
    "ka",
    "lum",
    "me",
    "nor",
    "ol",
    "pra",
    "qui",
    "re",
    "sta",
    "ti",
    "un",
    "ver",
    "wa",
    "xi",
    "ya",
    "zo",
    "the",
    "ing",
    "con",
    "pro",
    "ment",
    "al",
    "er",
    "or",
    "de",
    "lo",
    "si",
    "th",
    "ch",
    "sh",
    "ou",
    "ea",
    "ai",
    "tion",
]
_MARKS = [
    ".",
    ".",
    ",",
    ",",
    ";",
    ":",
    "?",
    "!",
    ")",
    '"',
    " 12",
    " 3.5",
    " 2024",
    " %",
    " -",
    " (a)",
    " +",
    " = x",
    " @",
]


def document(seed: int, fonts: Fonts) -> Image.Image:
    """Document number `seed`, the same each time."""
    draw = np.random.default_rng((7, seed))
    kinds: list[tuple[Callable[[Draw, Fonts], Image.Image], float]] = [
        (page, 0.30), (chart, 0.18), (screen, 0.20), (slide, 0.10), (shapes, 0.12), (texture, 0.10),
    ]  # fmt: skip
    kind = draw.choice(len(kinds), p=[share for _, share in kinds])
    return kinds[int(kind)][0](draw, fonts)


def words(draw: Draw, count: int) -> str:
    """So many words that mean nothing."""
    made = []
    for _ in range(count):
        word = "".join(draw.choice(_SYLLABLES, size=int(draw.integers(1, 5))))
        word = word.capitalize() if draw.random() < 0.12 else word.upper() if draw.random() < 0.03 else word
        made.append(word + (str(draw.choice(_MARKS)) if draw.random() < 0.16 else ""))
    return " ".join(made)


def page(draw: Draw, fonts: Fonts) -> Image.Image:
    """A page of text in one or two columns, dark on light or the reverse."""
    width, height = _size(draw, 420, 900)
    paper, ink = _pair(draw)
    image, pen = canvas(width, height, paper)
    margin, size = int(draw.integers(20, 60)), int(draw.choice([11, 12, 13, 14, 15, 16, 18, 20, 24, 30]))
    body, head = fonts.any(draw, size), fonts.any(draw, round(size * float(draw.uniform(1.3, 2.6))))
    top = margin + paragraph(pen, (margin, margin, width - margin, margin + 4 * size), words(draw, 4), head, ink)
    top -= margin - size
    columns = 2 if width > 600 and draw.random() < 0.4 else 1
    step = (width - 2 * margin) / columns
    for column in range(columns):
        left, y = margin + column * step, float(top)
        while y < height - margin:
            shade = mix(ink, paper, float(draw.choice([0.0, 0.0, 0.0, 0.3])))
            box = (left, y, left + step - 0.6 * margin * (columns > 1), height - margin)
            y = paragraph(pen, box, words(draw, int(draw.integers(15, 90))), body, shade, float(draw.uniform(1.1, 1.6)))
            y += size
            if draw.random() < 0.2:
                pen.line((left, y, left + step * 0.9, y), fill=mix(ink, paper, 0.5), width=int(draw.integers(1, 3)))
                y += size
    if draw.random() < 0.2:
        image = image.rotate(float(draw.uniform(-6, 6)), Image.Resampling.BICUBIC, fillcolor=paper)
    return image


def chart(draw: Draw, fonts: Fonts) -> Image.Image:
    """Bars, lines or points between axes."""
    width, height = _size(draw, 360, 800)
    paper, ink = _pair(draw)
    image, pen = canvas(width, height, paper)
    small, large = fonts.any(draw, int(draw.integers(10, 18))), fonts.any(draw, int(draw.integers(16, 34)))
    pen.text((width * 0.12, height * 0.03), words(draw, 4), fill=ink, font=large)
    left, top, right, bottom = width * 0.12, height * 0.14, width * 0.95, height * 0.86
    for i in range(6):
        y = bottom - (bottom - top) * i / 5
        pen.line((left, y, right, y), fill=mix(ink, paper, 0.8))
        pen.text((width * 0.03, y - 8), str(i * int(draw.integers(2, 30))), fill=ink, font=small)
    pen.line((left, top, left, bottom), fill=ink, width=2)
    pen.line((left, bottom, right, bottom), fill=ink, width=2)
    count, kind = int(draw.integers(4, 30)), draw.integers(4)
    for _ in range(int(draw.integers(1, 5)) if kind else 1):
        colour, thick = _colour(draw), int(draw.integers(1, 6))
        x = np.linspace(left + 8, right - 8, count)
        heights = np.clip(draw.random(count) * 0.4 + 0.5 * draw.random(), 0.02, 0.98)
        points = [(float(a), bottom - (bottom - top) * float(b)) for a, b in zip(x, heights, strict=True)]
        if kind == 0:
            half = (right - left) / count * 0.35
            for a, b in points:
                pen.rectangle((a - half, b, a + half, bottom), fill=mix(colour, ink, 0.2 * float(draw.random())))
        elif kind == 1:
            pen.line(points, fill=colour, width=thick)
        elif kind == 2:
            for a, b in points:
                pen.ellipse((a - thick - 1, b - thick - 1, a + thick + 1, b + thick + 1), fill=colour)
        else:
            area = [(left, bottom), *points, (right, bottom)]
            pen.polygon(area, fill=mix(colour, paper, 0.4), outline=colour)
    for i in range(5):
        pen.text((left + (right - left) * i / 5, bottom + 8), words(draw, 1), fill=ink, font=small)
    return image


def screen(draw: Draw, fonts: Fonts) -> Image.Image:
    """A window with bars, lists, buttons, fields and a picture of gradients."""
    width, height = _size(draw, 480, 1000)
    paper, ink = _pair(draw)
    accent, bar = _colour(draw), mix(paper, _colour(draw), float(draw.uniform(0.05, 0.6)))
    image, pen = canvas(width, height, paper)
    font, bold = fonts.any(draw, int(draw.integers(11, 19))), fonts.any(draw, int(draw.integers(13, 24)))
    top, side = int(draw.integers(30, 60)), int(draw.integers(90, 220))
    pen.rectangle((0, 0, width, top), fill=bar)
    pen.text((14, top / 4), words(draw, 3), fill=ink, font=bold)
    for i in range(3):
        pen.ellipse((width - 24 * i - 26, top / 3, width - 24 * i - 12, top / 3 + 14), fill=_colour(draw))
    pen.rectangle((0, top, side, height), fill=mix(bar, paper, 0.5))
    for i, y in enumerate(range(top + 14, height - 20, int(draw.integers(24, 44)))):
        if i == 2:
            pen.rectangle((0, y - 4, side, y + 20), fill=accent)
        pen.rounded_rectangle((10, y, 26, y + 16), 4, fill=mix(accent, ink, float(draw.random())))
        pen.text((34, y), words(draw, 2), fill=ink, font=font)
    y = top + 16
    while y < height - 40:
        kind, left = draw.integers(4), side + 18
        if kind == 0:
            pen.rounded_rectangle((left, y, left + 110, y + 30), int(draw.integers(0, 15)), fill=accent)
            pen.text((left + 12, y + 6), words(draw, 1), fill=paper, font=font)
            pen.rounded_rectangle((left + 130, y, width - 20, y + 30), 4, outline=mix(ink, paper, 0.5), fill=paper)
            y += 46
        elif kind == 1:
            y = int(paragraph(pen, (left, y, width - 20, y + 90), words(draw, 40), font, ink)) + 14
        elif kind == 2:
            tall = int(draw.integers(50, 160))
            image.paste(_gradient(draw, max(2, width - left - 20), tall), (left, y))
            y += tall + 14
        else:
            for column in range(3):
                x = left + column * (width - left) // 3
                pen.rectangle((x, y, x + (width - left) // 3 - 12, y + 56), fill=mix(paper, _colour(draw), 0.25))
                pen.text((x + 8, y + 6), words(draw, 1), fill=ink, font=bold)
                pen.text((x + 8, y + 32), words(draw, 2), fill=mix(ink, paper, 0.3), font=font)
            y += 72
    return image


def slide(draw: Draw, fonts: Fonts) -> Image.Image:
    """Large words over a gradient or a plain ground."""
    width, height = _size(draw, 500, 960)
    paper, ink = _pair(draw)
    image = _gradient(draw, width, height) if draw.random() < 0.5 else Image.new("RGB", (width, height), paper)
    pen = ImageDraw.Draw(image)
    if draw.random() < 0.5:
        pen.rectangle((0, 0, width, height // 5), fill=_colour(draw))
    pen.text((40, height // 14), words(draw, 3), fill=ink, font=fonts.any(draw, int(draw.integers(30, 80))))
    font = fonts.any(draw, int(draw.integers(18, 44)))
    for i, y in enumerate(range(height // 4, height - 60, int(draw.integers(44, 90)))):
        pen.ellipse((46, y + 10, 58, y + 22), fill=ink)
        pen.text((76, y), words(draw, int(draw.integers(2, 6))), fill=ink if i % 2 else mix(ink, paper, 0.2), font=font)
    return image


def shapes(draw: Draw, fonts: Fonts) -> Image.Image:
    """Overlapping plain shapes, sharp or soft."""
    width, height = _size(draw, 320, 720)
    image = _gradient(draw, 2 * width, 2 * height)
    pen = ImageDraw.Draw(image)
    for _ in range(int(draw.integers(5, 60))):
        x, y = draw.uniform(0, 2 * width), draw.uniform(0, 2 * height)
        a, b = draw.uniform(8, width * 0.7, 2)
        colour, kind = _colour(draw), draw.integers(4)
        if kind == 0:
            pen.ellipse((x - a, y - b, x + a, y + b), fill=colour)
        elif kind == 1:
            pen.rectangle((x - a, y - b, x + a, y + b), fill=colour)
        elif kind == 2:
            pen.polygon([(x + float(dx), y + float(dy)) for dx, dy in draw.normal(0, a, (4, 2))], fill=colour)
        else:
            pen.line((x, y, x + float(draw.normal(0, width)), y + float(draw.normal(0, width))),
                     fill=colour, width=int(draw.integers(1, 16)))  # fmt: skip
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    return image.filter(ImageFilter.GaussianBlur(float(draw.uniform(1, 6)))) if draw.random() < 0.3 else image


def texture(draw: Draw, fonts: Fonts) -> Image.Image:
    """Noise whose spectrum falls with a random power of the frequency, in correlated colours."""
    width, height = _size(draw, 320, 560)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    radius = np.hypot(fy, fx * float(draw.uniform(0.5, 2))) + 1.0 / max(width, height)
    planes = []
    for _ in range(3):
        spectrum = np.fft.rfft2(draw.standard_normal((height, width))) / radius ** draw.uniform(0.6, 2.2)
        plane = np.fft.irfft2(spectrum, (height, width))
        planes.append(plane / plane.std())
    blend = draw.normal(0, 0.4, (3, 3)) + np.array([1.2, 0, 0])  # the first plane is what colours share
    pixels = np.stack(planes, -1) @ blend.T * draw.uniform(15, 60) + draw.uniform(60, 200, 3)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _gradient(draw: Draw, width: int, height: int) -> Image.Image:
    corners = Image.fromarray(draw.integers(0, 256, (2, 2, 3)).astype(np.uint8))
    return corners.resize((width, height), Image.Resampling.BICUBIC)


def _size(draw: Draw, low: int, high: int) -> tuple[int, int]:
    return int(draw.integers(low, high)), int(draw.integers(low, high))


def _colour(draw: Draw) -> Colour:
    red, green, blue = (int(value) for value in draw.integers(0, 256, 3))
    return red, green, blue


def _pair(draw: Draw) -> tuple[Colour, Colour]:
    """Paper and ink: mostly near white and near black, sometimes the reverse, sometimes colours."""
    light: Colour = (255, 255, 255) if draw.random() < 0.6 else mix((255, 255, 255), _colour(draw), 0.15)
    dark: Colour = (0, 0, 0) if draw.random() < 0.4 else mix((0, 0, 0), _colour(draw), 0.35)
    return (light, dark) if draw.random() < 0.75 else (dark, light)
