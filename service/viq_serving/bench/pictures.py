"""Pictures drawn from a seed: photograph-like or pages of text, as the files that a caller would send."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from viq.config import grid_of
from viq_serving.bench.mixes import Mix, Size

Pixels = npt.NDArray[np.uint8]
FileFormat = Literal["jpeg", "png"]
Content = Literal["photo", "document", "mixed"]

JPEG_QUALITY = 90

_TEXT = (
    "the of and a to in is that for it was on are as with by be this from at or an have not which one all were codes",
    "image patch grid size model value table figure result between under number where after first each same order",
    "small large measured system method process although different several including approximately section",
)


@dataclass(frozen=True)
class PictureFile:
    """One picture as it is sent; `index` is its place in the order in which all were drawn."""

    index: int
    width: int
    height: int
    data: bytes

    @property
    def patches(self) -> int:
        """Patches that it takes."""
        rows, columns = grid_of(self.height, self.width)
        return rows * columns

    @property
    def pixels(self) -> int:
        """Pixels that it has."""
        return self.width * self.height


def pictures_of(
    mix: Mix,
    count: int,
    seed: int,
    file_format: FileFormat = "jpeg",
    content: Content | None = None,
    advance: Callable[[int], None] = lambda steps: None,
) -> list[PictureFile]:
    """`count` different pictures of `mix`; the same numbers give the same files with the same libraries."""
    shown, files = content or mix.content, list[PictureFile]()
    for index, size in enumerate(mix.draw(count, seed)):
        document = shown == "document" or (shown == "mixed" and index % 2 == 1)
        pixels = (page if document else photograph)(size, np.random.default_rng([seed, 2, index]))
        files.append(PictureFile(index, *size, _encoded(pixels, file_format)))
        advance(1)
    return files


def digest(files: Sequence[PictureFile]) -> str:
    """SHA-256 over those of the files: whether two runs sent the same bytes."""
    return hashlib.sha256(b"".join(hashlib.sha256(one.data).digest() for one in files)).hexdigest()


def photograph(size: Size, rng: np.random.Generator) -> Pixels:
    """Objects with edges, under light and texture whose spectrum falls by a power of frequency, as photographs' do.

    It falls a little faster than theirs, as one over frequency, so that JPEG files have 1.7 to 2.2 bits a pixel.
    (Field, "Relations between the statistics of natural images and the response properties of cortical cells", 1987.)
    """
    width, height = size
    scene = _objects(size, rng)
    light = 34 * _falling(size, 1.4, rng)[..., None]
    tint = np.stack([10 * _falling(size, 2.0, rng) for _ in range(3)], axis=-1)
    grain = rng.normal(0, 1.2, (height, width, 1)).astype(np.float32)
    pixels: Pixels = np.clip(scene + light + tint + grain, 0, 255).astype(np.uint8)
    return pixels


def page(size: Size, rng: np.random.Generator) -> Pixels:
    """Paper with a heading, paragraphs of text and now and then a figure."""
    width, height = size
    image = Image.new("RGB", size, tuple(int(v) for v in rng.integers(235, 256, 3)))
    pen, margin = ImageDraw.Draw(image), max(1, width // 12)
    text_size = max(8, width // 60)
    y, right, bottom = margin, width - margin, height - margin
    y += _line(pen, (margin, y), right, 2 * text_size, rng) + text_size
    while y < bottom:
        if rng.uniform() < 0.15:
            figure = (max(1, right - margin), min(max(1, bottom - y), max(1, height // 5)))
            image.paste(Image.fromarray(photograph(figure, rng)), (margin, y))
            y += figure[1] + text_size
            continue
        for _ in range(int(rng.integers(2, 9))):
            if y >= bottom:
                break
            y += _line(pen, (margin, y), right, text_size, rng)
        y += text_size
    return np.asarray(image)


def _falling(size: Size, exponent: float, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Noise `(H, W)` whose amplitude falls as frequency to minus `exponent`, with mean 0 and deviation 1."""
    width, height = size
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    frequency = np.hypot(down, across)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((height, width))) * frequency**-exponent
    noise = np.fft.irfft2(spectrum, (height, width))
    return (noise / max(float(noise.std()), 1e-12)).astype(np.float32)


def _objects(size: Size, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Ellipses and quadrangles of some colours upon one another, `(H, W, 3)`."""
    image = Image.new("RGB", size, _colour(rng))
    pen, scale = ImageDraw.Draw(image), np.array(size)
    for _ in range(int(rng.integers(4, 14))):
        centre, reach = rng.uniform(0, 1, 2) * scale, rng.uniform(0.05, 0.4) * scale
        if rng.uniform() < 0.5:
            pen.ellipse([*(centre - reach), *(centre + reach)], fill=_colour(rng))
        else:
            corners = centre + np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * reach * rng.uniform(0.3, 1.0, (4, 2))
            pen.polygon([(float(x), float(y)) for x, y in corners], fill=_colour(rng))
    return np.asarray(image).astype(np.float32)


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(v) for v in rng.integers(40, 216, 3))
    return red, green, blue


def _line(pen: ImageDraw.ImageDraw, start: tuple[int, int], right: int, size: int, rng: np.random.Generator) -> int:
    """Draw words from `start` to at most `right`; returns the height of the line."""
    font, words, room, known = _font(size), list[str](), right - start[0], " ".join(_TEXT).split()
    while pen.textlength(" ".join(words), font=font) < room:
        words.append(known[int(rng.integers(len(known)))])
    pen.text(start, " ".join(words[:-1]), fill=(30, 30, 36), font=font)
    return round(1.35 * size)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _encoded(pixels: Pixels, file_format: FileFormat) -> bytes:
    file = io.BytesIO()
    if file_format == "jpeg":
        Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY)
    else:
        Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
