"""Image files to checked pixels: the header decides, then the decoder."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from viq.errors import InvalidInput, TooLarge
from viq_serving.images import ImageHeader, ImageLimits, claimed_patches, decode, encode_picture, over_limit, probe
from viq_serving.types import PictureFormat

LIMITS = ImageLimits()


def file_of(image: Image.Image, format: str, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, format, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_header_tells_the_extent_that_decoding_gives(format: str, orientation: int) -> None:
    data = file_of(Image.new("RGB", (40, 24)), format, orientation)
    header, stored = probe(data, LIMITS), probe(data, LIMITS, exif=False)
    assert decode(data, LIMITS).shape == (header.height, header.width, 3)
    assert decode(data, LIMITS, exif=False).shape == (stored.height, stored.width, 3) == (24, 40, 3)
    assert header.width == (24 if orientation >= 5 else 40)


def test_the_header_names_the_format_and_counts_patches() -> None:
    data = file_of(Image.new("L", (33, 16)), "PNG")
    assert probe(data, LIMITS) == ImageHeader("PNG", 33, 16, 3)


def test_the_header_is_enough_for_a_probe() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    cut = encode_picture(noise, "png")[:200]
    assert probe(cut, LIMITS).patches == 16
    with pytest.raises(InvalidInput):
        decode(cut, LIMITS)


def test_limits_name_the_value_and_the_limit() -> None:
    data = file_of(Image.new("RGB", (40, 24)), "PNG")
    for limits, words in [
        (ImageLimits(max_pixels=959), "960 pixels, the limit is 959"),
        (ImageLimits(max_patches=5), "6 patches, the limit is 5"),
        (ImageLimits(max_bytes=len(data) - 1), f"{len(data)} bytes, the limit is {len(data) - 1}"),
    ]:
        with pytest.raises(TooLarge, match=words):
            probe(data, limits)
        with pytest.raises(TooLarge, match=words):
            decode(data, limits)
    assert decode(data, ImageLimits(len(data), 960, 6)).shape == (24, 40, 3)


def test_pixels_of_a_png_survive_the_way_out_and_in() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    assert np.array_equal(decode(encode_picture(noise, "png"), LIMITS), noise)


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_lossy_pictures_stay_close(format: PictureFormat) -> None:
    y, x = np.mgrid[0:64, 0:64]
    smooth = np.stack([2 * x, 2 * y, x + y], axis=2).astype(np.uint8)
    again = decode(encode_picture(smooth, format), LIMITS)
    assert np.abs(again.astype(int) - smooth).mean() < 3


@pytest.mark.parametrize(("format", "side"), [("jpeg", 65_536), ("webp", 16_384)])
def test_a_side_longer_than_the_format_holds_is_refused(format: PictureFormat, side: int) -> None:
    with pytest.raises(InvalidInput, match="ask for png"):
        encode_picture(np.zeros((1, side, 3), np.uint8), format)


def test_over_limit_begins_with_the_name_of_the_limit() -> None:
    assert over_limit(16, 16, LIMITS) is None
    assert str(over_limit(30_000, 30_000, LIMITS)).startswith("max_pixels: ")
    assert str(over_limit(2048, 2049, LIMITS)).startswith("max_patches: ")


@pytest.mark.parametrize(
    "start", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\xd7\xcd\xc6\x9a", b"<svg/>"]
)
def test_formats_off_the_list_are_never_opened(start: bytes) -> None:
    with pytest.raises(InvalidInput, match="not an image of a known format"):
        probe(start + bytes(100), LIMITS)


def test_a_jpeg_claims_the_size_of_its_frame_whatever_stands_before_it() -> None:
    plain = file_of(Image.new("RGB", (40, 24)), "JPEG")
    rest = plain[2:]
    for before in (b"", b"\xff" * 5, b"\xff\xd0", b"\xff\x01\xff\xd7", b"\xff\xfe\0\x09\xff\xc0\0\x11\x08\0\x10"):
        assert claimed_patches(plain[:2] + before + rest, LIMITS) == 6, before
    for before in (b"\xff\0", b"\xff\x02\0\x02", b"\xff\xd8", b"\xff\xd9", b"\xff\xf0\0\x02", b"\xff\xfe\0\x02" * 256):
        assert claimed_patches(plain[:2] + before + rest, LIMITS) is None, before
