"""An npz file is read as codes, or refused before it can do harm."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from viq.codes import Codes
from viq.errors import InvalidInput, TooLarge, UnknownModel


def some_codes(h: int = 2, w: int = 3, size: str = "2k") -> Codes:
    array = np.arange(4 * h * w, dtype=np.uint16).reshape(h, w, 4)
    return Codes(array, (16 * h - 1, 16 * w), size, "0123456789abcdef.01234567")


def test_an_npz_is_plain_numpy_to_other_readers(tmp_path: Path) -> None:
    some_codes().to_npz(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as loaded:
        assert sorted(loaded) == ["codes", "fingerprint", "image_size", "size"]
        assert loaded["codes"].dtype == np.uint16
        assert str(loaded["size"]) == "2k"
    codes, image_size, size, fingerprint = members(some_codes()).values()
    np.savez_compressed(tmp_path / "b.npz", codes=codes, image_size=image_size, size=size, fingerprint=fingerprint)
    assert Codes.from_npz(tmp_path / "b.npz") == some_codes()
    assert Codes.from_npz(str(tmp_path / "b.npz")) == some_codes()


def members(codes: Codes) -> dict[str, npt.NDArray[np.generic]]:
    return {
        "codes": codes.array,
        "image_size": np.asarray(codes.image_size),
        "size": np.asarray(codes.size),
        "fingerprint": np.asarray(codes.fingerprint),
    }


def packed(arrays: Mapping[str, object], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An npz of `arrays`; a value of bytes is put in as it is."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, value in arrays.items():
            member = io.BytesIO()
            if isinstance(value, bytes):
                member.write(value)
            else:
                np.save(member, np.asarray(value), allow_pickle=True)
            archive.writestr(f"{name}.npy", member.getvalue())
    return file.getvalue()


def header(text: str, data: bytes = b"") -> bytes:
    """An .npy member with `text` for its header."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + data


def claiming(shape: str, descr: str = "'<u2'", data: bytes = bytes(8)) -> bytes:
    return header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n", data)


