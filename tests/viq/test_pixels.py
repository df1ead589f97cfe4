"""Every kind of picture gives the pixels that the interface promises."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms

from viq.errors import InvalidInput
from viq.pixels import to_rgb

Array = npt.NDArray[np.generic]
RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
SQUARE = np.array([[RED, GREEN, BLUE], [WHITE, BLACK, (10, 20, 30)]], np.uint8)  # 2 rows, 3 columns


def reopened(image: Image.Image, format: str, **options: object) -> Image.Image:
    """What a reader sees of `image` saved as `format`."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return Image.open(io.BytesIO(file.getvalue()))


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


def over_white(colour: int, alpha: int) -> int:
    return round((colour * alpha + 255 * (255 - alpha)) / 255)


def test_a_plain_rgb_image_keeps_its_pixels() -> None:
    got = to_rgb(Image.fromarray(SQUARE))
    assert got.dtype == np.uint8
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, SQUARE)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_files_keep_their_pixels(format: str) -> None:
    np.testing.assert_array_equal(to_rgb(reopened(Image.fromarray(SQUARE), format)), SQUARE)


@pytest.mark.parametrize(
    ("format", "options"), [("WEBP", {"lossless": True}), ("AVIF", {"quality": 100}), ("JPEG", {})]
)
def test_other_formats_give_what_their_decoder_gives(format: str, options: dict[str, object]) -> None:
    saved = reopened(Image.fromarray(SQUARE), format, **options)
    np.testing.assert_array_equal(to_rgb(saved), np.array(saved.convert("RGB")))


EXIF_STORED = {  # how SQUARE lies in a file whose orientation tag makes it SQUARE again
    1: SQUARE,
    2: SQUARE[:, ::-1],
    3: SQUARE[::-1, ::-1],
    4: SQUARE[::-1],
    5: SQUARE.transpose(1, 0, 2),
    6: np.rot90(SQUARE, 1),
    7: np.rot90(SQUARE.transpose(1, 0, 2), 2),
    8: np.rot90(SQUARE, -1),
}


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", list(EXIF_STORED))
def test_exif_orientation_is_applied_unless_switched_off(format: str, orientation: int) -> None:
    stored = np.ascontiguousarray(EXIF_STORED[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, object] = {"lossless": True, "exact": True} if format == "WEBP" else {}

    def file() -> Image.Image:
        return reopened(Image.fromarray(stored), format, exif=exif.tobytes() if format != "TIFF" else exif, **options)

    got = to_rgb(file())
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, SQUARE)
    np.testing.assert_array_equal(to_rgb(file(), exif=False), stored)


def test_exif_orientation_of_a_jpeg_is_applied_to_what_was_decoded() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    saved = reopened(Image.fromarray(SQUARE), "JPEG", exif=exif.tobytes())
    np.testing.assert_array_equal(to_rgb(saved), np.rot90(np.array(saved), -1))


@pytest.mark.parametrize("orientation", [0, 9, 777])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(to_rgb(reopened(Image.fromarray(SQUARE), "PNG", exif=exif)), SQUARE)


def test_damaged_exif_turns_nothing() -> None:
    saved = reopened(Image.fromarray(SQUARE), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(to_rgb(saved), SQUARE)


def test_icc_profiles_are_ignored() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    np.testing.assert_array_equal(to_rgb(reopened(Image.fromarray(SQUARE), "PNG", icc_profile=profile)), SQUARE)


def test_alpha_is_laid_over_white_correctly_rounded_for_every_colour_and_alpha() -> None:
    colour, alpha = np.meshgrid(np.arange(256), np.arange(256))
    rgba = np.stack([colour, colour[:, ::-1], 255 - colour, alpha], axis=2).astype(np.uint8)
    expected = [[[over_white(int(v), int(pixel[3])) for v in pixel[:3]] for pixel in row] for row in rgba]
    np.testing.assert_array_equal(to_rgb(Image.fromarray(rgba)), expected)
    np.testing.assert_array_equal(to_rgb(rgba), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "RGBX"])
