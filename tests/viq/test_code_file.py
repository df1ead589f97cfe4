"""The compact file: everything comes back, by this reader and by the one on the page, and nothing else is believed."""

from __future__ import annotations

import builtins
import io
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from viq.code_file import HEADER_BYTES, MAGIC, bits_of, packed, unpacked
from viq.codes import Codes
from viq.config import VARIANTS
from viq.errors import InvalidInput, TooLarge, UnknownModel, ViQError

PAGE = Path(__file__).parents[2] / "docs" / "code-file.md"
FAMILY = "0123456789abcdef"


@st.composite
def any_codes(draw: st.DrawFn) -> Codes:
    size = draw(st.sampled_from(sorted(VARIANTS)))
    h, w = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    most = draw(st.sampled_from([1, 3, VARIANTS[size].codebook_size]))  # few different ones are compressed
    array = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).integers(0, most, (h, w, 4))
    image_size = (draw(st.integers(16 * h - 15, 16 * h)), draw(st.integers(16 * w - 15, 16 * w)))
    return Codes(array.astype(np.uint16), image_size, size, draw(st.sampled_from(["", FAMILY, f"{FAMILY}.01234567"])))


def some_codes(size: str = "2k", h: int = 3, w: int = 3) -> Codes:
    array = np.random.default_rng(0).integers(0, VARIANTS[size].codebook_size, (h, w, 4), dtype=np.uint16)
    return Codes(array, (16 * h - 1, 16 * w), size, f"{FAMILY}.01234567")


def independent_reader() -> Any:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 24
    space: dict[str, Any] = {}
    exec(code, space)  # noqa: S102
    return space["read_viq"]


def sealed(data: bytes, at: int, field: bytes) -> bytes:
    """`data` with another field, and length and CRC that fit."""
    changed = bytearray(data)
    changed[at : at + len(field)] = field
    changed[52:56] = struct.pack("<I", len(changed) - HEADER_BYTES)
    changed[56:60] = struct.pack("<I", zlib.crc32(changed[60:], zlib.crc32(changed[:56])))
    return bytes(changed)


@given(any_codes(), st.sampled_from(["auto", "never", "always"]))
def test_codes_survive(codes: Codes, compress: Any) -> None:
    data = codes.viq_bytes(compress)
    assert Codes.from_viq(data) == codes
    assert Codes.from_file(data) == codes
    read = independent_reader()(data)
    made = Codes.from_flat(read["codes"], read["grid"], read["size"], read["image_size"], read["fingerprint"])
    assert made == codes
    assert tuple(read["levels"]) == VARIANTS[codes.size].levels


@given(any_codes(), st.sampled_from(["never", "always"]), st.data())
@settings(max_examples=200)
def test_one_changed_bit_is_noticed(codes: Codes, compress: Any, data: st.DataObject) -> None:
    changed = bytearray(codes.viq_bytes(compress))
    bit = data.draw(st.integers(0, 8 * len(changed) - 1))
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(InvalidInput):
        Codes.from_viq(bytes(changed))


@given(st.binary(max_size=200))
def test_no_other_bytes_pass_for_codes(tail: bytes) -> None:
    whole = some_codes().viq_bytes()
    for data in (tail, MAGIC + tail, whole[:HEADER_BYTES] + tail, sealed(whole[:HEADER_BYTES] + tail, 0, MAGIC)):
        if data[HEADER_BYTES:] != whole[HEADER_BYTES:]:
            with pytest.raises(ViQError):
                Codes.from_viq(data)


