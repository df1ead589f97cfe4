"""The page's files over HTTP: what they are, who may have them, and what they may do."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

import viq_serving
from viq_serving.rest.page import assets

Serve = Callable[..., AbstractContextManager[httpx.Client]]
FOLDER = Path(viq_serving.__file__).parent / "page"
SAMPLES = FOLDER / "samples"
PATHS = ["/", "/page/main.js", "/page/style.css", "/page/icon.svg", "/page/samples/cat.jpg"]


def policy(reply: httpx.Response) -> dict[str, list[str]]:
    parts = (part.split() for part in reply.headers["Content-Security-Policy"].split(";"))
    return {name: values for name, *values in parts}


@pytest.mark.parametrize("path", PATHS)
def test_a_file_may_do_little_and_is_asked_for_again_only_if_it_changed(client: httpx.Client, path: str) -> None:
    reply = client.get(path)
    assert reply.status_code == 200
    rules = policy(reply)
    assert rules["default-src"] == ["'none'"]
    assert {source for sources in rules.values() for source in sources} == {"'self'", "'none'"}
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Referrer-Policy"] == "no-referrer"
    assert reply.headers["Cache-Control"] == "no-cache"
    tag = reply.headers["ETag"]
    again = client.get(path, headers={"If-None-Match": tag})
    assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag)
    assert client.get(path, headers={"If-None-Match": '"other"'}).content == reply.content
    head = client.head(path)
    assert (head.content, head.headers["Content-Length"]) == (b"", str(len(reply.content)))
    assert client.post(path).status_code == 405


@pytest.mark.parametrize(
    "path", ["/page", "/page/", "/page/x.js", "/page/../rest/page.py", "/page/%2e%2e/errors.py", "/page/samples"]
)
def test_nothing_else_is_served(client: httpx.Client, path: str) -> None:
    reply = client.get(path)
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")


def test_all_files_of_the_folder_are_served_and_no_other() -> None:
    present = {str(path.relative_to(FOLDER)): path for path in FOLDER.rglob("*") if path.is_file()}
    assert set(present) - set(assets()) == {"samples/SOURCES.md"}
    assert set(assets()) <= set(present)
    samples = [path for path in SAMPLES.iterdir() if path.suffix != ".md"]
    assert sum(path.stat().st_size for path in samples) <= 60_000
    assert all(path.name in (SAMPLES / "SOURCES.md").read_text() for path in samples)


def test_files_name_no_other_place_and_hold_no_script_in_markup() -> None:
    for path in FOLDER.rglob("*"):
        if path.suffix not in (".html", ".js", ".css", ".svg"):
            continue
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"^\s*//.*$|\s// .*$", "", text, flags=re.MULTILINE), path
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text), path
    index = (FOLDER / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]* src=)", index)
    assert not re.search(r'(?:src|href)="/', index)


def test_it_needs_no_key_and_gives_none_of_the_rest_away(serve: Serve) -> None:
    with serve(api_keys="good") as client:
        for path in PATHS:
            assert client.get(path).headers["Cache-Control"] == "no-cache"
            assert client.get(path).status_code == 200
        for path in ("/v1/models", "/metrics", "/docs", "/pages", "/pag"):
            assert client.get(path).status_code == 401


def test_it_can_be_left_out(serve: Serve) -> None:
    with serve(page=False) as client:
        for path in PATHS:
            reply = client.get(path)
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")
    with serve(page=False, api_keys="good") as client:
        assert {client.get(path).status_code for path in PATHS} == {401}