def test_dropping_alpha_is_the_plain_rgb_conversion(mode: str) -> None:
    ramp = np.arange(4 * 64, dtype=np.uint8).reshape(8, 8, 4)
    image = Image.fromarray(ramp).convert("LA").convert("PA") if mode == "PA" else Image.fromarray(ramp).convert(mode)
    np.testing.assert_array_equal(to_rgb(image, alpha="drop"), np.array(image.convert("RGB")))


def test_grey_with_alpha_is_laid_over_white() -> None:
    image = Image.fromarray(np.array([[[0, 255], [0, 0], [100, 128]]], np.uint8), "LA")
    np.testing.assert_array_equal(to_rgb(image), [[BLACK, WHITE, (over_white(100, 128),) * 3]])
    np.testing.assert_array_equal(to_rgb(image, alpha="drop"), [[BLACK, BLACK, (100,) * 3]])


@pytest.mark.parametrize(("mode", "stored"), [("La", (50, 128)), ("RGBa", (50, 50, 50, 128))])
def test_premultiplied_alpha_is_undone_first(mode: str, stored: tuple[int, ...]) -> None:
    image = Image.new(mode, (1, 1))
    image.putpixel((0, 0), stored)
    colour = 255 * 50 // 128  # Pillow's rule for taking the alpha out
    np.testing.assert_array_equal(to_rgb(image), [[(over_white(colour, 128),) * 3]])
    np.testing.assert_array_equal(to_rgb(image, alpha="drop"), [[(colour,) * 3]])


def palette_image() -> Image.Image:
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    return image


def test_a_palette_is_looked_up() -> None:
    for format in ("PNG", "GIF", "BMP"):
        np.testing.assert_array_equal(to_rgb(reopened(palette_image(), format)), [[RED, GREEN, BLUE]])


@pytest.mark.parametrize(("format", "key"), [("PNG", 1), ("GIF", 1), ("PNG", b"\xff\x00\xff")])
def test_a_transparent_palette_entry_is_white_or_its_colour(format: str, key: object) -> None:
    np.testing.assert_array_equal(to_rgb(reopened(palette_image(), format, transparency=key)), [[RED, WHITE, BLUE]])
    np.testing.assert_array_equal(
        to_rgb(reopened(palette_image(), format, transparency=key), alpha="drop"), [[RED, GREEN, BLUE]]
    )


def test_palette_alpha_is_blended() -> None:
    image = reopened(palette_image(), "PNG", transparency=b"\x40\x80\xff")
    half = over_white(0, 128)
    np.testing.assert_array_equal(to_rgb(image), [[(255, 191, 191), (half, 255, half), BLUE]])


def test_a_colour_key_is_white_or_its_colour() -> None:
    saved = reopened(Image.fromarray(SQUARE), "PNG", transparency=(0, 255, 0))
    expected = SQUARE.copy()
    expected[0, 1] = 255
    np.testing.assert_array_equal(to_rgb(saved), expected)
    np.testing.assert_array_equal(to_rgb(saved, alpha="drop"), SQUARE)


def test_a_grey_key_is_white() -> None:
    grey = Image.fromarray(np.array([[0, 7, 200]], np.uint8))
    np.testing.assert_array_equal(to_rgb(reopened(grey, "PNG", transparency=7)), [[BLACK, WHITE, (200,) * 3]])


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


def test_one_bit_and_grey_images_are_spread_over_three_bands() -> None:
    bits = Image.fromarray(np.array([[0, 255, 255]], np.uint8)).convert("1")
    np.testing.assert_array_equal(to_rgb(bits), [[BLACK, WHITE, WHITE]])
    np.testing.assert_array_equal(to_rgb(reopened(bits, "PNG")), [[BLACK, WHITE, WHITE]])
    np.testing.assert_array_equal(to_rgb(Image.fromarray(np.array([[3, 250]], np.uint8))), [[(3,) * 3, (250,) * 3]])


