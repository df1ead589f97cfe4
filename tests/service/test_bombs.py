"""Files that would cost far more than they show, and sound files that look a little like them."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from viq.pixels import EXIF_LIMIT
from viq_serving.bombs import MeteredFile
from viq_serving.errors import InvalidInput, TooLarge
from viq_serving.images import ImageLimits, decode, probe

LIMITS = ImageLimits()
MB = 2**20


def picture(mode: str = "RGB", side: int = 64) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 4), np.uint8)
    return Image.fromarray(noise, "RGBA").resize((side, side)).convert(mode)


def written(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def refused(data: bytes, words: str) -> None:
    with pytest.raises(TooLarge, match=words):
        decode(data, LIMITS)


def scans_of(data: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of each scan of a progressive JPEG, tables before it included."""
    at = data.index(b"\xff\xc2")
    at += 2 + int.from_bytes(data[at + 2 : at + 4])
    while data[at : at + 2] != b"\xff\xd9":
        start = at
        while data[at + 1] != 0xDA:
            at += 2 + int.from_bytes(data[at + 2 : at + 4])
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
        at = next(i for i in itertools.count(at) if data[i] == 0xFF and data[i + 1] not in (0, *range(0xD0, 0xD8)))
        yield start, at


def test_a_jpeg_of_more_scans_than_any_encoder_makes_is_refused() -> None:
    plain = written(picture("L"), "JPEG", progressive=True)
    scans = list(scans_of(plain))
    last = plain[slice(*scans[-1])]
    most = plain[:-2] + last * (100 - len(scans)) + plain[-2:]
    assert decode(most, LIMITS).shape == (64, 64, 3)
    for data in (plain[:-2] + last * (101 - len(scans)) + plain[-2:], plain[:-2] + last * 5000 + plain[-2:]):
        refused(data, "more than 100 scans")
        with pytest.raises(TooLarge, match="scans"):
            probe(data, LIMITS)


def test_what_only_looks_like_scans_does_no_harm() -> None:
    plain = written(picture(), "JPEG", progressive=True)
    like, size = b"\xff\xda\0\x08" * 200, struct.pack(">H", 802)
    for name, data in {
        "in a segment": plain[:2] + b"\xff\xef" + size + like + plain[2:],
        "behind the end": plain + like,
        "in a picture behind": plain + plain * 30,
    }.items():
        assert np.array_equal(decode(data, LIMITS), decode(plain, LIMITS)), name


def test_scans_hidden_from_one_who_reads_otherwise_are_found() -> None:
    """A decoder that looks for the next restart goes past FF 02 alone, so what seems its length is not one."""
    plain = written(picture("L"), "JPEG", progressive=True)
    last = plain[slice(*list(scans_of(plain))[-1])]
    hidden = b"\xff\x02\xff\xff" + (last * 6000)[:65_533]
    refused(plain[:-2] + hidden + plain[-2:], "more than 100 scans")


def test_markers_without_end_are_refused() -> None:
    plain = written(picture("L"), "JPEG", progressive=True)
    scan = b"\xff\xef\0\x08\xff\xda\0\0\0\0"  # in a segment, so they are not scans
    refused(plain[:-2] + scan * 101 + b"\xff\xfe\0\2" * MB + plain[-2:], "more than [0-9]+ markers")


def test_filling_in_one_piece_is_refused_and_less_is_read() -> None:
    plain = written(picture("L"), "JPEG")
    refused(plain[:-2] + b"\xff" * MB + plain[-2:], f"{MB} bytes of filling")
    almost = plain[:-2] + b"\xff" * 60_000 + plain[-2:]
    assert np.array_equal(decode(almost, LIMITS), decode(plain, LIMITS))
    for filled in (b"\xff" * 40_000 + b"\0", b"\xff" * 40_000):
        data = plain[:-2] + filled + plain[-2:] + b"\xff\xda\0\x08" * 200
        assert probe(data, LIMITS).patches == 16


