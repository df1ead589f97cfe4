"""Codes survive every form they can take, and nothing else passes for codes."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from viq.codes import Codes
from viq.config import VARIANTS
from viq.errors import InvalidInput, UnknownModel


@st.composite
def any_codes(draw: st.DrawFn) -> Codes:
    size = draw(st.sampled_from(sorted(VARIANTS)))
    h, w = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    seed = draw(st.integers(0, 2**32 - 1))
    array = np.random.default_rng(seed).integers(0, VARIANTS[size].codebook_size, (h, w, 4))
    image_size = (draw(st.integers(16 * h - 15, 16 * h)), draw(st.integers(16 * w - 15, 16 * w)))
    return Codes(array.astype(np.uint16), image_size, size, draw(st.sampled_from(["", "0123456789abcdef.01234567"])))


def some_codes(h: int = 2, w: int = 3, size: str = "2k") -> Codes:
    array = np.arange(4 * h * w, dtype=np.uint16).reshape(h, w, 4)
    return Codes(array, (16 * h - 1, 16 * w), size, "0123456789abcdef.01234567")


@given(any_codes())
def test_codes_survive_npz(codes: Codes) -> None:
    file = io.BytesIO()
    codes.to_npz(file)
    assert Codes.from_npz(file.getvalue()) == codes
    assert Codes.from_npz(io.BytesIO(codes.npz_bytes())) == codes


@given(any_codes(), st.sampled_from(["list", "base64"]))
def test_codes_survive_json(codes: Codes, form: str) -> None:
    assert Codes.from_dict(json.loads(json.dumps(codes.to_dict(form)))) == codes


@given(any_codes())
def test_codes_survive_raw_bytes_and_the_flat_order(codes: Codes) -> None:
    known = (codes.grid, codes.size, codes.image_size, codes.fingerprint)
    assert Codes.from_bytes(codes.to_bytes(), *known) == codes
    assert Codes.from_flat(codes.flat, *known) == codes
    assert Codes.from_flat(codes.flat.tolist(), *known) == codes


@given(any_codes())
def test_equal_codes_are_equal_bytes_and_equal_keys(codes: Codes) -> None:
    twin = Codes(codes.array.copy(), codes.image_size, codes.size, codes.fingerprint)
    assert twin.npz_bytes() == codes.npz_bytes()
    assert len({twin, codes}) == 1


def test_codes_differ_in_every_field() -> None:
    codes = some_codes()
    assert codes != Codes(codes.array, (30, 48), "2k", codes.fingerprint)
    assert codes != Codes(codes.array, codes.image_size, "4k", codes.fingerprint)
    assert codes != Codes(codes.array, codes.image_size, "2k", "")
    assert codes != Codes(codes.array[::-1], codes.image_size, "2k", codes.fingerprint)
    assert codes != "codes"


def test_codes_cannot_be_changed_and_do_not_follow_their_source() -> None:
    source = np.zeros((1, 1, 4), np.uint16)
    codes = Codes(source, (16, 16), "2k")
    source[:] = 7
    assert codes.array.max() == 0
    with pytest.raises(ValueError, match="read-only"):
        codes.array[0, 0, 0] = 1


def test_row_4n_plus_s_is_sub_token_s_of_patch_n() -> None:
    codes = some_codes()
    assert codes.flat[4 * 4 + 2] == codes.array[1, 1, 2]
    assert Codes.from_flat(codes.flat, (2, 3), "2k").image_size == (32, 48)
    assert codes.family == "0123456789abcdef"


@pytest.mark.parametrize(
    ("array", "image_size", "size", "named"),
    [
        (np.zeros((1, 1, 3), np.uint16), (16, 16), "2k", r"\(1, 1, 3\)"),
        (np.zeros((1, 4), np.uint16), (16, 16), "2k", r"\(1, 4\)"),
        (np.zeros((0, 1, 4), np.uint16), (16, 16), "2k", r"\(0, 1, 4\)"),
        (np.zeros((1, 1, 4), np.float32), (16, 16), "2k", "float32"),
        (np.zeros((1, 1, 4), bool), (16, 16), "2k", "bool"),
        (np.full((1, 1, 4), None), (16, 16), "2k", "object"),
        (np.full((1, 1, 4), 2304), (16, 16), "2k", "code 2304 is out of range for size 2k: 0 to 2303"),
        (np.full((1, 1, 4), 64000), (16, 16), "64k", "code 64000"),
        (np.full((1, 1, 4), 65536 + 5), (16, 16), "64k", "code 65541"),
        (np.full((1, 1, 4), -1), (16, 16), "2k", "code -1"),
        (np.zeros((1, 1, 4), np.uint16), (17, 16), "2k", "height 17 does not fit 1 patches: 0 < height <= 16"),
        (np.zeros((2, 1, 4), np.uint16), (16, 16), "2k", "height 16 does not fit 2"),
        (np.zeros((1, 1, 4), np.uint16), (16, 0), "2k", "width 0"),
        (np.zeros((1, 1, 4), np.uint16), (True, 16), "2k", "True"),
        (np.zeros((1, 1, 4), np.uint16), (16.0, 16), "2k", "16.0"),
        (np.zeros((1, 1, 4), np.uint16), (16, 16, 3), "2k", "image_size"),
        (np.zeros((1, 1, 4), np.uint16), "16", "2k", "image_size"),
        (np.zeros((1, 1, 4), np.uint16), (16, 16), ["2k"], "size"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(
    array: npt.NDArray[np.uint16], image_size: tuple[int, int], size: str, named: str
) -> None:
    with pytest.raises(InvalidInput, match=named):
        Codes(array, image_size, size)


def test_a_size_there_is_not_is_an_unknown_model() -> None:
    with pytest.raises(UnknownModel, match="'3k'; sizes: 2k, 4k"):
        Codes(np.zeros((1, 1, 4), np.uint16), (16, 16), "3k")
    with pytest.raises(UnknownModel, match="'3k'"):
        Codes.from_dict(changed(size="3k"))


def changed(**changes: object) -> dict[str, object]:
    """A good dict of one patch, changed; None takes a key out."""
    good: dict[str, object] = {"size": "2k", "grid": [1, 1], "image_size": [16, 16], "codes": [1, 2, 3, 4]}
    return {k: v for k, v in {**good, **changes}.items() if v is not None}


NESTED: object = []
for _ in range(500):
    NESTED = [NESTED]

MALFORMED: list[tuple[Mapping[str, object], str]] = [
    (changed(size=None), "lack size"),
    (changed(grid=None), "lack grid"),
    (changed(codes=None), "exactly one of codes and codes_b64"),
    (changed(codes_b64="AAAAAAAAAAA="), "exactly one of codes and codes_b64"),
    (changed(size=2), "must be strings"),
    (changed(fingerprint=0), "must be strings"),
    (changed(fingerprint=["0"]), "must be strings"),
    (changed(grid=1), "grid is 1"),
    (changed(grid="11"), "grid is '11'"),
    (changed(grid=[1]), "grid"),
    (changed(grid=[1, 1, 1]), "grid"),
    (changed(grid=[1.0, 1]), "1.0"),
    (changed(grid=[True, 1]), "True"),
    (changed(grid=[-1, -1]), "-1x-1"),
    (changed(grid=[0, 1]), "0x1"),
    (changed(grid={"0": 1, "1": 1}), "grid"),
    (changed(grid=[10**9, 10**9]), "4 codes for a 1000000000x1000000000 grid, expected 4000000000000000000"),
    (changed(image_size=16), "image_size"),
    (changed(image_size=[16]), "image_size"),
    (changed(image_size=[16, "16"]), "'16'"),
    (changed(image_size=[16, 17]), "width 17"),
    (changed(image_size=[10**30, 16]), "image_size holds a number over 2147483647"),
    ({"size": "2k", "grid": [10**5000, 10**5000], "codes": [1, 2, 3, 4]}, "grid holds a number over 2147483647"),
    (changed(codes=[1, 2, 3]), "3 codes for a 1x1 grid, expected 4"),
    (changed(codes=[]), "0 codes"),
    (changed(codes=[1, 2, 3, 2304]), "2304"),
    (changed(codes=[1, 2, 3, -4]), "-4"),
    (changed(codes=[1, 2, 3, 4.0]), "float64"),
    (changed(codes=[1, 2, 3, float("nan")]), "float64"),
    (changed(codes=[1, 2, 3, True]), "true or false"),
    (changed(codes=[1, 2, 3, "4"]), "whole numbers"),
    (changed(codes=[1, 2, 3, 10**30]), "whole numbers"),
    (changed(codes=[[1, 2, 3, 4]]), r"\(1, 4\)"),
    (changed(codes=[[1], [2, 3]]), "whole numbers"),
    (changed(codes=NESTED), "whole numbers"),
    (changed(codes=[None, None, None, None]), "object"),
    (changed(codes="1234"), "str"),
    (changed(codes={"0": 1}), "dict"),
    (changed(codes=np.asarray(3)), "whole numbers"),
    (changed(codes=None, codes_b64="AAAAAAAAAA=="), "7 bytes"),
    (changed(codes=None, codes_b64="AAAAAAAAAAAAAA=="), "5 codes"),
    (changed(codes=None, codes_b64="AAAA AAAAAAA="), "no base64"),
    (changed(codes=None, codes_b64="ÄAAAAAAAAAA="), "no base64"),
    (changed(codes=None, codes_b64=b"AAAAAAAAAAA="), "must be a string"),
    (changed(codes=None, codes_b64=base64.b64encode(b"\xff" * 8).decode()), "65535"),
]


@pytest.mark.parametrize(("data", "named"), MALFORMED)
def test_malformed_dicts_are_refused_by_name(data: Mapping[str, object], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        Codes.from_dict(data)


@pytest.mark.parametrize("data", [[], None, 3, "codes"])
def test_what_is_no_dict_is_refused(data: Mapping[str, object]) -> None:
    with pytest.raises(InvalidInput, match="expected an object"):
        Codes.from_dict(data)


def test_a_dict_may_lack_what_the_released_code_does_not_know() -> None:
    codes = Codes.from_dict(changed(image_size=None))
    assert (codes.image_size, codes.fingerprint) == ((16, 16), "")
    with pytest.raises(InvalidInput, match="codes='hex'"):
        codes.to_dict("hex")


def test_raw_bytes_of_the_wrong_length_are_refused() -> None:
    for data, named in ((b"", "0 codes"), (bytes(7), "7 bytes"), (bytes(10), "5 codes")):
        with pytest.raises(InvalidInput, match=named):
            Codes.from_bytes(data, (1, 1), "2k")


def test_importing_codes_imports_no_torch() -> None:
    script = "import sys, viq, viq.codes, viq.pixels; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
