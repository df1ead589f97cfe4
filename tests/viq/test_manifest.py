"""What `viq.json` may say of a weights folder."""

from __future__ import annotations

import json

import pytest
from tests.viq.weights_folder import (
    Write,
    load,
    refusal,
)

from viq.checkpoint import read_manifest
from viq.layers import Attention


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"num_heads": 0}',
        b'{"num_heads": -4}',
        b'{"num_heads": true}',
        b'{"num_heads": "16"}',
        b'{"num_heads": 4.0}',
        b'{"num_heads": null}',
        b'{"num_heads": [4]}',
        b'{"num_heads": 4, "size": "4k"}',
        b'{"num_heads": 4, "size": 16}',
        b'{"num_heads": 4, "levels": [8, 8, 4, 4, 4]}',
        b'{"num_heads": 4, "levels": "88865"}',
        b'{"num_heads": 4, "levels": null}',
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused_and_named(write: Write, content: bytes) -> None:
    folder = write()
    (folder / "viq.json").write_bytes(content)
    assert str(folder / "viq.json") in refusal(folder)
    assert (folder / "viq.json").read_bytes() == content


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("heads", [3, 5, 64, 10**30])
def test_heads_that_do_not_divide_the_width_are_refused(write: Write, part: str, heads: int) -> None:
    folder = write()
    (folder / "viq.json").write_text(json.dumps({"num_heads": heads}))
    message = refusal(folder, part)
    assert str(heads) in message
    assert "width 32" in message


def test_without_a_manifest_there_are_16_heads(write: Write) -> None:
    folder = write()
    (folder / "viq.json").unlink()
    assert read_manifest(folder, "16k") == {}
    assert [m.heads for m in load(folder).encoder.modules() if isinstance(m, Attention)] == [16, 16, 16]


def test_a_manifest_that_agrees_is_accepted(write: Write) -> None:
    folder = write()
    (folder / "viq.json").write_text('{"num_heads": 4, "size": "16k", "levels": [8, 8, 8, 6, 5], "note": "mine"}')
    assert load(folder).parts == {"encoder", "embedder", "decoder"}
