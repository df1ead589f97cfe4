"""The lines of a file of keys."""

from __future__ import annotations

import pytest

from viq_serving.rights import LANES, Rights, digest_of, rights_of


@pytest.mark.parametrize(
    ("line", "rights"),
    [
        ("key", Rights()),
        ("  key\t# lanes=bulk", Rights()),
        ("key #lanes=bulk", Rights()),
        ("key lanes=bulk", Rights(frozenset({"bulk"}))),
        ("key lanes=interactive", Rights(frozenset({"interactive"}))),
        ("key lanes=bulk,interactive", Rights(LANES)),
        ("key max-requests=1", Rights(max_requests=1)),
        ("key max-patches=16384 lanes=bulk max-requests=8", Rights(frozenset({"bulk"}), 16384, 8)),
    ],
)
def test_a_line_is_a_key_and_its_limits(line: str, rights: Rights) -> None:
    assert rights_of(line) == {digest_of("key"): rights}


def test_a_key_may_hold_what_ends_others() -> None:
    assert list(rights_of("a=b\nc,d\n==\n#no\n")) == [digest_of(key) for key in ("a=b", "c,d", "==")]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("key s3cret", "after the key come only lanes=, max-patches=, max-requests="),
        ("key lanes", "after the key come only"),
        ("key Lanes=bulk", "after the key come only"),
        ("key lanes=", "lanes are bulk and interactive"),
        ("key lanes=s3cret", "lanes are bulk and interactive"),
        ("key lanes=bulk, interactive", "after the key come only"),
        ("key max-patches=0", "max-patches is a whole number from 1 on"),
        ("key max-patches=-1", "max-patches is a whole number"),
        ("key max-patches=1.5", "max-patches is a whole number"),
        ("key max-requests=s3cret", "max-requests is a whole number"),
        ("key max-requests=", "max-requests is a whole number"),
        ("key max-requests=٣", "max-requests is a whole number"),
        ("key max-requests=" + "9" * 13, "max-requests is a whole number"),
        ("key lanes=bulk lanes=bulk", "lanes is given twice"),
        ("lanes=bulk", "the key comes first"),
        ("max-patches=7 s3cret", "the key comes first"),
        ("s3crét", "no header can carry"),
    ],
)
def test_a_line_that_cannot_be_meant_is_named_and_not_shown(line: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"^line 2: .*{words}") as refusal:
        rights_of(f"# keys\n{line}\n")
    assert "s3cr" not in str(refusal.value)


def test_a_key_on_two_lines_must_mean_the_same() -> None:
    assert len(rights_of("key lanes=bulk\nkey lanes=bulk")) == 1
    with pytest.raises(ValueError, match="line 2: a line before it gives the same key other limits"):
        rights_of("key lanes=bulk\nkey")
