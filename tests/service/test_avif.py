"""What AVIF files ask of a decoder: read from files that Pillow wrote, and from files put together here box by box."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from viq.pixels import EXIF_LIMIT
from viq_serving.avif import coded_pixels, is_avif
from viq_serving.errors import InvalidInput, TooLarge, ViQError
from viq_serving.images import ImageLimits, decode, probe

LIMITS = ImageLimits()
WIDTH, HEIGHT = 96, 80
KEY, SHOWN = 0, 1


def picture(mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (size[1] // 8, size[0] // 8, 4), np.uint8)
    return Image.fromarray(noise, "RGBA").resize(size).convert(mode)


def written(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "AVIF", speed=10, **options)
    return buffer.getvalue()


def box(kind: bytes, *inside: bytes) -> bytes:
    body = b"".join(inside)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def long_box(kind: bytes, *inside: bytes) -> bytes:
    body = b"".join(inside)
    return struct.pack(">I4sQ", 1, kind, 16 + len(body)) + body


def found(data: bytes, kind: bytes) -> bytes:
    """What is in the first box of that kind."""
    at = data.index(kind)
    return data[at + 4 : at - 4 + int.from_bytes(data[at - 4 : at])]


def container(
    payload: bytes, *, iloc: Callable[[int], bytes], idat: bytes = b"", pieces: tuple[bytes, ...] = ()
) -> bytes:
    """An AVIF of one item, whose bytes stand where `iloc`, given the offset of what follows the boxes, says."""
    plain = written(picture())

    def file(offset: int) -> bytes:
        meta = box(
            b"meta",
            bytes(4),
            box(b"hdlr", found(plain, b"hdlr")),
            box(b"pitm", struct.pack(">IH", 0, 1)),
            box(b"iloc", iloc(offset)),
            box(
                b"iinf", struct.pack(">IH", 0, 1), box(b"infe", b"\2\0\0\0", struct.pack(">HH4s", 1, 0, b"av01"), b"\0")
            ),
            box(b"iprp", found(plain, b"iprp")),
            *([box(b"idat", idat)] if idat else []),
        )
        return box(b"ftyp", found(plain, b"ftyp")) + meta

    head = file(2**16)
    return file(len(head) + 8) + box(b"mdat", *(pieces or (payload,)))


@pytest.mark.parametrize(("mode", "frames"), [("RGB", 1), ("L", 1), ("RGBA", 2)])
@pytest.mark.parametrize("options", [{}, {"tile_rows": 1, "tile_cols": 1}, {"quality": 100, "subsampling": "4:4:4"}])
def test_a_still_picture_has_its_own_pixels_and_those_of_alpha(
    mode: str, frames: int, options: dict[str, object]
) -> None:
    data = written(picture(mode), **options)
    assert is_avif(data)
    assert coded_pixels(data) == frames * WIDTH * HEIGHT
    assert decode(data, LIMITS).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(("mode", "frames"), [("RGB", 1), ("RGBA", 2)])
def test_of_an_animation_the_still_and_the_first_frames_count(mode: str, frames: int) -> None:
    one = picture(mode)
    data = written(one, save_all=True, append_images=[one.rotate(90 * turn) for turn in range(1, 5)])
    assert coded_pixels(data) == 2 * frames * WIDTH * HEIGHT  # the primary item is there beside the tracks
    assert decode(data, LIMITS).shape == (HEIGHT, WIDTH, 3)


def test_small_frames_count_as_one_block() -> None:
    assert coded_pixels(written(picture(size=(16, 16)))) == 64 * 64


@pytest.mark.parametrize("side", [2056, 4096])
def test_a_frame_larger_than_the_picture_claims_to_be_is_too_large(side: int) -> None:
    data = bytearray(written(Image.new("RGB", (side, side))))
    at = data.index(b"ispe") + 8
    assert struct.unpack_from(">II", data, at) == (side, side)
    struct.pack_into(">II", data, at, 16, 16)
    assert coded_pixels(bytes(data)) == side * side
    for read in (probe, decode):
        with pytest.raises(TooLarge, match=f"16x16 has {side * side} pixels in its frames, the limit is {2**22}"):
            read(bytes(data), LIMITS)


def test_every_way_to_say_where_an_item_is_comes_to_the_same() -> None:
    plain = written(picture())
    payload = found(plain, b"mdat")
    half = len(payload) // 2
    count, rest = struct.pack(">HH", 1, 1), len(payload) - half
    forms = {
        "offset and length": container(
            payload, iloc=lambda at: b"\0\0\0\0\x44\0" + count + struct.pack(">HHII", 0, 1, at, len(payload))
        ),
        "64 bits, and a base": container(
            payload, iloc=lambda at: b"\0\0\0\0\x88\x80" + count + struct.pack(">HQHQQ", 0, at - 5, 1, 5, len(payload))
        ),
        "two pieces, the second first": container(
            payload,
            iloc=lambda at: b"\0\0\0\0\x44\0" + count + struct.pack(">HHIIII", 0, 2, at + rest, half, at, rest),
            pieces=(payload[half:], payload[:half]),
        ),
        "three pieces, one of them nothing": container(
            payload,
            iloc=lambda at: (
                b"\0\0\0\0\x44\0" + count + struct.pack(">HHIIIIII", 0, 3, at, half, at + 9, 0, at + half, rest)
            ),
        ),
        "in idat": container(
            b"",
            iloc=lambda _: b"\1\0\0\0\x44\0" + count + struct.pack(">HHHII", 1, 0, 1, 0, len(payload)),
            idat=payload,
        ),
        "32-bit numbers": container(
            payload,
            iloc=lambda at: b"\2\0\0\0\x44\0" + struct.pack(">IIHHHII", 1, 1, 0, 0, 1, at, len(payload)),
        ),
    }
    pixels = decode(plain, LIMITS)
    for name, data in forms.items():
        assert coded_pixels(data) == WIDTH * HEIGHT, name
        assert np.array_equal(decode(data, LIMITS), pixels), name


def test_boxes_of_other_sizes_and_what_stands_behind_them_do_no_harm() -> None:
    plain = written(picture())
    pixels, start = decode(plain, LIMITS), plain.index(b"mdat") - 4
    for name, data in {
        "behind": plain + b"and more, which is no box",
        "a byte": plain + b"\n",
        "free": plain + box(b"free", bytes(40)),
        "to the end": plain[:start] + bytes(4) + plain[start + 4 :],
        "unknown": plain[:start] + plain[start:] + long_box(b"uuid", bytes(100)),
    }.items():
        assert coded_pixels(data) == WIDTH * HEIGHT, name
        assert np.array_equal(decode(data, LIMITS), pixels), name


def scaled(side: int) -> bytes:
    """A picture of 64x64 that is a grid of one tile, which claims to be so large."""
    plain = written(picture(size=(64, 64)))
    payload, grid = found(plain, b"mdat"), struct.pack(">BBBBHH", 0, 0, 0, 0, 64, 64)
    sides = [box(b"ispe", struct.pack(">III", 0, extent, extent)) for extent in (64, side)]
    properties = box(b"ipco", *sides, box(b"av1C", found(plain, b"av1C")))
    links = box(b"ipma", struct.pack(">II", 0, 2), struct.pack(">HBB", 1, 1, 1), struct.pack(">HBBB", 2, 2, 2, 0x83))

    def file(at: int) -> bytes:
        places = [struct.pack(">HHHII", 1, 0, 1, at, 8), struct.pack(">HHHII", 2, 0, 1, at + 8, len(payload))]
        infos = [
            box(b"infe", b"\2\0\0\0", struct.pack(">HH4s", n, 0, kind), b"\0")
            for n, kind in ((1, b"grid"), (2, b"av01"))
        ]
        meta = box(
            b"meta",
            bytes(4),
            box(b"hdlr", found(plain, b"hdlr")),
            box(b"pitm", struct.pack(">IH", 0, 1)),
            box(b"iloc", b"\0\0\0\0\x44\0" + struct.pack(">H", 2), *places),
            box(b"iinf", struct.pack(">IH", 0, 2), *infos),
            box(b"iref", bytes(4), box(b"dimg", struct.pack(">HHH", 1, 1, 2))),
            box(b"iprp", properties, links),
        )
        return box(b"ftyp", found(plain, b"ftyp")) + meta

    return file(len(file(0)) + 8) + box(b"mdat", grid, payload)


def test_a_part_that_is_scaled_counts_as_large_as_it_claims_to_be() -> None:
    assert decode(scaled(64), LIMITS).shape == (64, 64, 3)
    assert coded_pixels(scaled(64)) == 64 * 64
    assert coded_pixels(scaled(16_384)) == 16_384**2
    with pytest.raises(TooLarge, match=f"64x64 has {16_384**2} pixels in its frames, the limit is {2**22}"):
        decode(scaled(16_384), LIMITS)


def animated(changed: Callable[[bytes], bytes], kind: bytes) -> bytes:
    """An animation without a still picture, one box of whose track is another."""
    one = picture()
    plain = written(one, save_all=True, append_images=[one.rotate(90)]).replace(b"meta", b"skip", 1)
    moov = plain.index(b"moov") - 4
    start = plain.index(kind, moov) - 4
    end = start + int.from_bytes(plain[start : start + 4])
    new = box(kind, changed(plain[start + 8 : end]))
    data = bytearray(plain[:start] + new + plain[end:])
    at = moov
    while at < start:  # all boxes around it grow
        size = int.from_bytes(data[at : at + 4])
        if at <= start < at + size and bytes(data[at + 4 : at + 8]) in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
            data[at : at + 4] = (size + len(new) - (end - start)).to_bytes(4)
            at += 8
        else:
            at += size
    assert at == start
    return bytes(data)


@pytest.mark.parametrize(
    ("kind", "changed", "words"),
    [
        (b"tkhd", lambda old: old[:-8] + struct.pack(">II", 5000 << 16, 5000 << 16), ""),
        (b"stsd", lambda _: struct.pack(">II", 0, 17) + box(b"av01") * 17, "kinds of samples"),
        (b"stsd", lambda old: old + box(b"av01", bytes(78), box(b"free") * 9000), "boxes"),
        (b"stsc", lambda _: struct.pack(">II", 0, 5000) + bytes(12 * 5000), "runs of chunks"),
        (b"stsc", lambda _: struct.pack(">IIIII", 0, 1, 1, 70_000, 1), "samples"),
        (b"stco", lambda _: struct.pack(">II", 0, 20_000) + bytes(4 * 20_000), "chunks"),
    ],
)
def test_tracks_that_claim_too_much_are_refused(kind: bytes, changed: Callable[[bytes], bytes], words: str) -> None:
    if words:
        with pytest.raises(TooLarge, match=f"more than [0-9]+ {words}"):
            coded_pixels(animated(changed, kind))
    else:
        assert coded_pixels(animated(changed, kind)) == 5000**2


def test_exif_of_a_track_is_looked_at_up_to_its_limit_too() -> None:
    plain = written(picture(), exif=Image.Exif().tobytes() + bytes(EXIF_LIMIT))
    with pytest.raises(TooLarge, match="bytes of EXIF"):
        coded_pixels(plain)
    meta = box(b"meta", found(plain, b"meta").replace(b"av01", b"none"))
    moved = box(b"ftyp", found(plain, b"ftyp")) + box(b"moov", box(b"trak", meta)) + found(plain, b"mdat")
    with pytest.raises(TooLarge, match="bytes of EXIF"):
        coded_pixels(moved)


@pytest.mark.parametrize(("kind", "most"), [(b"ipma", 2**15), (b"iref", 2**14)])
def test_links_that_take_long_to_follow_are_refused(kind: bytes, most: int) -> None:
    plain = written(picture())
    more = box(kind, bytes(most + 1))
    inside = box(b"iprp", more) if kind == b"ipma" else more
    with pytest.raises(TooLarge, match=f"more than {most} bytes of {kind!r}"):
        coded_pixels(box(b"ftyp", found(plain, b"ftyp")) + box(b"meta", bytes(4), inside))


def test_parts_that_are_the_same_bytes_are_refused() -> None:
    units = sequence() + frame() + b"\x7a\x80\x89\x7a" + bytes(2_000_000)  # the last is padding

    def file(at: int, count: int) -> bytes:
        numbers = range(1, count + 1)
        places = b"".join(struct.pack(">HHHII", item, 0, 1, at, len(units)) for item in numbers)
        infos = [box(b"infe", b"\2\0\0\0", struct.pack(">HH4s", item, 0, b"av01"), b"\0") for item in numbers]
        iinf, iloc = struct.pack(">IH", 0, count), b"\0\0\0\0\x44\0" + struct.pack(">H", count)
        meta = box(b"meta", bytes(4), box(b"iinf", iinf, *infos), box(b"iloc", iloc, places))
        return box(b"ftyp", b"avif", bytes(4)) + meta

    for count in (8, 9):
        head = file(0, count)
        data = file(len(head) + 8, count) + box(b"mdat", units)
        if count == 8:
            assert coded_pixels(data) == 8 * WIDTH * HEIGHT
        else:
            with pytest.raises(TooLarge, match=f"more than {2**24} bytes in its parts"):
                coded_pixels(data)


class Writer:
    """Bits, the highest first."""

    def __init__(self) -> None:
        self._value, self._size = 0, 0

    def __call__(self, *fields: tuple[int, int]) -> Writer:
        for value, size in fields:
            assert 0 <= value < 1 << size
            self._value, self._size = self._value << size | value, self._size + size
        return self

    def unit(self, kind: int) -> bytes:
        bits = self._size + 1  # the bit that ends a header, then zeros
        body = (self._value << 1 | 1) << -bits % 8
        return bytes([kind << 3 | 2, (bits + 7) // 8]) + body.to_bytes((bits + 7) // 8)


def sequence(*, timed: bool = False, numbered: bool = False, screen: int | None = None, bits: int = 10) -> bytes:
    """A sequence header of 96x80 that is not of a reduced still picture; `screen` None: each frame says."""
    write = Writer()((0, 3), (0, 1), (0, 1), (timed, 1))
    if timed:
        write((1, 32), (1, 32), (0, 1), (1, 1), (9, 5), (1, 32), (3, 5), (6, 5))
    write((1, 1), (0, 5), (0, 12), (8, 5), (0, 1))
    if timed:
        write((1, 1), (5, 10), (6, 10), (0, 1))
    write((1, 1), (7, 4), (bits - 1, 4), (bits - 1, 4), (WIDTH - 1, bits), (HEIGHT - 1, bits), (numbered, 1))
    if numbered:
        write((3, 4), (2, 3))
    write((0, 3), (0, 4), (1, 1), (0, 2))
    write((1, 1)) if screen is None else write((0, 1), (screen, 1))
    if screen != 0:
        write((1, 1))
    write((3, 3))
    return write.unit(1)


def frame(
    *, timed: bool = False, numbered: bool = False, screen: int | None = None, own: int = 0, shown: int = 1
) -> bytes:
    write = Writer()((0, 1), (KEY, 2), (shown, 1))
    if shown and timed:
        write((77, 7))
    if not shown:
        write((1, 1), (0, 1))
    write((0, 1))
    if screen is None:
        write((1, 1), (0, 1))
    elif screen:
        write((0, 1))
    if numbered:
        write((99, 5 + 3))
    return write((own, 1), (0, 8)).unit(6)


def of_units(*units: bytes) -> bytes:
    payload = b"".join(units)
    return container(payload, iloc=lambda at: b"\0\0\0\0\x44\0" + struct.pack(">HHHHII", 1, 1, 0, 1, at, len(payload)))


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("numbered", [False, True])
@pytest.mark.parametrize("screen", [None, 0, 1])
@pytest.mark.parametrize("shown", [0, 1])
def test_a_frame_may_be_as_large_as_it_can_say(timed: bool, numbered: bool, screen: int | None, shown: int) -> None:
    header = sequence(timed=timed, numbered=numbered, screen=screen)
    for own, pixels in ((0, WIDTH * HEIGHT), (1, 1024 * 1024)):
        of_frame = frame(timed=timed, numbered=numbered, screen=screen, own=own, shown=shown)
        assert coded_pixels(of_units(b"\x12\0", header, of_frame)) == pixels


def test_frames_that_are_not_shown_count_too() -> None:
    hidden = frame(shown=0)
    data = of_units(sequence(), *[hidden] * 600, frame())
    assert coded_pixels(data) == 601 * WIDTH * HEIGHT
    with pytest.raises(TooLarge, match=f"{601 * WIDTH * HEIGHT} pixels in its frames, the limit is {2**22}"):
        probe(data, LIMITS)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (of_units(b"\x12\0"), "no frame"),
        (of_units(frame()), "before the header"),
        (of_units(sequence()[:4]), "cut off"),
        (of_units(b"\x32\xff"), "cut off"),
        (of_units(sequence(), frame()).replace(b"av01", b"hvc1"), "no AV1 picture"),
        (written(picture())[:60], "no AV1 picture"),
    ],
)
def test_what_states_no_size_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        coded_pixels(data)


def test_two_boxes_where_one_may_be_are_refused() -> None:
    plain = written(picture())
    meta = found(plain, b"meta")
    with pytest.raises(InvalidInput, match="two boxes b'meta'"):
        coded_pixels(box(b"ftyp", b"avis", bytes(4)) + box(b"moov", box(b"trak", box(b"meta", bytes(4)) * 2)))
    for kind in (b"iloc", b"iinf"):
        twice = box(b"ftyp", found(plain, b"ftyp")) + box(b"meta", meta, box(kind, found(plain, kind)))
        with pytest.raises(InvalidInput, match=f"two boxes {kind!r}"):
            coded_pixels(twice)


def test_floods_are_refused() -> None:
    head = box(b"ftyp", b"avif", bytes(4), b"avifmif1")
    places = b"\0\0\0\0\x44\0" + struct.pack(">H", 60_000)
    for name, data in {
        "boxes": head + box(b"free") * 10_000,
        "places of parts": head
        + box(b"meta", bytes(4), box(b"iinf", bytes(6)), box(b"iloc", places, bytes(60_000 * 6))),
        "headers of sequences": of_units(*[sequence()] * 5000, frame()),
        "units of AV1": of_units(sequence(), frame(), b"\x7a\0" * 70_000),
    }.items():
        with pytest.raises(TooLarge, match=f"more than [0-9]+ {name}"):
            coded_pixels(data)


def test_more_exif_than_is_looked_at_is_refused_before_it_is() -> None:
    exif = Image.Exif()
    exif[0x010E] = "a" * 2**20
    with pytest.raises(TooLarge, match=f"{EXIF_LIMIT} bytes of EXIF"):
        probe(written(picture(), exif=exif), LIMITS)


def test_whatever_is_damaged_only_refusals_come_of_it() -> None:
    rng, one = np.random.default_rng(1), picture("RGBA", (64, 64))
    plain = written(one, save_all=True, append_images=[one.rotate(90)])
    refused = 0
    for _ in range(600):
        damaged = bytearray(plain)
        for at in rng.integers(0, 2200, rng.integers(1, 4)):
            damaged[at] = rng.integers(0, 256)
        cut = bytes(damaged[: rng.integers(1, len(damaged))]) if rng.random() < 0.3 else bytes(damaged)
        try:
            coded_pixels(cut)
        except ViQError:
            refused += 1
    assert 60 < refused < 600


def test_brands_decide_what_is_avif() -> None:
    assert is_avif(box(b"ftyp", b"mif1", bytes(4), b"miafavif"))
    assert is_avif(long_box(b"ftyp", b"avis", bytes(4)))
    assert not is_avif(box(b"ftyp", b"heic", bytes(4), b"mif1heic") + b"avif")
    assert not is_avif(b"\0\0\0")
