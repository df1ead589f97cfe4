"""Image-and-text pairs: drawn figures, and sentences that say what they are."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

from PIL import Image, ImageDraw

_COLOURS = {"red": (200, 40, 40), "green": (40, 150, 60), "blue": (40, 70, 190), "yellow": (230, 200, 50)}
_FIGURES = ("disc", "square", "ring", "bar")


def pair(number: int, side: int) -> tuple[bytes, str]:
    """A JPEG of `side` x `side` pixels and what is on it; equal numbers give equal pairs."""
    rng = random.Random(number)
    image = Image.new("RGB", (side, side), (rng.randrange(256), rng.randrange(256), rng.randrange(256)))
    pen, said = ImageDraw.Draw(image), list[str]()
    for _ in range(4):
        colour, figure = rng.choice(list(_COLOURS)), rng.choice(_FIGURES)
        x, y, size = rng.randrange(side), rng.randrange(side), rng.randrange(side // 8, side // 2)
        box = (x - size // 2, y - size // 2, x + size // 2, y + size // 2)
        if figure == "disc":
            pen.ellipse(box, fill=_COLOURS[colour])
        elif figure == "ring":
            pen.ellipse(box, outline=_COLOURS[colour], width=max(1, side // 32))
        elif figure == "square":
            pen.rectangle(box, fill=_COLOURS[colour])
        else:
            pen.line(box, fill=_COLOURS[colour], width=max(1, side // 32))
        where = f"{'upper' if y < side // 2 else 'lower'} {'left' if x < side // 2 else 'right'}"
        said.append(f"a {colour} {figure} at the {where}")
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue(), ", ".join(said) + "."


def write(path: Path, count: int, side: int) -> None:
    """A tar of `count` pairs in WebDataset form: `NUMBER.jpg`, `NUMBER.txt`."""
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            image, text = pair(number, side)
            for suffix, data in (("jpg", image), ("txt", text.encode())):
                header = tarfile.TarInfo(f"{number:08d}.{suffix}")
                header.size = len(data)
                archive.addfile(header, io.BytesIO(data))
