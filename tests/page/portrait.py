"""Takes the picture of the page that the documents show: a server of nano, one edit, 1280 pixels wide.

python -m tests.page.portrait docs/page.png
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect, sync_playwright
from tests.doors.serving import Server
from tests.page.conftest import CHROMIUM, FLAGS
from tests.page.driving import Desk

MOST_BYTES = 400_000  # of the file; in more, it is saved with fewer colours


def take(out: Path) -> None:
    """Write the picture."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = Server(Path(folder) / "server", "--drain-delay", "0").ready()
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 960}, color_scheme="light")
        desk = Desk(page).visit(server.url)
        desk.button("Cat").click()
        desk.taken("cat.jpg").measured()
        desk.drag((9, 11), (12, 15))
        desk.edit("Shuffle")
        expect(desk.at("rate")).not_to_have_text("–")
        desk.show("Compare")
        desk.at("left").select_option("original")
        page.evaluate("scrollTo(0, 0)")
        page.mouse.move(0, 0)
        page.screenshot(path=out, clip={"x": 0, "y": 0, "width": 1280, "height": 1110}, full_page=True)
        browser.close()
        server.end()
    if out.stat().st_size > MOST_BYTES:
        with Image.open(out) as image:
            few = image.convert("RGB").quantize(256, dither=Image.Dither.FLOYDSTEINBERG)
        few.save(out, optimize=True)


if __name__ == "__main__":
    take(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/page.png"))
