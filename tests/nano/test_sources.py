"""What is trained on, what is held out, and who made it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nano.sources import FONTS, TRAINABLE, Forbidden, check, read_sources

SKIMAGE = {"astronaut", "coffee", "chelsea", "rocket", "page"}


def test_nothing_under_a_share_alike_or_gnu_licence_is_trained_on() -> None:
    trained = [source for source in read_sources() if source.use == "train"]
    assert len(trained) >= 35
    for source in trained:
        assert source.licence in TRAINABLE, source.name
        assert "SA" not in source.licence, source.name
        assert "G" not in source.licence, source.name


def test_ten_photographs_and_five_of_skimage_are_held_out_whole() -> None:
    held = {source.name for source in read_sources() if source.use == "held-out"}
    assert held > SKIMAGE
    assert len(held - SKIMAGE) == 10
    assert held.isdisjoint(source.name for source in read_sources() if source.use == "train")


def test_every_source_has_a_title_an_author_and_a_package() -> None:
    for source in read_sources():
        assert all((source.title, source.author, source.package, source.licence)), source
        assert source.origin == "wheel" or source.origin.startswith("debian/"), source


def test_a_training_picture_with_a_wrong_licence_or_a_second_use_is_refused() -> None:
    sources = read_sources()
    train = next(source for source in sources if source.use == "train")
    with pytest.raises(Forbidden, match=r"licence CC-BY-SA-4\.0"):
        check([replace(train, licence="CC-BY-SA-4.0")])
    with pytest.raises(Forbidden, match="twice"):
        check([train, replace(train, use="held-out")])
    with pytest.raises(Forbidden, match="use 'both'"):
        check([replace(train, use="both")])


def test_held_out_pages_are_set_in_fonts_of_their_own() -> None:
    assert set(FONTS.values()) == {"train", "held-out"}