@given(st.integers(1, 16), st.lists(st.integers(0, 2**16 - 1), max_size=40))
def test_bits_are_packed_from_the_lowest_on(bits: int, values: list[int]) -> None:
    flat = np.array([value % 2**bits for value in values], np.uint16)
    data = packed(flat, bits)
    assert data == sum(int(v) << i * bits for i, v in enumerate(flat)).to_bytes(-(-len(values) * bits // 8), "little")
    assert unpacked(data, bits, len(values)).tolist() == flat.tolist()


@pytest.mark.parametrize(
    ("size", "bits", "share"), [("2k", 12, 128), ("8k", 13, 118), ("16k", 14, 110), ("64k", 16, 96)]
)
def test_codes_take_the_share_of_raw_pixels_that_their_bits_say(size: str, bits: int, share: int) -> None:
    assert bits_of(VARIANTS[size]) == bits
    codes = some_codes(size, 64, 64)
    data = codes.viq_bytes()
    assert HEADER_BYTES <= 64
    assert len(data) == HEADER_BYTES + 64 * 64 * 4 * bits // 8
    assert round(3 * 1024 * 1024 / (len(data) - HEADER_BYTES)) == share


def test_codes_that_repeat_are_compressed_and_others_are_not() -> None:
    plain = Codes(np.zeros((20, 20, 4), np.uint16), (320, 320), "nano", FAMILY)
    assert len(plain.viq_bytes()) < 100 < len(plain.viq_bytes("never"))
    assert len(some_codes("nano", 20, 20).viq_bytes()) == HEADER_BYTES + 3200
    assert Codes.from_viq(plain.viq_bytes()) == plain


@pytest.mark.parametrize(
    ("at", "field", "words"),
    [
        (0, b"\x89PNG", "no .viq file"),
        (4, b"\x02", "of version 2 .* reads version 1: update viq-serving"),
        (5, b"\x0d", "13 bits a code, size 2k has 12 or 16"),
        (6, b"\x07", "compression 7, version 1 has 0 and 1"),
        (6, b"\x01", "cannot be decompressed|unpack to"),
        (7, b"\x02", "flags 2"),
        (7, b"\x01", "a mode of the fingerprint that its flags deny"),
        (7, b"\x00", "a family of the fingerprint that its flags deny"),
        (8, b"3k", "no size '3k'"),
        (8, b"2k\0x", "no size '2k.x00x'"),
        (16, b"\x09", "levels .* are not those of size 2k"),
        (24, struct.pack("<I", 60), "image height 60 does not fit 3 patches"),
        (28, b"\0\0\0\0", "no pixels"),
        (28, b"\xff\xff\xff\xff", "over"),
        (32, struct.pack("<I", 4), "54 bytes of codes, expected 72: 48 codes of 12 bits"),
        (32, b"\xff\xff\xff\xff", "more than"),
        (60, b"\xff\xff", "code 4095 is out of range for size 2k"),
    ],
)
def test_a_wrong_field_is_refused_and_named(at: int, field: bytes, words: str) -> None:
    data = some_codes().viq_bytes("never")
    with pytest.raises((InvalidInput, TooLarge, UnknownModel), match=words):
        Codes.from_viq(sealed(data, at, field))


def test_a_file_cut_short_prolonged_or_too_large_is_refused(tmp_path: Path) -> None:
    data = some_codes().viq_bytes("never")
    for wrong, words in (
        (b"", "no .viq file"),
        (data[:30], "30 bytes, .* cut short"),
        (data[:-1], "113 bytes, by its header 114: it is cut short"),
        (data + b"\0", "115 bytes, by its header 114: it goes on after its end"),
        (sealed(data + b"\0", 0, MAGIC), "55 bytes of codes, expected 54"),
    ):
        (tmp_path / "a.viq").write_bytes(wrong)
        with pytest.raises(InvalidInput, match=words):
            Codes.from_viq(tmp_path / "a.viq")
    odd = Codes(np.zeros((1, 1, 4), np.uint16), (16, 16), "8k").viq_bytes("never")  # 52 bits in 7 bytes
    with pytest.raises(InvalidInput, match="after the last code"):
        Codes.from_viq(sealed(odd, len(odd) - 1, b"\x10"))
    with pytest.raises(TooLarge, match="more than 71 bytes"):
        Codes.from_viq(data, max_bytes=71)
    with pytest.raises(FileNotFoundError):
        Codes.from_viq(tmp_path / "none.viq")


def test_a_compressed_file_unpacks_to_its_grid_and_no_further() -> None:
    codes = Codes(np.zeros((3, 3, 4), np.uint16), (48, 48), "nano", FAMILY)
    head = codes.viq_bytes("always")[:HEADER_BYTES]
    small, bomb = zstandard.ZstdCompressor(), zstandard.ZstdCompressor().compress(bytes(10**8))
    unsaid = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(72))
    for payload, words in (
        (bomb, "unpack to 100000000 bytes, expected 72"),
        (small.compress(bytes(70)), "unpack to 70"),
        (unsaid, "unpack to"),
        (small.compress(bytes(72)) + b"more", "cannot be decompressed"),
        (small.compress(bytes(72))[:-1], "cannot be decompressed"),
    ):
        with pytest.raises(InvalidInput, match=words):
            Codes.from_viq(sealed(head + payload, 0, MAGIC))


def test_what_has_no_place_in_a_file_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = Codes(np.zeros((1, 1, 4), np.uint16), (16, 16), "nano", "my own")
    with pytest.raises(InvalidInput, match="'my own' cannot be put into"):
        codes.viq_bytes()
    with pytest.raises(InvalidInput, match="compress='best'"):
        some_codes().viq_bytes("best")  # type: ignore[arg-type]
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "zstandard":
            raise ImportError(name)
        return real(name, *rest)

    repeating = Codes(np.zeros((9, 9, 4), np.uint16), (144, 144), "nano")
    compressed = repeating.viq_bytes()
    monkeypatch.setattr(builtins, "__import__", without)
    assert Codes.from_viq(repeating.viq_bytes()) == repeating
    for impossible in (lambda: repeating.viq_bytes("always"), lambda: Codes.from_viq(compressed)):
        with pytest.raises(InvalidInput, match="pip install zstandard"):
            impossible()


def test_files_of_both_forms_are_told_apart(tmp_path: Path) -> None:
    codes, file = some_codes(), io.BytesIO()
    codes.to_viq(tmp_path / "a.viq")
    codes.to_npz(tmp_path / "a.npz")
    codes.to_viq(file)
    assert Codes.from_file(tmp_path / "a.viq") == Codes.from_file(str(tmp_path / "a.npz")) == codes
    assert file.getvalue() == (tmp_path / "a.viq").read_bytes()
    with pytest.raises(InvalidInput, match="npz"):
        Codes.from_file(b"neither")


def test_neither_needs_torch() -> None:
    check = "import sys, viq.code_file, viq.codes; sys.exit('torch' in sys.modules or 'zstandard' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
