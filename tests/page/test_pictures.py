"""A picture goes in: what is shown, measured, timed and told of it."""

from __future__ import annotations

import io
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from tests.page.driving import PYTHON, SAMPLES, Desk, cat, file_of, number, payload, pixels_of

if TYPE_CHECKING:
    from tests.doors.serving import Server

NAME = 'it\'s a "cat"; 1,2.png'  # what shells and curl take for something else


def run(script: list[str], folder: Path, **environment: str) -> None:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        script, cwd=folder, env={**kept, "NO_PROXY": "*", **environment}, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_an_uploaded_picture_is_reconstructed_and_measured(desk: Desk, server: Server) -> None:
    picture = cat()
    desk.visit(server.url).choose("cat.png", file_of(picture))
    desk.taken("cat.png")
    reply = server.http.post("/v1/reconstruct?size=nano", content=file_of(picture))
    assert np.array_equal(desk.shown("right"), pixels_of(reply.content))
    assert np.array_equal(desk.shown("left"), picture)
    facts = desk.at("facts").inner_text()
    assert "184 × 152 pixels" in facts
    assert "12 × 10 = 120" in facts
    assert "480, 960 B" in facts
    _, psnr, ssim = desk.measured()["ViQ nano"]
    assert number(psnr) == pytest.approx(float(reply.headers["ViQ-PSNR"]), abs=0.006)
    assert number(ssim) == pytest.approx(float(reply.headers["ViQ-SSIM"]), abs=0.0006)


def test_other_formats_are_compared_at_equal_bytes(desk: Desk, server: Server) -> None:
    desk.visit(server.url).button("Cat").click()
    rows = desk.taken("cat.jpg").measured()
    assert number(rows["Original file"][0]) == pytest.approx((SAMPLES / "cat.jpg").stat().st_size / 1000, abs=0.06)
    codes = number(rows["ViQ nano"][0])
    assert codes == 8 * 18 * 18
    for name in ("JPEG at equal bytes", "PNG at equal bytes"):
        size, psnr, ssim = rows[name]
        assert 0.7 * codes < number(size) <= codes
        assert number(psnr) > 15
        assert number(ssim) > 0.3
    assert rows["PNG, all pixels"][1:] == ["∞ dB", "1.000"]
    for view in ("jpeg", "png"):
        desk.at("right").select_option(view)
        assert desk.shown().shape == (288, 288, 3)


def test_no_jpeg_is_as_small_as_the_codes_of_a_thumbnail(desk: Desk, server: Server) -> None:
    desk.visit(server.url).choose("tiny.png", file_of(cat(16, 16)))
    rows = desk.taken("tiny.png").measured()
    assert rows["ViQ nano"][0] == "8 B"
    assert rows["JPEG at equal bytes"] == ["–", "–", "–"]
    assert "none is so small" in desk.at("costs").inner_text()


def test_two_sizes_are_compared(desk: Desk, server: Server) -> None:
    picture = file_of(cat())
    desk.visit(server.url).at("second").select_option("4k")
    desk.choose("cat.png", picture)
    rows = desk.taken("cat.png").measured()
    for side, size in (("left", "nano"), ("right", "4k")):
        reply = server.http.post(f"/v1/reconstruct?size={size}", content=picture)
        assert np.array_equal(desk.shown(side), pixels_of(reply.content))
        assert number(rows[f"ViQ {size}"][1]) == pytest.approx(float(reply.headers["ViQ-PSNR"]), abs=0.006)
    assert desk.at("timed").inner_text().split("\t")[1:] == ["encode nano", "decode nano", "encode 4k", "decode 4k"]
    desk.at("size").select_option("4k")
    desk.at("second").select_option("")
    expect(desk.at("right").locator("option:checked")).to_have_text("ViQ 4k")
    expect(desk.at("costs").locator("tr")).to_have_count(5)


def test_the_divider_moves_by_key_and_by_mouse(desk: Desk, server: Server) -> None:
    desk.visit(server.url).choose("cat.png", file_of(cat()))
    desk.taken("cat.png")
    desk.at("divider").press("ArrowRight")
    where = "stage => getComputedStyle(stage).getPropertyValue('--at')"
    assert desk.at("stage").evaluate(where) == "51%"
    desk.page.mouse.move(*desk.patch(1, 5))
    desk.page.mouse.down()
    desk.page.mouse.move(*desk.patch(1, 2), steps=2)
    desk.page.mouse.up()
    assert number(desk.at("stage").evaluate(where)) == pytest.approx(100 * 40 / 184, abs=1)
    assert desk.at("divider").input_value() == f"{100 * 40 / 184:.0f}"