def test_exif_in_many_parts_is_refused() -> None:
    plain = written(picture(), "JPEG")
    part = b"\xff\xe1\0\x40Exif\0\0" + bytes(56)
    assert decode(plain[:2] + part * 16 + plain[2:], LIMITS).shape == (64, 64, 3)
    refused(plain[:2] + part * 17 + plain[2:], "17 parts, the limit is 16")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def flood(format: str) -> dict[str, bytes]:
    """A megabyte of empty blocks where the format allows them, before the pixels and among them."""
    if format == "PNG":
        plain = written(picture(), "PNG")
        return {
            "chunks": plain[:33] + chunk(b"abCd", b"") * (MB // 12) + plain[33:],
            "pixels in no pieces": plain[:33] + chunk(b"IDAT", b"") * (MB // 12) + plain[33:],
            "chunks behind": plain[:-12] + chunk(b"tEXt", b"a\0b") * (MB // 15) + plain[-12:],
        }
    if format == "JPEG":
        plain = written(picture(), "JPEG")
        return {
            "comments": plain[:2] + b"\xff\xfe\0\2" * (MB // 4) + plain[2:],
            "filling": plain[:2] + b"\xff" * (MB - 2) + plain[2:],
        }
    if format == "GIF":
        plain = written(picture("P"), "GIF")
        at = plain.index(b",", 13 + 3 * (2 << (plain[10] & 7) if plain[10] & 128 else 0))
        return {
            "comments": plain[:at] + b"!\xfe\1a\0" * (MB // 5) + plain[at:],
            "one comment": plain[:at] + b"!\xfe" + b"\1a" * (MB // 2) + b"\0" + plain[at:],
            "nothing": plain[:at] + b"a" * MB + plain[at:],
        }
    return {"one comment": b"P6 #" + b"a" * MB + b"\n16 16 255\n" + bytes(768)}


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "PPM"])
def test_a_flood_of_small_pieces_is_refused(format: str) -> None:
    for data in flood(format).values():
        refused(data, f"its {len(data)} bytes take more than {4096 + len(data) // 32} reads")


def test_a_metered_file_allows_what_it_is_told_to() -> None:
    file = MeteredFile(bytes(6400))
    file.allow(7)
    for _ in range(4096 + 200 + 7):
        file.read(1)
    for _ in range(2):
        with pytest.raises(TooLarge, match="its 6400 bytes take more than 4303 reads"):
            file.read(1)
    assert file.getvalue() == bytes(6400)


def tiff(*tags: tuple[int, int, int, int], behind: bytes = b"", large: bool = False, order: str = "<") -> bytes:
    """One directory of `tags` (number, type, count, value), in any order, and `behind` at its end."""
    mark = b"II" if order == "<" else b"MM"
    sizes = {1: "B", 2: "B", 3: "H", 4: "I", 12: "d", 16: "Q", 17: "q"}
    room = 8 if large else 4
    head = mark + (struct.pack(f"{order}HHHQ", 43, 8, 0, 16) if large else struct.pack(f"{order}HI", 42, 8))
    entries = b""
    for tag, kind, count, value in sorted(tags):
        single = struct.pack(order + sizes[kind], value) if struct.calcsize(sizes[kind]) * count <= room else None
        field = struct.pack(f"{order}{'Q' if large else 'I'}", value) if single is None else single.ljust(room, b"\0")
        entries += struct.pack(f"{order}HH{'Q' if large else 'I'}", tag, kind, count) + field
    return head + struct.pack(f"{order}{'Q' if large else 'H'}", len(tags)) + entries + bytes(room) + behind


def of_grey(wide: int, high: int, compression: int) -> list[tuple[int, int, int, int]]:
    """The tags of an 8-bit grey picture."""
    return [
        (256, 4, 1, wide),
        (257, 4, 1, high),
        (258, 3, 1, 8),
        (259, 3, 1, compression),
        (262, 3, 1, 1),
        (277, 3, 1, 1),
    ]


def tiled(wide: int, high: int, across: int, down: int, kind: int = 4, large: bool = False, order: str = "<") -> bytes:
    packed = zlib.compress(bytes(min(across * down, 4 * MB)))
    tags = [*of_grey(wide, high, 8), (322, kind, 1, across), (323, kind, 1, down)]
    start = len(tiff(*tags, (324, 4, 1, 0), (325, 4, 1, 0), large=large, order=order))
    return tiff(*tags, (324, 4, 1, start), (325, 4, 1, len(packed)), behind=packed, large=large, order=order)


@pytest.mark.parametrize(("large", "order"), [(False, "<"), (True, "<"), (False, ">")])
def test_tiles_far_larger_than_the_picture_are_refused(large: bool, order: str) -> None:
    assert decode(tiled(16, 16, 2048, 2048, large=large, order=order), LIMITS).shape == (16, 16, 3)
    refused(
        tiled(16, 16, 2048, 2064, large=large, order=order),
        f"{2048 * 2064} pixels in tiles of 2048x2064, the limit is {2**22}",
    )
    refused(tiled(16, 16, 40_000, 40_000, large=large, order=order), "1600000000 pixels in tiles")
    refused(tiled(16, 100_000, 2048, 16, large=large, order=order), f"{2048 * 100_000} pixels in tiles of 2048x16")


def test_a_size_of_tiles_that_only_the_decoder_would_read_is_refused() -> None:
    for kind, words in ((17, "type 17"), (12, "type 12")):
        with pytest.raises(InvalidInput, match=words):
            decode(tiled(16, 16, 40_000, 40_000, kind=kind, large=True), LIMITS)
    with pytest.raises(InvalidInput, match="tiles of 16xNone"):
        decode(tiff(*of_grey(16, 16, 8), (322, 4, 1, 16), (324, 4, 1, 0), (325, 4, 1, 9)), LIMITS)


@pytest.mark.parametrize(("large", "order"), [(False, "<"), (True, "<"), (False, ">")])
def test_more_strips_than_a_picture_has_use_for_are_refused(large: bool, order: str) -> None:
    for count, sound in ((16, True), (2**16 + 1, False)):
        tags = [*of_grey(16, 16, 1), (278, 3, 1, 1)]
        start = len(tiff(*tags, (273, 4, 2, 0), (279, 4, 2, 0), large=large, order=order))
        place = struct.pack(f"{order}I", start)
        data = tiff(
            *tags, (273, 4, count, start), (279, 4, count, start), behind=place * count, large=large, order=order
        )
        if sound:
            assert decode(data, LIMITS).shape == (16, 16, 3)
        else:
            refused(data, "tag 273 has 65537 values, the limit is 65536")


def test_more_numbers_than_a_picture_has_use_for_are_refused_in_directories_of_exif_too() -> None:
    inner = struct.pack("<HHHII", 1, 0x9999, 4, 2**16 + 1, 0) + bytes(4)
    for tag, middle in ((34665, b""), (34853, b""), (34665, struct.pack("<HHHII", 1, 40965, 4, 1, 0) + bytes(4))):
        start = len(tiff(*of_grey(16, 16, 1), (tag, 4, 1, 0)))
        if middle:
            middle = middle[:10] + struct.pack("<I", start + len(middle)) + middle[14:]
        data = tiff(*of_grey(16, 16, 1), (tag, 4, 1, start), behind=middle + inner + bytes(4 * 2**16 + 4))
        refused(data, "tag 39321 has 65537 values, the limit is 65536")
    with pytest.raises(InvalidInput, match="tag 34665 is of type 16"):
        decode(tiff(*of_grey(16, 16, 1), (34665, 16, 1, 8)), LIMITS)


def test_directories_that_lead_to_themselves_come_to_an_end() -> None:
    start = len(tiff(*of_grey(16, 16, 1), (34665, 4, 1, 0)))
    inner = struct.pack("<HHHII", 1, 34665, 4, 1, start) + bytes(4)
    with pytest.raises(InvalidInput, match="not an image"):
        decode(tiff(*of_grey(16, 16, 1), (34665, 4, 1, start), behind=inner), LIMITS)
    chain = b"".join(struct.pack("<HHHII", 1, 34665, 4, 1, start + 18 * (i + 1)) + bytes(4) for i in range(20))
    refused(tiff(*of_grey(16, 16, 1), (34665, 4, 1, start), behind=chain), "more than 16 directories")


def test_many_packed_texts_and_profiles_are_refused() -> None:
    plain, profile = written(picture(), "PNG"), chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1000)))
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1000)))
    assert decode(plain[:33] + profile + text * 63 + plain[33:], LIMITS).shape == (64, 64, 3)
    refused(plain[:33] + profile * 2 + text * 63 + plain[33:], "65 packed texts and profiles, the limit is 64")


