"""Files of weights that are not there, not whole, or not weights."""

from __future__ import annotations

import json
import random
import struct
import zipfile
from contextlib import suppress

import pytest
from safetensors.torch import save_file
from tests.viq.weights_folder import (
    EMBEDDER,
    Write,
    every_file,
    every_format,
    refusal,
    states,
)

from viq.errors import WeightsError
from viq.tensor_file import open_tensors


@every_file
@every_format
def test_a_missing_file_is_named(write: Write, stem: str, suffix: str) -> None:
    folder = write(suffix)
    (folder / f"{stem}{suffix}").unlink()
    message = refusal(folder)
    assert str(folder) in message
    assert f"{stem}.safetensors" in message
    assert f"{stem}.pth" in message


@every_file
@every_format
def test_a_folder_in_place_of_a_file_is_refused(write: Write, stem: str, suffix: str) -> None:
    folder = write(suffix)
    (folder / f"{stem}{suffix}").unlink()
    (folder / f"{stem}{suffix}").mkdir()
    assert stem in refusal(folder)


@every_file
@every_format
@pytest.mark.parametrize("kept", [0, 1, 5, 8, 20, 100, 1000, 0.5, -4096, -100, -22, -1])
def test_a_file_cut_short_is_refused_and_named(write: Write, stem: str, suffix: str, kept: float) -> None:
    folder = write(suffix)
    path = folder / f"{stem}{suffix}"
    whole = path.read_bytes()
    length = int(kept * len(whole)) if kept == 0.5 else int(kept) % len(whole)
    path.write_bytes(whole[:length])
    assert str(path) in refusal(folder)


@every_format
def test_bytes_missing_from_the_middle_are_noticed(write: Write, suffix: str) -> None:
    folder = write(suffix)
    path = folder / f"{EMBEDDER}{suffix}"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + whole[len(whole) // 2 + 64 :])
    assert str(path) in refusal(folder)


@every_file
@every_format
@pytest.mark.parametrize(
    "content",
    [
        random.Random(0).randbytes(5000),
        b"PK\x03\x04" + random.Random(1).randbytes(5000),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
        b"\x00" * 4096,
        b"\xff" * 4096,
        b"<!doctype html><title>Not found</title>",
    ],
    ids=["noise", "zip-magic", "lfs-pointer", "zeros", "ones", "html"],
)
def test_a_file_of_something_else_is_refused_and_named(write: Write, stem: str, suffix: str, content: bytes) -> None:
    folder = write(suffix)
    (folder / f"{stem}{suffix}").write_bytes(content)
    assert f"{stem}{suffix}" in refusal(folder)


def test_a_zip_of_something_else_is_refused(write: Write) -> None:
    folder = write()
    for names in ([], ["readme.txt"], ["archive/data.pkl"]):
        with zipfile.ZipFile(folder / "embedder.pth", "w") as archive:
            for name in names:
                archive.writestr(name, b"nothing")
        assert "embedder.pth" in refusal(folder)


def test_each_format_under_the_other_ones_name_is_refused(write: Write) -> None:
    folder = write(".pth")
    (folder / "embedder.pth").rename(folder / "embedder.safetensors")
    assert "embedder.safetensors" in refusal(folder)
    (folder / "embedder.safetensors").unlink()
    save_file(states()[EMBEDDER], folder / "embedder.pth")
    assert "embedder.pth" in refusal(folder)


def test_damage_anywhere_in_a_pickle_is_a_weights_error_or_harmless(write: Write) -> None:
    """Bits flipped in the records that are parsed: whatever the unpickler makes of it, one error class comes out."""
    path = write() / "embedder.pth"
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        record = next(i for i in archive.infolist() if i.filename.endswith("data.pkl"))
    parsed = [*range(record.header_offset, record.header_offset + record.file_size + 200)]
    parsed += range(len(whole) - 3000, len(whole))
    draw = random.Random(0)
    refused = 0
    for _ in range(600):
        damaged = bytearray(whole)
        damaged[draw.choice(parsed)] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with suppress(WeightsError):
            open_tensors(path)
            continue
        refused += 1
    assert refused > 200


def test_damage_anywhere_in_a_safetensors_header_is_a_weights_error_or_harmless(write: Write) -> None:
    path = write(".safetensors") / "embedder.safetensors"
    whole = path.read_bytes()
    header = struct.unpack("<Q", whole[:8])[0]
    draw = random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[draw.randrange(header + 8)] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with suppress(WeightsError):
            open_tensors(path)
            continue
        refused += 1
    assert refused > 100


LIES: dict[str, object] = {
    "out of the file": {"_bias": {"dtype": "F32", "shape": [2**20], "data_offsets": [0, 2**22]}},
    "far out of the file": {"_bias": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]}},
    "a product over 64 bits": {"_bias": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 64]}},
    "more shape than bytes": {"_bias": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 64]}},
    "overlapping": {
        "_bias": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]},
        "_weight": {"dtype": "F32", "shape": [16], "data_offsets": [32, 96]},
    },
    "backwards": {"_bias": {"dtype": "F32", "shape": [16], "data_offsets": [64, 0]}},
    "negative": {"_bias": {"dtype": "F32", "shape": [-16], "data_offsets": [0, 64]}},
    "unknown dtype": {"_bias": {"dtype": "F31", "shape": [16], "data_offsets": [0, 64]}},
    "a hole": {"_bias": {"dtype": "F32", "shape": [8], "data_offsets": [32, 64]}},
    "no tensors": {},
    "a list": [1, 2, 3],
}


@every_file
@pytest.mark.parametrize("lie", LIES)
def test_a_safetensors_header_that_lies_is_refused(write: Write, stem: str, lie: str) -> None:
    folder = write(".safetensors")
    header = json.dumps(LIES[lie]).encode()
    path = folder / f"{stem}.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    assert str(path) in refusal(folder)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**40, 100_000_000, 101])
def test_a_safetensors_header_longer_than_its_file_is_refused(write: Write, length: int) -> None:
    folder = write(".safetensors")
    (folder / "embedder.safetensors").write_bytes(struct.pack("<Q", length) + b"{" * 100)
    assert "embedder.safetensors" in refusal(folder)