def test_dropped_and_pasted_pictures_are_taken(desk: Desk, server: Server) -> None:
    desk.visit(server.url)
    for event, about, name in (("drop", "dataTransfer", "dropped.png"), ("paste", "clipboardData", "pasted.png")):
        desk.page.evaluate(
            """([event, about, name, bytes]) => {
                const files = new DataTransfer();
                files.items.add(new File([Uint8Array.from(bytes)], name));
                const kind = event === "drop" ? DragEvent : ClipboardEvent;
                document.body.dispatchEvent(new kind(event, { [about]: files, bubbles: true, cancelable: true }));
            }""",
            [event, about, name, list(file_of(cat(32, 32)))],
        )
        desk.taken(name)


def test_a_file_this_browser_cannot_show_is_measured_by_the_service(desk: Desk, server: Server) -> None:
    """Nor one that it shows unturned: chromium goes by no EXIF in WebP."""
    turned, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(cat(64, 48)).save(turned, "WEBP", lossless=True, exif=exif)
    desk.visit(server.url)
    for name, data, note in (
        ("cat.tiff", file_of(cat(64, 48), "TIFF"), "cannot show files of this type"),
        ("turned.webp", turned.getvalue(), "turns this picture otherwise"),
    ):
        desk.choose(name, data)
        desk.taken(name)
        expect(desk.at("note")).to_contain_text(note)
        expect(desk.at("right").locator("option")).to_have_text(["ViQ nano"])
        reply = server.http.post("/v1/reconstruct?size=nano", content=data)
        assert np.array_equal(desk.shown(), pixels_of(reply.content))
        assert number(desk.cells("costs")["ViQ nano"][1]) == pytest.approx(float(reply.headers["ViQ-PSNR"]), abs=0.006)


def test_a_strip_of_pixels_can_still_be_seen_and_selected(desk: Desk, server: Server) -> None:
    desk.visit(server.url)
    for name, width, height in (("wide.png", 1600, 1), ("tall.png", 1, 1600)):
        desk.choose(name, file_of(np.zeros((height, width, 3), np.uint8)))
        box = desk.taken(name).at("stage").bounding_box()
        assert box is not None
        assert 24 <= box["width"] <= 900
        assert 24 <= box["height"] <= 0.72 * 900
        across, down = (width + 15) // 16, (height + 15) // 16
        desk.drag((0, 0), (down - 1, across - 1))
        expect(desk.at("selected")).to_have_text("100 patches selected")


def held(desk: Desk, path: str) -> None:
    """Requests for this are not answered from now on."""
    desk.page.route(path, lambda _: None)


def test_what_was_chosen_last_is_what_comes(desk: Desk, server: Server) -> None:
    """Whatever was on its way: a sample, a picture to borrow codes from, or the same file by another size."""
    desk.visit(server.url)
    held(desk, "**/samples/*.jpg")
    desk.button("Cat").click()
    with desk.page.expect_event("requestfailed", lambda request: request.url.endswith("cat.jpg")):
        desk.choose("first.png", file_of(cat(32, 32)))
    desk.taken("first.png").drag((0, 0), (1, 1))
    desk.button("Take its codes").click()
    expect(desk.at("busy")).to_contain_text("Decoding")
    with desk.page.expect_event("requestfailed", lambda request: request.url.endswith("coffee.jpg")):
        desk.choose("second.png", file_of(cat(48, 48)))
    desk.taken("second.png")
    expect(desk.at("changes")).to_be_hidden()
    held(desk, "**/v1/encode?*size=nano")
    desk.choose("third.png", file_of(cat(64, 64)))
    expect(desk.at("busy")).to_contain_text("Encoding")
    desk.at("size").select_option("4k")
    desk.taken("third.png")
    expect(desk.at("right").locator("option:checked")).to_have_text("ViQ 4k")
    expect(desk.at("notice")).to_be_hidden()