@pytest.mark.parametrize("packed", [zlib.compress(b""), b"\x80"])
def test_strips_that_are_the_same_bytes_are_refused(packed: bytes) -> None:
    strip, count = packed * (200_000 // len(packed)), 64
    tags = [*of_grey(16, count, 32773), (278, 3, 1, 1)]
    start = len(tiff(*tags, (273, 4, 2, 0), (279, 4, 2, 0)))
    places, sizes = struct.pack("<I", start + 8 * count) * count, struct.pack("<I", len(strip)) * count
    data = tiff(*tags, (273, 4, count, start), (279, 4, count, start + 4 * count), behind=places + sizes + strip)
    refused(data, f"{len(data)} bytes has strips or tiles of {count * len(strip)} bytes")


def jpeg_strip(rows: int, high: int, strip: bytes, *more: tuple[int, int, int, int]) -> bytes:
    tags = [*of_grey(64, high, 7), (278, 3, 1, rows), (279, 4, 1, len(strip)), *more]
    start = len(tiff(*tags, (273, 4, 1, 0)))
    return tiff(*tags, (273, 4, 1, start), behind=strip)


def test_jpeg_higher_than_its_strip_is_refused() -> None:
    strip = written(picture("L"), "JPEG", progressive=True)
    assert decode(jpeg_strip(64, 64, strip), LIMITS).shape == (64, 64, 3)
    tall = written(picture("L").resize((64, 96)), "JPEG", progressive=True)
    refused(jpeg_strip(64, 64, tall), "JPEG of 96 rows where 80 are the limit")
    frame = b"\xff\xfe\0\x0e" + tall[tall.index(b"\xff\xc2") :][:12].replace(
        struct.pack(">H", 96), struct.pack(">H", 64)
    )
    filled = tall.replace(b"\xff\xc2", b"\xff" * 3 + b"\xc2", 1)
    refused(jpeg_strip(64, 64, filled[:2] + frame + filled[2:]), "JPEG of 96 rows")
    hidden = strip[:2] + b"\xff\xe0\0\x02" * 40 + strip[2:]
    with pytest.raises(InvalidInput, match="does not begin with its size"):
        decode(jpeg_strip(64, 64, hidden), LIMITS)


def test_more_tags_than_any_file_has_are_refused() -> None:
    data = tiff(*of_grey(16, 16, 1), *[(1000 + i, 3, 1, 0) for i in range(4100)])
    refused(data, "4106 tags in one directory, the limit is 4096")


def test_what_trips_an_assertion_of_the_decoder_is_refused() -> None:
    with pytest.raises(InvalidInput, match="cannot be decoded"):
        decode(b"PyP 4 4 255\n" + bytes(16), LIMITS)


def test_tags_on_top_of_each_other_are_refused() -> None:
    size = 100_000
    data = tiff(*of_grey(16, 16, 1), *[(40_000 + i, 1, size, 0) for i in range(10)], behind=bytes(size))
    refused(data, f"{len(data)} bytes has tags of {10 * size + 16} bytes")


def test_a_tiff_that_ends_before_its_tags_is_refused() -> None:
    for data in (b"II*\0", b"II*\0\xff\xff\xff\xff", b"II+\0\x08\0\0\0" + b"\xff" * 8):
        with pytest.raises(InvalidInput, match="cut off before its tags"):
            decode(data, LIMITS)


def test_a_big_tiff_that_readers_take_for_two_things_is_refused() -> None:
    with pytest.raises(InvalidInput, match="high byte first"):
        probe(tiff(*of_grey(16, 16, 1), large=True, order=">"), LIMITS)


@pytest.mark.parametrize("kind", ["P1", "P2", "P3"])
def test_plain_pixels_among_comments(kind: str) -> None:
    samples = b"1 " * (16 * 16 * (3 if kind == "P3" else 1))
    head = f"{kind} 16 16 {'' if kind == 'P1' else '255'}\n".encode()
    assert decode(head + b"#c\n" * 1024 + samples, LIMITS).shape == (16, 16, 3)
    refused(head + b"#c\n" * 1025 + samples, "1025 comments, the limit is 1024")


def test_exif_before_or_behind_the_pixels_is_looked_at_up_to_its_limit() -> None:
    plain, large = written(picture(), "PNG"), b"II*\0\x08\0\0\0\0\0" + bytes(EXIF_LIMIT)
    for data in (plain[:33] + chunk(b"eXIf", large) + plain[33:], plain[:-12] + chunk(b"eXIf", large) + plain[-12:]):
        refused(data, f"bytes of EXIF, the limit is {EXIF_LIMIT}")
    assert decode(plain[:33] + chunk(b"eXIf", large[:-100]) + plain[33:], LIMITS).shape == (64, 64, 3)


def test_sound_files_of_many_pieces_are_read() -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (256, 256, 3), np.uint8))
    png = written(noise, "PNG")
    whole = b"".join(png[at + 8 : at + 8 + size] for at, size in idats(png))
    small = b"".join(chunk(b"IDAT", whole[at : at + 1024]) for at in range(0, len(whole), 1024))
    many = {
        "PNG of small chunks": png[: png.index(b"IDAT") - 4] + small + png[-12:],
        "GIF of many frames": written(
            noise, "GIF", save_all=True, append_images=[noise.rotate(i) for i in range(1, 10)]
        ),
        "16-bit PPM": b"P6 256 256 1000\n" + rng.integers(0, 4, 256 * 256 * 6, np.uint8).tobytes(),
        "plain PPM": b"P3 256 256 255\n" + b" ".join(str(x).encode() for x in np.asarray(noise).reshape(-1)),
        "packed BMP": packed_bmp(256),
        "JPEG with restarts": written(noise, "JPEG", quality=95, restart_marker_blocks=1),
        "TIFF in packed strips of a row": written(noise, "TIFF", compression="tiff_lzw", tiffinfo={278: 1}),
        "TIFF in strips of a row": written(noise, "TIFF", tiffinfo={278: 1}),
    }
    for name, data in many.items():
        assert decode(data, LIMITS).shape == (256, 256, 3), name
    assert np.array_equal(decode(many["PNG of small chunks"], LIMITS), np.asarray(noise))


def idats(png: bytes) -> Iterator[tuple[int, int]]:
    at = 8
    while at < len(png):
        size = int.from_bytes(png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            yield at, size
        at += 12 + size


def packed_bmp(side: int) -> bytes:
    """Run-length coded, each pixel a run."""
    runs = (b"\1\7" * side + b"\0\0") * side + b"\0\1"
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(runs), 0, 0, 256, 0)
    start = 14 + len(head) + 1024
    return b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start) + head + bytes(range(256)) * 4 + runs
