"""The page as a person uses it, and what a test wants to know of it."""

from __future__ import annotations

import base64
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from PIL import Image
from playwright.sync_api import FilePayload, Locator, Page, expect

from viq import Codes

SECONDS = 60.0
SAMPLES = Path(__file__).parents[2] / "service" / "viq_serving" / "page" / "samples"
Pixels = npt.NDArray[np.uint8]

expect.set_options(timeout=1000 * SECONDS)


def pixels_of(file: bytes) -> Pixels:
    """The RGB pixels of an image file."""
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("RGB"))


def file_of(pixels: Pixels, form: str = "PNG") -> bytes:
    """An image file of these pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def cat(width: int = 184, height: int = 152) -> Pixels:
    """A part of a sample; the sides are by default no whole patches."""
    return pixels_of((SAMPLES / "cat.jpg").read_bytes())[40 : 40 + height, 40 : 40 + width]


def payload(name: str, data: bytes) -> FilePayload:
    """A file as a browser's file chooser gives it."""
    return {"name": name, "mimeType": "application/octet-stream", "buffer": data}


class Desk:
    """One page."""

    def __init__(self, page: Page) -> None:
        self.page, self.url = page, ""

    @property
    def origin(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    def at(self, id_: str) -> Locator:
        """The element of this id."""
        return self.page.locator(f"#{id_}")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def visit(self, url: str, size: str = "nano") -> Desk:
        """Open the page of a server, until it knows what is loaded."""
        self.url = f"{url.rstrip('/')}/"
        self.page.goto(self.url)
        expect(self.at("size")).to_have_value(size)
        return self

    def choose(self, name: str, data: bytes) -> None:
        """Choose a file."""
        self.at("file").set_input_files(payload(name, data))

    def taken(self, name: str) -> Desk:
        """Wait until that file is on the page and nothing is on its way."""
        expect(self.at("name")).to_have_text(name)
        self.idle()
        return self

    def idle(self) -> None:
        expect(self.at("busy")).to_have_text("")

    def look(self) -> None:
        """Have the strip ask now, not only when it is time again."""
        self.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

    def show(self, mode: str) -> None:
        """Compare, or Codes."""
        self.page.locator("label", has=self.page.locator(f"input[value={mode.lower()}]")).click()

    def shown(self, side: str = "right") -> Pixels:
        """The pixels of the left or right picture."""
        url: str = self.page.locator(f"canvas.{side}").evaluate("canvas => canvas.toDataURL()")
        return pixels_of(base64.b64decode(url.partition(",")[2]))

    def patch(self, row: int, column: int) -> tuple[float, float]:
        """Where the middle of a patch lies in the window."""
        self.at("stage").scroll_into_view_if_needed()
        box = self.at("stage").bounding_box()
        assert box is not None
        height, width = self.shown().shape[:2]
        x, y = (8 * place + min(16 * (place + 1), side) / 2 for place, side in ((column, width), (row, height)))
        return box["x"] + x * box["width"] / width, box["y"] + y * box["height"] / height

    def drag(self, start: tuple[int, int], end: tuple[int, int], extend: bool = False) -> None:
        """Select all patches between two (row, column)."""
        self.show("Codes")
        first, mouse = self.patch(*start), self.page.mouse
        if extend:
            self.page.keyboard.down("Shift")
        mouse.move(*first)
        mouse.down()
        mouse.move(*self.patch(*end), steps=3)
        mouse.up()
        if extend:
            self.page.keyboard.up("Shift")

    def edit(self, name: str) -> None:
        """Press a button that edits, until what changed is there."""
        self.button(name).click()
        self.idle()

    def saved(self, name: str) -> tuple[str, bytes]:
        """Name and contents of the file that a button saves."""
        with self.page.expect_download() as download:
            self.button(name).click()
        return download.value.suggested_filename, Path(download.value.path()).read_bytes()

    def codes(self) -> Codes:
        """The codes that would be saved now."""
        return Codes.from_npz(self.saved("Codes .npz")[1])

    def cells(self, id_: str) -> dict[str, list[str]]:
        """The rows of a table by their heads."""
        rows: Sequence[Sequence[str]] = self.at(id_).evaluate(
            "body => [...body.rows].map(row => [...row.cells].map(cell => cell.innerText))"
        )
        return {head.splitlines()[0]: [cell.strip() for cell in cells] for head, *cells in rows}

    def measured(self) -> dict[str, list[str]]:
        """The table of costs, once all of it is there."""
        expect(self.at("costs")).not_to_contain_text("…")
        return self.cells("costs")

    def tab_to(self, locator: Locator) -> None:
        """Press Tab until the element has the focus."""
        for _ in range(60):
            if locator.evaluate("element => element === document.activeElement"):
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not lead to {locator}")


def number(text: str) -> float:
    """The first number in a text."""
    found = re.search(r"-?[\d,]+(\.\d+)?", text)
    assert found is not None, text
    return float(found[0].replace(",", ""))


PYTHON = sys.executable
