"""Codes are changed: which ones, and what becomes of the picture there and elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
from playwright.sync_api import expect
from tests.page.driving import PYTHON, SAMPLES, Desk, Pixels, cat, file_of, number, pixels_of
from tests.page.test_pictures import run

from viq import Codes

if TYPE_CHECKING:
    from tests.doors.serving import Server

LEVELS = (8, 8, 8, 5, 5, 5)
PICTURE = file_of(cat())  # 12 x 10 patches
PLACE = (slice(3, 5), slice(4, 7))  # of patches, rows and columns


@pytest.fixture
def codes(desk: Desk, server: Server) -> Codes:
    """What the server makes of the picture, which is on the page with some patches selected."""
    desk.visit(server.url).choose("cat.png", PICTURE)
    desk.taken("cat.png").drag((3, 4), (4, 6))
    expect(desk.at("selected")).to_have_text("6 patches selected")
    reply = server.http.post("/v1/encode?size=nano", content=PICTURE, headers={"Accept": "application/x-npz"})
    return Codes.from_npz(reply.content)


def decoded(server: Server, codes: Codes) -> Pixels:
    headers = {"Content-Type": "application/x-npz"}
    return pixels_of(server.http.post("/v1/decode", content=codes.npz_bytes(), headers=headers).content)


def outside_of_place(codes: Codes) -> npt.NDArray[np.bool_]:
    kept = np.ones(codes.grid, bool)
    kept[PLACE] = False
    return kept


def test_a_picture_changes_where_its_codes_do_and_hardly_elsewhere(desk: Desk, server: Server, codes: Codes) -> None:
    desk.edit("Zero")
    edited = desk.codes()
    outside = outside_of_place(codes)
    assert (edited.array[PLACE] == 0).all()
    assert np.array_equal(edited.array[outside], codes.array[outside])
    before, after = decoded(server, codes), decoded(server, edited)
    assert np.array_equal(desk.shown("right"), after)
    change = np.abs(before.astype(int) - after).max(axis=2)
    rows, columns = np.indices(change.shape) // 16
    away = np.maximum(
        np.maximum(PLACE[0].start - rows, rows - PLACE[0].stop + 1),
        np.maximum(PLACE[1].start - columns, columns - PLACE[1].stop + 1),
    ).clip(0, 3)
    shown = desk.cells("changed")
    places = {"Edited patches": away == 0, "1 patch away": away == 1, "2 patches away": away == 2}
    places |= {"Further away": away == 3, "All outside": away > 0}
    assert list(shown) == list(places)
    for name, where in places.items():
        share, mean, most = shown[name]
        if share != "< 0.1 %":
            assert number(share) == pytest.approx(100 * (change[where] > 0).mean(), abs=0.06)
        assert number(mean) == pytest.approx(change[where].mean(), abs=0.06)
        assert number(most) == change[where].max()
    assert change[away == 0].mean() > 20 * change[away == 3].mean()
    desk.measured()  # what was still to be computed when codes were edited has come
    desk.at("right").select_option("change")
    assert np.array_equal(desk.shown("right")[:, :, 0], (8 * change).clip(0, 255))


def test_every_way_to_replace_codes_and_back(desk: Desk, server: Server, codes: Codes) -> None:
    outside = outside_of_place(codes)

    def after(button: str) -> Codes:
        desk.edit(button)
        edited = desk.codes()
        assert np.array_equal(edited.array[outside], codes.array[outside])
        return edited

    shuffled = after("Shuffle")
    assert sorted(map(tuple, shuffled.array[PLACE].reshape(-1, 4))) == sorted(
        map(tuple, codes.array[PLACE].reshape(-1, 4))
    )
    random = after("Random")
    assert (random.array[PLACE] < np.prod(LEVELS)).all()
    assert (random.array[PLACE] != shuffled.array[PLACE]).mean() > 0.9
    middle = int(after("Middle").array[PLACE].max())
    assert [middle // int(np.prod(LEVELS[:n])) % level for n, level in enumerate(LEVELS)] == [4, 4, 4, 2, 2, 2]
    other = after("Take its codes")
    coffee = (SAMPLES / "coffee.jpg").read_bytes()
    reply = server.http.post("/v1/encode?size=nano", content=coffee, headers={"Accept": "application/x-npz"})
    assert np.array_equal(other.array[PLACE], Codes.from_npz(reply.content).array[PLACE])
    desk.edit("Undo")
    assert (desk.codes().array[PLACE] == middle).all()
    desk.edit("Undo all")
    assert desk.codes() == codes
    expect(desk.at("changes")).to_be_hidden()


def test_a_picture_of_ones_own_lends_its_codes(desk: Desk, server: Server, codes: Codes) -> None:
    desk.at("other").select_option("")
    with desk.page.expect_file_chooser() as chooser:
        desk.button("Take its codes").click()
    small = file_of(cat(32, 32)[::-1])  # of 2 x 2 patches, which are repeated
    chooser.value.set_files({"name": "other.png", "mimeType": "image/png", "buffer": small})
    expect(desk.at("changes")).to_be_visible()
    reply = server.http.post("/v1/encode?size=nano", content=small, headers={"Accept": "application/x-npz"})
    other = Codes.from_npz(reply.content).array
    assert np.array_equal(desk.codes().array[PLACE], np.tile(other, (5, 6, 1))[PLACE])


def test_patches_are_selected_by_dragging_and_by_shift(desk: Desk, codes: Codes) -> None:
    desk.drag((0, 0), (0, 1), extend=True)
    expect(desk.at("selected")).to_have_text("8 patches selected")
    desk.drag((9, 11), (9, 11))
    expect(desk.at("selected")).to_have_text("1 patch selected")
    desk.drag((9, 11), (9, 11))
    expect(desk.at("selected")).to_contain_text("No patch selected")
    desk.button("Zero").click()
    expect(desk.at("notice")).to_contain_text("No patch is selected")


def test_a_patch_pointed_at_shows_its_codes_and_their_levels(desk: Desk, codes: Codes) -> None:
    for mode in ("Compare", "Codes"):
        desk.show(mode)
        desk.page.mouse.move(*desk.patch(9, 2 if mode == "Codes" else 1))
    expect(desk.at("place")).to_have_text("Patch: row 10 of 10, column 3 of 12")
    cells: list[list[str]] = desk.at("four").evaluate(
        "body => [...body.rows].map(row => [...row.cells].map(cell => cell.innerText.trim()))"
    )
    for code, row in zip(codes.array[9, 2].tolist(), cells, strict=True):
        levels = [code // int(np.prod(LEVELS[:n])) % level for n, level in enumerate(LEVELS)]
        assert [int(cell) for cell in row] == [code, *levels]
    desk.choose("small.png", file_of(cat(32, 32)))
    expect(desk.at("place")).to_have_text("Patch: row 1 of 2, column 1 of 2")


def test_codes_are_drawn_over_the_picture(desk: Desk, codes: Codes) -> None:
    desk.at("strength").fill("100")
    drawn = desk.page.locator("canvas.overlay")
    colour = (
        "(canvas, [x, y]) => [...canvas.getContext('2d').getImageData(x * canvas.width, y * canvas.height, 1, 1).data]"
    )
    for which, s, (dy, dx) in (("0", 0, (4, 4)), ("2", 2, (12, 4)), ("", 1, (4, 12)), ("", 3, (12, 12))):
        desk.at("which").select_option(which)
        code = int(codes.array[7, 9, s])
        levels = [code // int(np.prod(LEVELS[:n])) % level / (level - 1) for n, level in enumerate(LEVELS)]
        wanted = [255 * (levels[n] + levels[n + 3]) / 2 for n in range(3)]
        place = [(16 * 9 + dx) / 184, (16 * 7 + dy) / 152]
        assert drawn.evaluate(colour, place) == pytest.approx([*wanted, 255], abs=1)


def test_the_lines_for_edited_codes_decode_what_is_saved(desk: Desk, codes: Codes, tmp_path: Path) -> None:
    desk.edit("Random")
    for id_, command in (("curl", ["bash", "-euc"]), ("python", [PYTHON, "-c"])):
        folder = tmp_path / id_
        folder.mkdir()
        name, data = desk.saved("Codes .npz")
        (folder / name).write_bytes(data)
        run([*command, desk.at(id_).inner_text()], folder)
        assert np.array_equal(pixels_of((folder / "cat-edited.png").read_bytes()), desk.shown("right"))
