"""What goes wrong is told in words: bad files, limits, keys, a busy service, and one that is gone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from playwright.sync_api import expect
from tests.doors.serving import Server
from tests.page.conftest import MAX_BYTES, MAX_PATCHES, Proxy
from tests.page.driving import Desk, cat, file_of, pixels_of
from tests.waiting import until

KEY = "good"
BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of nano with a key, little room, and a gate before its device."""
    folder = tmp_path_factory.mktemp("guarded")
    flags = ["--api-keys", KEY, "--max-queue-patches", "64", "--max-patches", "64", "--drain-delay", "0"]
    server = Server(folder, *flags, gated=True)
    yield server.ready()
    server.gate.open()
    server.end()


def unlock(desk: Desk, key: str = KEY, keep: bool = False) -> None:
    desk.at("key").fill(key)
    desk.at("keep").set_checked(keep)
    desk.button("Use this key").click()


def test_a_text_file_is_refused_and_what_was_there_stays(desk: Desk, server: Server) -> None:
    desk.visit(server.url).choose("cat.png", file_of(cat()))
    before = desk.taken("cat.png").shown()
    desk.choose("notes.txt", b"no picture, only words")
    expect(desk.at("notice").get_by_role("heading")).to_have_text("This cannot be used")
    expect(desk.at("notice")).to_contain_text("Not an image of a known format")
    expect(desk.at("notice")).to_contain_text("Request ")
    assert np.array_equal(desk.taken("cat.png").shown(), before)
    desk.choose("cat2.png", file_of(cat(32, 32)))
    desk.taken("cat2.png")
    expect(desk.at("notice")).to_be_hidden()


def test_pictures_over_a_limit_are_refused_naming_it(desk: Desk, server: Server) -> None:
    desk.visit(server.url)
    flat = np.zeros((16 * 30, 16 * 20, 3), np.uint8)  # 600 patches, few bytes
    noise = np.random.default_rng(0).integers(0, 256, (320, 320, 3), np.uint8)  # 400 patches, many bytes
    sent = server.metric("viq_requests_total")
    for name, data, words in (
        ("long.png", file_of(noise), f"the limit is {MAX_BYTES}"),
        ("wide.png", file_of(flat), str(MAX_PATCHES)),
    ):
        desk.choose(name, data)
        expect(desk.at("notice").get_by_role("heading")).to_have_text("Too large for this service")
        expect(desk.at("notice")).to_contain_text(words)
        expect(desk.button("Try again")).to_have_count(0)
        assert server.metric("viq_requests_total") == sent + (name == "wide.png")  # what cannot fit is not even sent
    expect(desk.at("work")).to_be_hidden()


def test_a_key_is_asked_for_where_one_is_needed(desk: Desk, guarded: Server) -> None:
    desk.url = f"{guarded.url}/"
    asked: list[str] = []
    desk.page.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
    desk.page.goto(desk.url)
    expect(desk.at("access")).to_be_visible()
    expect(desk.at("state")).to_have_text("ready")  # which needs no key
    for _ in range(2):
        with desk.page.expect_response("**/readyz"):
            desk.look()
    assert asked.count("metrics") <= 1  # the rest would be refused, and counted
    desk.choose("cat.png", file_of(cat(64, 48)))
    expect(desk.at("notice").get_by_role("heading")).to_have_text("The service wants a key")
    unlock(desk, "wrong")
    expect(desk.at("notice")).to_contain_text("The key is not known")
    unlock(desk)
    expect(desk.at("size")).to_have_value("nano")
    expect(desk.at("queue")).to_have_text("empty")
    desk.choose("cat.png", file_of(cat(64, 48)))
    desk.taken("cat.png")
    for id_ in ("curl", "python"):
        assert "VIQ_KEY" in desk.at(id_).inner_text()
        assert KEY not in desk.at(id_).inner_text()
    kept = "[localStorage.length, sessionStorage.length, document.cookie]"
    assert desk.page.evaluate(kept) == [0, 0, ""]
    desk.page.reload()
    expect(desk.at("access")).to_be_visible()
    unlock(desk, keep=True)
    expect(desk.at("size")).to_have_value("nano")
    desk.page.reload()
    expect(desk.at("size")).to_have_value("nano")
    assert desk.page.evaluate(kept) == [0, 1, ""]


def test_a_busy_service_says_when_to_come_again(desk: Desk, guarded: Server) -> None:
    desk.url = f"{guarded.url}/"
    desk.page.goto(desk.url)
    unlock(desk)
    expect(desk.at("size")).to_have_value("nano")
    taken, picture = guarded.gate.count("taken"), file_of(cat(128, 128))  # 64 patches: there is room for no more
    guarded.gate.close()
    posted = threading.Thread(
        target=httpx.post,
        args=(f"{guarded.url}/v1/encode",),
        kwargs={"content": picture, "headers": BEARER, "timeout": 60, "trust_env": False},
    )
    posted.start()
    until(lambda: guarded.gate.count("taken") == taken + 1, "a device that is held")
    desk.choose("cat.png", picture)
    expect(desk.at("notice").get_by_role("heading")).to_have_text("The service is busy")
    expect(desk.at("notice")).to_contain_text("It asks to come again in ")
    guarded.gate.open()
    posted.join()
    expect(desk.button("Try again")).to_be_enabled()
    desk.button("Try again").click()
    desk.taken("cat.png")
    reply = guarded.http.post("/v1/reconstruct", content=picture, headers=BEARER)
    assert np.array_equal(desk.shown(), pixels_of(reply.content))


def test_a_newer_file_takes_the_place_of_one_under_way(desk: Desk, guarded: Server) -> None:
    desk.url = f"{guarded.url}/"
    desk.page.goto(desk.url)
    unlock(desk)
    expect(desk.at("size")).to_have_value("nano")
    taken = guarded.gate.count("taken")
    guarded.gate.close()
    desk.choose("first.png", file_of(cat(32, 32)))
    until(lambda: guarded.gate.count("taken") == taken + 1, "a device that is held")
    expect(desk.at("busy")).to_contain_text("Encoding")
    desk.choose("second.png", file_of(cat(16, 16)))
    desk.choose("third.png", file_of(cat(48, 48)))
    guarded.gate.open()
    desk.taken("third.png")
    expect(desk.at("notice")).to_be_hidden()
    assert desk.shown().shape == (48, 48, 3)


def test_a_service_that_is_gone_or_silent_is_told_until_it_is_back(desk: Desk, proxy: Proxy) -> None:
    desk.page.add_init_script(
        "const timeout = AbortSignal.timeout; AbortSignal.timeout = ms => timeout.call(AbortSignal, ms / 10)"
    )
    desk.visit(proxy.url)
    proxy.answers(False)
    desk.look()
    expect(desk.at("state")).to_have_text("no answer")
    proxy.end()
    desk.look()
    expect(desk.at("state")).to_have_text("unreachable")
    desk.choose("cat.png", file_of(cat(32, 32)))
    expect(desk.at("notice").get_by_role("heading")).to_have_text("The service cannot be reached")
    proxy.start()
    desk.look()
    expect(desk.at("state")).to_have_text("ready")
    desk.button("Try again").click()
    desk.taken("cat.png")


def test_a_file_that_is_gone_is_told(desk: Desk, server: Server, tmp_path: Path) -> None:
    file = tmp_path / "cat.png"
    file.write_bytes(file_of(cat(32, 32)))
    desk.visit(server.url).at("file").set_input_files(file)
    desk.taken("cat.png")
    file.unlink()
    desk.at("size").select_option("4k")
    expect(desk.at("notice")).to_contain_text("The file cannot be read")
