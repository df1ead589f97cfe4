"""Files of other than 8 bits a sample, most of them made by hand, as Pillow writes few of them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from viq.errors import InvalidInput
from viq.pixels import to_rgb

Array = npt.NDArray[np.generic]
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def png(samples: Array, depth: int, kind: int, transparent: bytes = b"") -> Image.Image:
    """A PNG that Pillow cannot write; `samples` are `(H, W, bands)`, or packed rows for fewer than 8 bits."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    width = samples.shape[1] * 8 // depth if depth < 8 else samples.shape[1]
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, samples.shape[0], depth, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(n, d) for n, d in chunks if d or n != b"tRNS")
    return Image.open(io.BytesIO(data))


def tiff16(samples: Array, order: str, deflate: bool = False, apart: bool = False) -> Image.Image:
    """A 16-bit RGB TIFF, one strip a band if `apart`."""
    height, width, bands = samples.shape
    wire = samples.astype(f"{order}u2")
    strips = [wire[..., b].tobytes() for b in range(bands)] if apart else [wire.tobytes()]
    strips = [zlib.compress(s) if deflate else s for s in strips]
    starts = [8 + sum(map(len, strips[:i])) for i in range(len(strips))]
    end = starts[-1] + len(strips[-1])
    tags = [(256, [width]), (257, [height]), (258, [16] * bands), (259, [8 if deflate else 1]), (262, [2])]
    tags += [(273, starts), (277, [bands]), (278, [height]), (279, list(map(len, strips))), (284, [2 if apart else 1])]
    directory, spill = struct.pack(f"{order}H", len(tags)), b""
    for tag, values in tags:
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            where = end + 2 + 12 * len(tags) + 4 + len(spill)
            spill, packed = spill + packed, struct.pack(f"{order}I", where)
        directory += struct.pack(f"{order}HHI", tag, 4, len(values)) + packed
    mark = b"II*\0" if order == "<" else b"MM\0*"
    data = mark + struct.pack(f"{order}I", end) + b"".join(strips) + directory + bytes(4) + spill
    return Image.open(io.BytesIO(data))


def eighth(samples: Array) -> Array:
    """16 bits to 8, as the interface says, in exact arithmetic."""
    return np.array([(2 * int(v) + 257) // 514 for v in samples.ravel()]).reshape(samples.shape)


@pytest.mark.parametrize(("depth", "row", "key"), [(2, 0b00_01_10_11, 1), (4, 0x05, 5), (1, 0b01000000, 1)])
def test_a_grey_key_of_few_bits_is_white_too(depth: int, row: int, key: int) -> None:
    per_byte, top = 8 // depth, 2**depth - 1
    levels = [row >> depth * (per_byte - 1 - i) & top for i in range(per_byte)]
    packed = np.array([[row]], np.uint8)
    plain = [[(v * 255 // top,) * 3 for v in levels]]
    np.testing.assert_array_equal(to_rgb(png(packed, depth, 0)), plain)
    keyed = [[WHITE if v == key else (v * 255 // top,) * 3 for v in levels]]
    np.testing.assert_array_equal(to_rgb(png(packed, depth, 0, struct.pack(">H", key))), keyed)
    np.testing.assert_array_equal(to_rgb(png(packed, depth, 0, struct.pack(">H", key)), alpha="drop"), plain)


EVERY_16_BIT_VALUE = np.arange(65536, dtype=np.uint16).reshape(256, 256)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_divided_by_257_rounded_to_nearest(format: str) -> None:
    file = io.BytesIO()
    Image.fromarray(EVERY_16_BIT_VALUE).save(file, format)
    got = to_rgb(Image.open(file))
    np.testing.assert_array_equal(got, np.repeat(eighth(EVERY_16_BIT_VALUE)[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I"])
def test_every_16_bit_mode_counts_alike(mode: str) -> None:
    wire = {"I;16B": ">u2", "I": "=i4"}.get(mode, "<u2")
    image = Image.frombytes(mode, (256, 256), EVERY_16_BIT_VALUE.astype(wire).tobytes())
    np.testing.assert_array_equal(to_rgb(image)[..., 1], eighth(EVERY_16_BIT_VALUE))


def test_a_16_bit_grey_key_is_white_and_nothing_near_it() -> None:
    samples = np.array([[[0], [1000], [1001]]], np.uint16)
    image = png(samples, 16, 0, struct.pack(">H", 1000))
    np.testing.assert_array_equal(to_rgb(image), [[BLACK, WHITE, (4,) * 3]])
    np.testing.assert_array_equal(to_rgb(png(samples, 16, 0, struct.pack(">H", 1000)), alpha="drop")[0, 1], (4,) * 3)


def deep(bands: int) -> npt.NDArray[np.uint16]:
    return np.random.default_rng(bands).integers(0, 65536, (9, 7, bands), dtype=np.uint16)


def test_16_bit_colour_png_is_divided_by_257_too() -> None:
    np.testing.assert_array_equal(to_rgb(png(deep(3), 16, 2)), eighth(deep(3)))


@pytest.mark.parametrize(("bands", "kind", "colours"), [(4, 6, [0, 1, 2]), (2, 4, [0, 0, 0])])
def test_16_bit_png_with_alpha_is_reduced_before_it_is_laid_over_white(
    bands: int, kind: int, colours: list[int]
) -> None:
    reduced = eighth(deep(bands))
    np.testing.assert_array_equal(to_rgb(png(deep(bands), 16, kind), alpha="drop"), reduced[..., colours])
    laid = to_rgb(reduced[..., [*colours, bands - 1]].astype(np.uint8))
    np.testing.assert_array_equal(to_rgb(png(deep(bands), 16, kind)), laid)


def test_a_16_bit_colour_key_is_white_and_nothing_near_it() -> None:
    samples = np.array([[(1000, 2000, 3000), (1000, 2000, 3001)]], np.uint16)
    image = png(samples, 16, 2, struct.pack(">HHH", 1000, 2000, 3000))
    np.testing.assert_array_equal(to_rgb(image), [[WHITE, (4, 8, 12)]])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True])
def test_16_bit_colour_tiff_is_divided_by_257_too(order: str, deflate: bool) -> None:
    np.testing.assert_array_equal(to_rgb(tiff16(deep(3), order, deflate)), eighth(deep(3)))


def test_a_16_bit_tiff_with_bands_apart_is_read_closely_or_refused() -> None:
    got = to_rgb(tiff16(deep(3), "<", deflate=True, apart=True))
    assert np.abs(got.astype(int) - eighth(deep(3)).astype(int)).max() <= 1
    with pytest.raises(InvalidInput, match="16-bit TIFF with bands stored apart"):
        to_rgb(tiff16(deep(3), "<", apart=True))


def test_a_16_bit_image_loaded_before_has_its_high_bytes() -> None:
    image = png(deep(3), 16, 2)
    image.load()
    np.testing.assert_array_equal(to_rgb(image), deep(3) >> 8)


@pytest.mark.parametrize("value", [-1, 65536])
def test_samples_beyond_16_bits_are_refused_by_value(value: int) -> None:
    with pytest.raises(InvalidInput, match=f"sample {value} .mode I., expected 0 to 65535"):
        to_rgb(Image.fromarray(np.array([[0, value]], np.int32)))
