"""Codes as files: saved here and read everywhere, saved elsewhere and read here, and files that are none."""

from __future__ import annotations

import io
import json
import zipfile
from typing import TYPE_CHECKING

import numpy as np
from playwright.sync_api import expect
from tests.page.conftest import MAX_PATCHES
from tests.page.driving import Desk, cat, file_of, pixels_of

from viq import Codes

if TYPE_CHECKING:
    from tests.doors.serving import Server

PICTURE = file_of(cat())


def encoded(server: Server, accept: str, size: str = "nano") -> bytes:
    reply = server.http.post(f"/v1/encode?size={size}", content=PICTURE, headers={"Accept": accept})
    assert reply.status_code == 200
    return reply.content


def test_saved_codes_are_those_of_the_service_and_come_back(desk: Desk, server: Server) -> None:
    desk.visit(server.url).choose("cat.png", PICTURE)
    desk.taken("cat.png")
    before, codes = desk.shown(), Codes.from_npz(encoded(server, "application/x-npz"))
    for button, name in (("Codes .npz", "cat.npz"), ("Codes .json", "cat.json")):
        desk.visit(server.url).choose("cat.png", PICTURE)
        saved, data = desk.taken("cat.png").saved(button)
        assert saved == name
        if name == "cat.npz":
            assert Codes.from_npz(data) == codes
        else:
            body = json.loads(data)
            assert Codes.from_dict({**body["model"], **body["results"][0]}) == codes
            assert np.array_equal(pixels_of(server.http.post("/v1/decode", json=body).content), before)
        desk.choose(f"again-{name}", data)
        assert np.array_equal(desk.taken(f"again-{name}").shown(), before)
        assert desk.codes() == codes
    name, data = desk.saved("Picture .png")
    assert name == "again-cat-nano.png"
    assert np.array_equal(pixels_of(data), before)


def test_codes_from_elsewhere_are_read(desk: Desk, server: Server) -> None:
    """Packed npz as the service and numpy write it, the reply of encode in both forms, and what the library writes."""
    codes, buffer = Codes.from_npz(encoded(server, "application/x-npz")), io.BytesIO()
    np.savez(
        buffer,
        codes=codes.array.astype(np.int64),
        image_size=np.array(codes.image_size),
        size=codes.size,
        fingerprint=codes.fingerprint,
    )
    files = {
        "packed.npz": encoded(server, "application/x-npz"),
        "numpy.npz": buffer.getvalue(),
        "reply.json": encoded(server, "application/json"),
        "dict.json": json.dumps(codes.to_dict("base64")).encode(),
    }
    desk.visit(server.url)
    for name, data in files.items():
        desk.choose(name, data)
        desk.taken(name)
        assert desk.codes() == codes


def test_codes_of_another_size_are_decoded_by_it(desk: Desk, server: Server) -> None:
    codes = Codes.from_npz(encoded(server, "application/x-npz", "4k"))
    desk.visit(server.url).choose("other.npz", codes.npz_bytes())
    desk.taken("other.npz")
    expect(desk.at("right").locator("option:checked")).to_have_text("ViQ 4k")
    desk.drag((0, 0), (1, 1))
    desk.edit("Random")
    assert desk.codes().array.max() < 4096


def test_codes_of_other_weights_are_decoded_only_if_one_insists(desk: Desk, server: Server) -> None:
    codes = Codes.from_npz(encoded(server, "application/x-npz"))
    other = Codes(codes.array, codes.image_size, codes.size, f"{'0' * 16}.{'1' * 8}")
    desk.visit(server.url).choose("other.npz", other.npz_bytes())
    expect(desk.at("notice")).to_contain_text("These codes are of other weights")
    expect(desk.at("work")).to_be_hidden()
    desk.button("Decode anyway").click()
    desk.taken("other.npz")
    assert "any_fingerprint=1" in desk.at("curl").inner_text()
    assert "any_fingerprint=True" in desk.at("python").inner_text()
    desk.drag((0, 0), (1, 1))
    desk.edit("Zero")
    expect(desk.at("changes")).to_be_visible()
    expect(desk.at("notice")).to_be_hidden()


def test_files_that_hold_no_codes_are_told_apart(desk: Desk, server: Server) -> None:
    good, empty, missing, huge = encoded(server, "application/x-npz"), io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez(missing, codes=np.zeros((1, 1, 4), np.uint16))
    with zipfile.ZipFile(empty, "w"):
        pass
    with zipfile.ZipFile(huge, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("codes.npy", bytes(2**20))
    codes, wrong, large = Codes.from_npz(good), io.BytesIO(), io.BytesIO()
    np.savez(wrong, codes=codes.array.astype(np.float32), image_size=codes.image_size, size="nano", fingerprint="")
    np.savez(large, codes=np.zeros((30, 20, 4), np.uint16), image_size=(480, 320), size="nano", fingerprint="")
    kept = bytearray(wrong.getvalue())
    kept[kept.index(b"\x00", 200)] ^= 1  # of the codes, which are not packed
    ragged = {"size": "nano", "grid": [2, 2], "codes": [1, 2, 3]}
    far = {"size": "nano", "grid": [1, 1], "codes": [1, 2, 3, 64_000]}
    files = {
        "cut.npz": (good[:-40], "no whole zip archive"),
        "text.npz": (b"not a zip at all", "no whole zip archive"),
        "none.npz": (b"", "no whole zip archive"),
        "empty.npz": (empty.getvalue(), "no member codes"),
        "missing.npz": (missing.getvalue(), "no member image_size, size, fingerprint"),
        "huge.npz": (huge.getvalue(), "too many for this service"),
        "wrong.npz": (wrong.getvalue(), "codes holds <f4, expected whole numbers"),
        "damaged.npz": (bytes(kept), "codes.npy is damaged"),
        "large.npz": (large.getvalue(), f"600 patches, the limit is {MAX_PATCHES}"),
        "text.json": (b"hello", "JSON"),
        "other.json": (b'{"a": 1}', "no size or no grid"),
        "null.json": (b"null", "holds no codes"),
        "bare.json": (b'{"results": []}', "no result"),
        "sides.json": (json.dumps({**far, "image_size": "large"}).encode(), "image_size is not two numbers"),
        "ragged.json": (json.dumps(ragged).encode(), "3 codes do not fit a grid of 2 × 2"),
        "far.json": (json.dumps(far).encode(), "out of range"),
        "unknown.json": (json.dumps({**far, "size": "16k", "codes": [0] * 4}).encode(), "not loaded"),
    }
    desk.visit(server.url)
    for name, (data, words) in files.items():
        desk.choose(name, data)
        expect(desk.at("notice")).to_contain_text(words)
        desk.idle()
        desk.button("Dismiss").click()
    expect(desk.at("work")).to_be_hidden()