def test_transparency_and_orientation_are_shown_as_the_service_sees_them(desk: Desk, server: Server) -> None:
    clear, exif = Image.fromarray(cat(48, 32)).convert("RGBA"), Image.Exif()
    clear.putalpha(Image.new("L", clear.size, 0))
    exif[0x0112] = 6
    files = {"clear.png": io.BytesIO(), "turned.jpg": io.BytesIO()}
    clear.save(files["clear.png"], "PNG")
    Image.fromarray(cat(48, 32)).save(files["turned.jpg"], "JPEG", exif=exif)
    desk.visit(server.url)
    for name, shape in (("clear.png", (32, 48, 3)), ("turned.jpg", (48, 32, 3))):
        desk.choose(name, files[name].getvalue())
        desk.taken(name)
        assert desk.shown("left").shape == desk.shown("right").shape == shape
        assert name != "clear.png" or (desk.shown("left") == 255).all()


def test_times_of_each_stage_are_shown(desk: Desk, server: Server) -> None:
    desk.visit(server.url).choose("cat.png", file_of(cat()))
    rows = desk.taken("cat.png").cells("times")
    assert list(rows) == ["preprocess", "queue", "transfer", "compute", "postprocess", "whole request"]
    numbers = {stage: [float(cell) for cell in cells] for stage, cells in rows.items()}
    for request in (0, 1):
        assert numbers["compute"][request] > 0
        assert sum(numbers[stage][request] for stage in list(rows)[:-1]) <= numbers["whole request"][request] + 1


def test_the_strip_shows_what_the_service_measures(desk: Desk, server: Server) -> None:
    desk.visit(server.url).choose("cat.png", file_of(cat()))
    desk.taken("cat.png").look()
    expect(desk.at("state")).to_have_text("ready")
    expect(desk.at("queue")).to_have_text("empty")
    expect(desk.at("p99")).not_to_have_text("–")
    expect(desk.at("rate")).not_to_have_text("–")
    assert number(desk.at("p99").inner_text()) > 0


def test_a_service_that_shows_its_metrics_to_nobody_is_ready(desk: Desk, server: Server) -> None:
    desk.page.route("**/metrics", lambda route: route.fulfill(status=403, body="Forbidden"))
    asked: list[str] = []
    desk.page.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
    desk.visit(server.url)
    for _ in range(2):
        with desk.page.expect_response("**/metrics"):
            desk.look()
        expect(desk.at("state")).to_have_text("ready")
    expect(desk.at("p99")).to_have_text("–")
    assert asked.count("models") == 1


def test_the_lines_for_shell_and_python_do_the_same(desk: Desk, server: Server, tmp_path: Path) -> None:
    picture = file_of(cat(64, 48))
    desk.visit(server.url).at("second").select_option("4k")
    desk.at("file").set_input_files(payload(NAME, picture))
    desk.taken(NAME)
    shown = {"nano": desk.shown("left"), "4k": desk.shown("right")}
    for id_, command in (("curl", ["bash", "-euc"]), ("python", [PYTHON, "-c"])):
        folder = tmp_path / id_
        folder.mkdir()
        (folder / NAME).write_bytes(picture)
        run([*command, desk.at(id_).inner_text()], folder)
        pictures = {path.name: pixels_of(path.read_bytes()) for path in folder.glob("it*cat*-*.png")}
        for size, pixels in shown.items():
            assert np.array_equal(pictures[f"it-s-a-cat-1-2-{size}.png"], pixels)


def test_the_lines_for_a_sample_fetch_it(desk: Desk, server: Server, tmp_path: Path) -> None:
    desk.visit(server.url).button("Chart").click()
    desk.taken("chart.png")
    for id_, command in (("curl", ["bash", "-euc"]), ("python", [PYTHON, "-c"])):
        folder = tmp_path / id_
        folder.mkdir()
        run([*command, desk.at(id_).inner_text()], folder)
        assert np.array_equal(pixels_of((folder / "chart-nano.png").read_bytes()), desk.shown("right"))


def test_lines_are_copied(desk: Desk, server: Server) -> None:
    desk.page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.url)
    desk.visit(server.url).choose("cat.png", file_of(cat(16, 16)))
    desk.taken("cat.png").button("Copy the lines for the shell").click()
    expect(desk.at("copied")).to_have_text("Copied")
    assert desk.page.evaluate("navigator.clipboard.readText()") == desk.at("curl").inner_text()
