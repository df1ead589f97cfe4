"""Every kind of picture gives the pixels that the interface promises."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms

from viq.errors import InvalidInput
from viq.pixels import to_rgb

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
SQUARE = np.array([[RED, GREEN, BLUE], [WHITE, BLACK, (10, 20, 30)]], np.uint8)  # 2 rows, 3 columns


def reopened(image: Image.Image, format: str, **options: object) -> Image.Image:
    """What a reader sees of `image` saved as `format`."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return Image.open(io.BytesIO(file.getvalue()))


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


def test_one_bit_and_grey_images_are_spread_over_three_bands() -> None:
    bits = Image.fromarray(np.array([[0, 255, 255]], np.uint8)).convert("1")
    np.testing.assert_array_equal(to_rgb(bits), [[BLACK, WHITE, WHITE]])
    np.testing.assert_array_equal(to_rgb(reopened(bits, "PNG")), [[BLACK, WHITE, WHITE]])
    np.testing.assert_array_equal(to_rgb(Image.fromarray(np.array([[3, 250]], np.uint8))), [[(3,) * 3, (250,) * 3]])


def test_floating_point_images_are_refused() -> None:
    with pytest.raises(InvalidInput, match="mode F"):
        to_rgb(Image.fromarray(np.zeros((2, 2), np.float32)))


def test_cmyk_is_converted_and_adobe_inversion_undone() -> None:
    cmyk = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    np.testing.assert_array_equal(to_rgb(cmyk)[0, 0], (0, 255, 255))
    saved = reopened(cmyk, "JPEG", quality=100)  # Pillow writes Adobe's inverted form and reads it back upright
    assert np.abs(to_rgb(saved)[8, 8].astype(int) - (0, 255, 255)).max() <= 2
    np.testing.assert_array_equal(to_rgb(reopened(cmyk, "TIFF"))[0, 0], (0, 255, 255))


@pytest.mark.parametrize(("mode", "tolerance"), [("YCbCr", 2), ("HSV", 3), ("LAB", 25)])
def test_other_colour_models_are_converted(mode: str, tolerance: int) -> None:
    # 8-bit LAB is coarse near saturated colours.
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
