"""Names: braces, patterns, order, and the keys of tar shards."""

from __future__ import annotations

import random
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from viq_serving.extract.names import expanded, in_order, matcher, member_key, sample_of, shown, split_pattern


def test_braces_stand_for_ranges_and_choices_in_order() -> None:
    assert list(expanded("a-{008..011}.tar")) == ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]
    assert list(expanded("{x,yy}/{0..1}")) == ["x/0", "x/1", "yy/0", "yy/1"]
    assert list(expanded("plain")) == ["plain"]


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*.jpg", ["a.jpg", ".jpg"], ["b/a.jpg", "a.jpgx", "axjpg"]),
        ("**/*.jpg", ["a.jpg", "b/c/a.jpg"], ["a.png"]),
        ("a/**", ["a/b", "a/b/c"], ["b/a"]),
        ("img?[0-9][!x].png", ["img_1y.png"], ["img_1x.png", "img/1y.png", "img_ay.png"]),
    ],
)
def test_patterns_match_within_names_and_over_folders(pattern: str, matching: list[str], others: list[str]) -> None:
    match = matcher(pattern)
    assert [one for one in matching + others if match.fullmatch(one)] == matching


@given(st.text("ab.*?", max_size=8), st.text("ab.", max_size=8))
def test_patterns_without_folders_match_what_the_shell_does(pattern: str, name: str) -> None:
    if "**" not in pattern:
        assert bool(matcher(pattern).fullmatch(name)) == fnmatchcase(name, pattern)


def test_a_pattern_is_split_at_its_first_wildcard() -> None:
    assert split_pattern("/data/x/*/y.png") == ("/data/x", "*/y.png")
    assert split_pattern("*.png") == (".", "*.png")
    assert split_pattern("/*.png") == ("/", "*.png")


def test_a_folder_larger_than_memory_comes_in_order_too() -> None:
    entries = [(f"{i:04d}", i % 7 == 0) for i in range(1000)]
    mixed = random.Random(0).sample(entries, len(entries))
    assert list(in_order(mixed, run=64)) == entries


@pytest.mark.parametrize("name", ["a/b.c/000.seg.png", "000.jpg", "./x/1.a.b", "nodot", "a/b.", "__x__.y"])
def test_samples_are_told_apart_as_webdataset_does(name: str) -> None:
    base, extension = base_plus_ext(name)
    expected = (base, extension.lower()) if base is not None and extension else None
    assert sample_of(name) == expected


@given(st.lists(st.one_of(st.text(max_size=6), st.text("./%~a\0", max_size=6)), unique=True, max_size=20))
def test_different_keys_stay_different_as_names_of_samples(keys: list[str]) -> None:
    names = [member_key(key) for key in keys]
    assert len(set(names)) == len(names)
    for name in names:
        assert "." not in name.rpartition("/")[2]
        assert "\0" not in name
        assert not name.startswith("/")
        assert ".." not in name.split("/")


def test_names_that_are_no_text_can_be_shown() -> None:
    assert shown(b"caf\xe9.png".decode("utf-8", "surrogateescape")) == "caf\\xe9.png"
