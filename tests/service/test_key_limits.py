"""What keys may do: lanes, and limits that change while requests are under way."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from tests.service.key_file import Clock, KeyFile, knows

from viq_serving.errors import Forbidden, Overloaded
from viq_serving.keys import Keys
from viq_serving.settings import Settings
from viq_serving.types import Caller, Priority

BULK: frozenset[Priority] = frozenset({"bulk"})
BOTH: frozenset[Priority] = frozenset({"bulk", "interactive"})


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path)


def test_who_asks_is_named_by_the_digest_of_the_key_and_may_do_everything() -> None:
    caller = Keys(Settings.load({"api_keys": "sesame"})).check("Bearer sesame")
    assert caller.name == hashlib.sha256(b"sesame").hexdigest()[:16]
    assert (caller.lanes, caller.patches, caller.requests) == (BOTH, None, None)


def test_a_line_says_what_its_key_may_do(file: KeyFile) -> None:
    file.write("free\nslow lanes=bulk max-patches=100  # a job\nfew max-requests=2\n")
    keys = file.keys()
    free, slow, few = (keys.check(f"Bearer {key}") for key in ("free", "slow", "few"))
    assert (free.lanes, free.patches, free.requests) == (BOTH, None, None)
    assert (slow.lanes, slow.requests) == (BULK, None)
    assert slow.patches is not None
    assert few.requests is not None
    assert (slow.patches.limit, few.requests.limit, few.lanes) == (100, 2, free.lanes)
    assert keys.check("Bearer slow").patches is slow.patches  # all requests of a key share its limits


@pytest.mark.parametrize(
    ("may", "asked", "usual", "lane"),
    [
        ("", None, "interactive", "interactive"),
        ("", None, "bulk", "bulk"),
        ("", "bulk", "interactive", "bulk"),
        ("lanes=bulk", None, "interactive", "bulk"),
        ("lanes=bulk", "bulk", "interactive", "bulk"),
        ("lanes=interactive", None, "bulk", "interactive"),
    ],
)
def test_who_asks_for_no_lane_gets_the_usual_one_or_the_one_there_is(
    file: KeyFile, may: str, asked: Priority | None, usual: Priority, lane: str
) -> None:
    file.write(f"sesame {may}")
    assert file.keys().check("Bearer sesame").lane(asked, usual) == lane


@pytest.mark.parametrize(("may", "asked"), [("lanes=bulk", "interactive"), ("lanes=interactive", "bulk")])
def test_a_lane_without_the_right_to_it_is_forbidden(file: KeyFile, may: str, asked: Priority) -> None:
    file.write(f"s3cret {may}")
    with pytest.raises(Forbidden, match=f"no right to {asked}, only to {may.partition('=')[2]}") as refusal:
        file.keys().check("Bearer s3cret").lane(asked)
    assert "s3cret" not in str(refusal.value)


def test_a_refusal_for_a_limit_names_what_is_held_and_the_limit(file: KeyFile) -> None:
    file.write("sesame max-patches=100")
    patches = file.keys().check("Bearer sesame").patches
    assert patches is not None
    with (
        patches.held(80),
        pytest.raises(Overloaded, match="80 patches of this key are held and 30 more asked for, the limit is 100"),
    ):
        patches.take(30)


def test_limits_that_change_count_what_is_held_already(file: KeyFile) -> None:
    clock = Clock()
    file.write("sesame max-requests=4")
    keys = file.keys(clock)

    def limited(line: str) -> Caller:
        file.replace(line)
        clock.pass_a_second()
        return keys.check("Bearer sesame")

    first = keys.check("Bearer sesame").requests
    assert first is not None
    with first.held(3):
        fewer = limited("sesame max-requests=2").requests
        assert fewer is first
        with pytest.raises(Overloaded, match="3 requests of this key are held and 1 more asked for, the limit is 2"):
            fewer.take(1)
        more = limited("sesame lanes=bulk max-requests=5")
        assert (more.lanes, more.requests) == (BULK, first)
        first.take(2)
        first.give(2)
        assert limited("sesame").requests is None
        again = limited("sesame max-requests=3").requests
        assert again is first
        with pytest.raises(Overloaded):
            again.take(1)
    assert first.held_now == 0


def test_a_key_that_comes_back_while_it_holds_something_holds_it_still(file: KeyFile) -> None:
    clock = Clock()
    file.write("sesame max-requests=2\nother")
    keys = file.keys(clock)
    requests = keys.check("Bearer sesame").requests
    assert requests is not None
    with requests.held(2):
        for text in ("other", "sesame max-requests=2"):
            file.replace(text)
            clock.pass_a_second()
            knows(keys, "sesame")
        assert keys.check("Bearer sesame").requests is requests
    for text in ("other", "sesame max-requests=2"):
        file.replace(text)
        clock.pass_a_second()
        knows(keys, "sesame")
    assert keys.check("Bearer sesame").requests is not requests  # what is not held is not kept


def test_a_key_in_both_places_may_do_what_the_file_says(file: KeyFile) -> None:
    file.write("sesame lanes=bulk")
    keys = Keys(Settings.load({"api_keys": "sesame,free", "api_keys_file": str(file.path)}))
    assert keys.check("Bearer sesame").lanes == BULK
    assert keys.check("Bearer free").lanes == BOTH
