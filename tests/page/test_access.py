"""For everybody: by keyboard alone, on a phone, in light and dark, with nothing that axe-core objects to."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from playwright.sync_api import BrowserContext, Page, expect
from tests.page.driving import Desk, cat, file_of, pixels_of

if TYPE_CHECKING:
    from tests.doors.serving import Server
    from tests.page.conftest import Proxy

AXE = (files("axe_playwright_python") / "axe.min.js").read_text()
Scheme = Literal["light", "dark"]


def violations(page: Page, *rules: str) -> list[str]:
    """What axe-core finds by these rules, or by all of them, a line each."""
    page.evaluate(AXE)
    options = {"resultTypes": ["violations"], **({"runOnly": rules} if rules else {})}
    found: dict[str, Any] = page.evaluate("options => axe.run(options)", options)
    return [f"{one['id']}: {node['html']}" for one in found["violations"] for node in one["nodes"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_state_at_every_width_is_accessible(desk: Desk, server: Server, scheme: Scheme) -> None:
    desk.page.emulate_media(color_scheme=scheme)
    rules = ("color-contrast",) if scheme == "dark" else ()  # in the dark only colours are others

    def fits(*widths: int) -> None:
        for width in widths:
            desk.page.set_viewport_size({"width": width, "height": 800})
            assert desk.page.evaluate("document.documentElement.scrollWidth") <= width
        assert violations(desk.page, *rules) == []

    desk.visit(server.url)
    fits(1440, 360)
    desk.at("second").select_option("4k")
    desk.choose(f"{'long-' * 40}name.png", file_of(cat()))
    desk.taken(f"{'long-' * 40}name.png").measured()
    fits(1440, 768, 360)
    desk.drag((1, 1), (3, 4))
    desk.edit("Random")
    fits(1440, 768, 360)
    desk.choose("notes.txt", b"words")
    expect(desk.at("notice")).to_be_visible()
    desk.at("access").evaluate("form => form.hidden = false")
    fits(1440, 360)
    ground = desk.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in ground[4:-1].split(",")) > 3 * 128) is (scheme == "light")


def test_axe_finds_what_is_wrong(desk: Desk, server: Server) -> None:
    desk.visit(server.url).at("size").evaluate("select => select.closest('label').replaceWith(select)")
    assert [one.partition(":")[0] for one in violations(desk.page)] == ["select-name"]


def test_all_of_it_is_done_by_keyboard_alone(desk: Desk, server: Server) -> None:
    keys = desk.visit(server.url).page.keyboard
    desk.tab_to(desk.button("Chart"))
    keys.press("Enter")
    before = desk.taken("chart.png").shown()
    desk.tab_to(desk.page.locator("input[value=compare]"))
    keys.press("ArrowRight")
    desk.tab_to(desk.at("stage"))
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "Space"):
        keys.press(key)
    expect(desk.at("spoken")).to_contain_text("row 3 of 18, column 2 of 28")
    expect(desk.at("selected")).to_have_text("1 patch selected")
    for key in ("ArrowDown", "Shift+ArrowRight", "Shift+ArrowDown"):
        keys.press(key)
    expect(desk.at("selected")).to_have_text("5 patches selected")
    desk.tab_to(desk.button("Middle"))
    keys.press("Enter")
    expect(desk.at("changes")).to_be_visible()
    desk.idle()
    expect(desk.button("Middle")).to_be_focused()
    assert not np.array_equal(desk.shown(), before)
    codes = desk.codes().array
    changed = np.argwhere((codes == codes[2, 1]).all(axis=2)).tolist()
    assert {(2, 1), (3, 1), (3, 2), (4, 1), (4, 2)} <= {(row, column) for row, column in changed}
    desk.tab_to(desk.at("undo"))
    keys.press("Enter")
    expect(desk.at("changes")).to_be_hidden()
    assert np.array_equal(desk.shown(), before)
    desk.at("stage").focus()
    keys.press("Control+a")
    expect(desk.at("selected")).to_have_text("504 patches selected")
    keys.press("Escape")
    expect(desk.at("selected")).to_contain_text("No patch selected")


def test_what_has_the_focus_can_be_seen(desk: Desk, server: Server) -> None:
    desk.visit(server.url)
    for place in (desk.button("Cat"), desk.at("size")):
        desk.tab_to(place)
        assert place.evaluate("element => getComputedStyle(element).outlineWidth") == "3px"
    desk.at("file").focus()
    assert desk.page.locator(".file").evaluate("label => getComputedStyle(label).outlineWidth") == "3px"


def test_nothing_moves_for_those_who_do_not_want_it(desk: Desk, server: Server) -> None:
    desk.visit(server.url)
    moves = """() => {
        document.body.toggleAttribute('data-busy', true);
        return getComputedStyle(document.getElementById('busy'), '::before').animationName;
    }"""
    assert desk.page.evaluate(moves) == "none"
    desk.page.emulate_media(reduced_motion="no-preference")
    assert desk.page.evaluate(moves) == "turn"


def test_it_works_where_pages_may_keep_nothing(desk: Desk, server: Server) -> None:
    denied = (
        "Object.defineProperty(window, 'sessionStorage', { get() { throw new DOMException('', 'SecurityError') } })"
    )
    desk.page.add_init_script(denied)
    desk.visit(server.url).choose("cat.png", file_of(cat(16, 16)))
    desk.taken("cat.png")


def test_scripts_and_styles_in_the_markup_are_not_run(context: BrowserContext, server: Server) -> None:
    """The policy holds in a browser."""
    page = context.new_page()
    page.goto(server.url)
    injected = """() => {
        const refused = [];
        addEventListener('securitypolicyviolation', event => refused.push(event.effectiveDirective));
        const script = document.createElement('script');
        script.textContent = 'window.ran = true';
        document.body.append(script);
        document.body.insertAdjacentHTML('beforeend', '<p style="color: red">x</p>');
        return new Promise(done => setTimeout(() => done([window.ran ?? false, ...refused]), 100));
    }"""
    assert page.evaluate(injected) == [False, "script-src-elem", "style-src-attr"]


def test_it_works_behind_a_prefix(desk: Desk, server: Server, proxy: Proxy) -> None:
    """Of a proxy that wants a cookie, at an address that holds a name and a password."""
    desk.visit(proxy.url.replace("//", "//somebody:secret@"))
    desk.url = f"{proxy.url}/"
    desk.button("Chart").click()
    desk.taken("chart.png")
    picture = file_of(cat(32, 32))
    desk.choose("cat.png", picture)
    desk.taken("cat.png")
    reply = server.http.post("/v1/reconstruct?size=nano", content=picture)
    assert np.array_equal(desk.shown(), pixels_of(reply.content))
    assert f"{proxy.url}/v1/encode?size=nano" in desk.at("curl").inner_text()
    desk.drag((0, 0), (0, 0))
    desk.edit("Zero")
    assert desk.cells("changed")["Edited patches"]