GOOD = members(some_codes())


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({}, "members"),
        ({k: v for k, v in GOOD.items() if k != "fingerprint"}, "members"),
        ({**GOOD, "extra": np.zeros(1)}, "members.*extra"),
        ({**GOOD, "codes": b""}, "codes is no plain array"),
        ({**GOOD, "codes": b"no array"}, "codes is no plain array"),
        ({**GOOD, "codes": claiming("(1000000, 1000000, 4)")}, "header claims"),
        ({**GOOD, "codes": claiming("(1, 1, 5)")}, "header claims"),
        ({**GOOD, "codes": claiming("(1, 1, 4)", data=bytes(9))}, "header claims"),
        ({**GOOD, "codes": claiming("(-1, -1, 4)")}, "codes"),
        ({**GOOD, "codes": claiming("(99999999999999999999, 0, 4)", data=b"")}, "codes"),
        ({**GOOD, "codes": claiming("(1, 1, 4)", "'|O'")}, "header claims|no plain array"),
        ({**GOOD, "codes": claiming("(1, 1, 4)", "'<u2, <u2'")}, "codes"),
        ({**GOOD, "codes": claiming("(1, 1, 4)", "'nonsense'")}, "no plain array"),
        ({**GOOD, "codes": header("(" * 1000)}, "no plain array"),
        ({**GOOD, "codes": header("-" * 4000)}, "no plain array"),
        ({**GOOD, "codes": header("{'shape': (1, 1, 4L)")}, "no plain array"),
        ({**GOOD, "codes": header(" " * 5000)}, "no plain array"),
        ({**GOOD, "codes": np.zeros((2, 3, 4), np.float32)}, "float32"),
        ({**GOOD, "codes": np.zeros((2, 3), np.uint16)}, r"\(2, 3\)"),
        ({**GOOD, "codes": np.full((2, 3, 4), 2304)}, "2304"),
        ({**GOOD, "image_size": np.asarray([32.0, 48.0])}, "32.0"),
        ({**GOOD, "image_size": np.asarray([True, True])}, "True"),
        ({**GOOD, "image_size": np.asarray(32)}, "image_size"),
        ({**GOOD, "image_size": np.asarray([32, 49])}, "width 49"),
        ({**GOOD, "size": np.asarray(["2k"])}, "size is no string"),
        ({**GOOD, "size": np.asarray(2)}, "size is no string"),
        ({**GOOD, "size": np.asarray(b"2k")}, "size is no string"),
        ({**GOOD, "fingerprint": np.asarray(None)}, "fingerprint is no plain array"),
        ({**GOOD, "fingerprint": claiming("()", "'<U1'", b"\xff\xff\xff\xff")}, "is no string"),
        ({**GOOD, "size": claiming("()", "'<U2'", b"\0\xdc\0\0" * 2)}, "is no string"),
    ],
)
def test_malformed_npz_files_are_refused_by_name(arrays: Mapping[str, object], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        Codes.from_npz(packed(arrays))


class Bomb:
    """Unpickling it makes the folder it was given."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickled_member_is_never_executed(tmp_path: Path) -> None:
    array = np.empty((1, 1, 4), object)
    array[:] = Bomb(tmp_path / "hit")
    for hostile in (array, pickle.dumps(Bomb(tmp_path / "hit"))):
        with pytest.raises(InvalidInput, match="codes is no plain array"):
            Codes.from_npz(packed({**GOOD, "codes": hostile}))
    assert not (tmp_path / "hit").exists()


def test_a_zip_bomb_is_too_large_whatever_its_header_says() -> None:
    bomb = packed({**GOOD, "codes": claiming("(1, 1, 4)", data=bytes(2**22))})
    assert len(bomb) < 2**14
    with pytest.raises(TooLarge, match="unpacks to more than 1048576 bytes"):
        Codes.from_npz(bomb, max_bytes=2**20)
    lying = bomb.replace((2**22 + 73).to_bytes(4, "little"), (8).to_bytes(4, "little"))
    with pytest.raises((TooLarge, InvalidInput)):
        Codes.from_npz(lying, max_bytes=2**20)


def test_the_limit_counts_all_members_together() -> None:
    codes = some_codes(16, 16)
    need = len(codes.array.tobytes()) + 4 * 200
    assert Codes.from_npz(codes.npz_bytes(), max_bytes=need) == codes
    with pytest.raises(TooLarge):
        Codes.from_npz(codes.npz_bytes(), max_bytes=len(codes.array.tobytes()) + 150)


def test_a_long_file_is_too_large_before_it_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "long.npz").write_bytes(bytes(2**18))
    with pytest.raises(TooLarge, match=r"long\.npz: more than 1024 bytes"):
        Codes.from_npz(tmp_path / "long.npz", max_bytes=1024)


def test_members_given_twice_packed_otherwise_or_by_the_thousand_are_refused() -> None:
    twice = packed({**GOOD, "other": b"other"}).replace(b"other.npy", b"codes.npy")
    with pytest.raises(InvalidInput, match=r"members \['codes.npy', 'codes.npy',"):
        Codes.from_npz(twice)
    with pytest.raises(InvalidInput, match="packed by method 14, expected 0 or 8"):
        Codes.from_npz(packed(GOOD, zipfile.ZIP_LZMA))
    with pytest.raises(InvalidInput, match="more than 64 members"):
        Codes.from_npz(packed({f"m{i}": b"" for i in range(1000)}))


def test_stored_members_are_read_too() -> None:
    assert Codes.from_npz(packed(GOOD, zipfile.ZIP_STORED)) == some_codes()


def test_every_truncation_is_refused() -> None:
    data = some_codes().npz_bytes()
    for length in range(len(data)):
        with pytest.raises(InvalidInput):
            Codes.from_npz(data[:length])


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_damaged_npz_is_read_as_codes_or_refused(data: st.DataObject) -> None:
    damaged = bytearray(packed(GOOD, data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        codes = Codes.from_npz(bytes(damaged))
    except (InvalidInput, TooLarge, UnknownModel):
        return
    assert codes.grid[0] * codes.grid[1] >= 1


@settings(max_examples=300, deadline=None)
@given(st.text("{}[]()'\",:<>|uUO1248 -LshapedcrfotnFlT_\n", max_size=80), st.binary(max_size=16))
def test_any_member_header_is_read_or_refused(text: str, data: bytes) -> None:
    with pytest.raises(InvalidInput):
        Codes.from_npz(packed({**GOOD, "image_size": header(text, data)}))


def test_a_missing_file_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Codes.from_npz(tmp_path / "absent.npz")


def test_a_size_there_is_not_is_an_unknown_model() -> None:
    with pytest.raises(UnknownModel, match="npz: no size '3k'"):
        Codes.from_npz(packed({**GOOD, "size": np.asarray("3k")}))