EVERY_16_BIT_VALUE = np.arange(65536, dtype=np.uint16).reshape(256, 256)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_divided_by_257_rounded_to_nearest(format: str) -> None:
    got = to_rgb(reopened(Image.fromarray(EVERY_16_BIT_VALUE), format))
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
    laid = [[[over_white(int(p[c]), int(p[-1])) for c in colours] for p in row] for row in reduced]
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


def test_floating_point_images_are_refused() -> None:
    with pytest.raises(InvalidInput, match="mode F"):
        to_rgb(Image.fromarray(np.zeros((2, 2), np.float32)))


def test_cmyk_is_converted_and_adobe_inversion_undone() -> None:
    cmyk = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    np.testing.assert_array_equal(to_rgb(cmyk)[0, 0], (0, 255, 255))
    saved = reopened(cmyk, "JPEG", quality=100)  # Pillow writes Adobe's inverted form and reads it back upright
    assert np.abs(to_rgb(saved)[8, 8].astype(int) - (0, 255, 255)).max() <= 2
    np.testing.assert_array_equal(to_rgb(reopened(cmyk, "TIFF"))[0, 0], (0, 255, 255))


@pytest.mark.parametrize(("mode", "tolerance"), [("YCbCr", 2), ("HSV", 3), ("LAB", 3)])
def test_other_colour_models_are_converted(mode: str, tolerance: int) -> None:
    image = Image.fromarray(SQUARE).convert(mode)
    got = to_rgb(image)
    assert np.abs(got.astype(int) - SQUARE).max() <= tolerance
    np.testing.assert_array_equal(got, np.array(image.convert("RGB")))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_several_counts(format: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN)]
    options: dict[str, object] = {"lossless": True} if format == "WEBP" else {}
    saved = reopened(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert getattr(saved, "n_frames", 1) == 2
    np.testing.assert_array_equal(to_rgb(saved)[0, 0], RED)


def test_uint8_arrays_are_taken_as_they_are() -> None:
    assert np.shares_memory(to_rgb(SQUARE), SQUARE)
    mirrored = to_rgb(SQUARE[:, ::-1])
    assert mirrored.flags.c_contiguous
    np.testing.assert_array_equal(mirrored, SQUARE[:, ::-1])


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1)])
def test_grey_arrays_are_spread_over_three_bands(shape: tuple[int, ...]) -> None:
    grey = np.arange(6, dtype=np.uint8).reshape(shape)
    np.testing.assert_array_equal(to_rgb(grey), np.repeat(grey.reshape(2, 3, 1), 3, axis=2))


@pytest.mark.parametrize(
    ("array", "named"),
    [
        (np.zeros((2, 2, 3), np.float32), "float32"),
        (np.zeros((2, 2, 3), np.uint16), "uint16"),
        (np.zeros((2, 2, 3), bool), "bool"),
        (np.zeros((2, 2, 2), np.uint8), r"\(2, 2, 2\)"),
        (np.zeros((3,), np.uint8), r"\(3,\)"),
        (np.zeros((1, 2, 2, 3), np.uint8), r"\(1, 2, 2, 3\)"),
        (np.zeros((0, 2, 3), np.uint8), r"\(0, 2, 3\)"),
    ],
)
def test_other_arrays_are_refused_by_type_and_shape(array: npt.NDArray[np.uint8], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        to_rgb(array)


def test_other_arguments_are_refused() -> None:
    with pytest.raises(InvalidInput, match="alpha='black'; there are white and drop"):
        to_rgb(SQUARE, alpha="black")
    with pytest.raises(InvalidInput, match="image is str"):
        to_rgb("cat.png")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="0x5"):
        to_rgb(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "BMP", "GIF", "PPM"])
def test_truncated_files_are_invalid_input(format: str) -> None:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 9).save(file, format)
    data = file.getvalue()
    with pytest.raises(InvalidInput, match="cannot be decoded"):
        to_rgb(Image.open(io.BytesIO(data[: len(data) * 3 // 5])))
