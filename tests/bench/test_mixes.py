"""Mixes of sizes: what may be written, and how many pictures of each size come of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from viq.errors import InvalidInput
from viq_serving.bench.mixes import NAMES, mix_of


def test_a_list_of_sizes_gives_each_the_share_of_its_weight() -> None:
    drawn = mix_of("512x256*3,64x64").draw(40, seed=5)
    assert Counter(drawn) == {(512, 256): 30, (64, 64): 10}


def test_any_seed_keeps_the_shares_and_changes_the_order() -> None:
    mix = mix_of("thumbnails")
    one, other = mix.draw(64, 1), mix.draw(64, 2)
    assert one == mix.draw(64, 1)
    assert one != other
    counts = [Counter(drawn) for drawn in (one, other)]
    assert all(abs(counts[0][size] - counts[1][size]) <= 1 for size in mix.sizes)


def test_uniform_has_sides_anywhere_in_its_range() -> None:
    drawn = mix_of("uniform").draw(200, 0)
    sides = [side for size in drawn for side in size]
    assert min(sides) >= 64
    assert max(sides) <= 1024
    assert len(set(drawn)) == 200
    assert sum(sides) / len(sides) == pytest.approx(544, abs=10)


@pytest.mark.parametrize("name", NAMES)
def test_every_named_mix_can_be_drawn_and_scaled(name: str) -> None:
    halved = mix_of(name).scaled(0.5).draw(8, 0)
    assert len(halved) == 8
    assert max(max(size) for size in halved) <= 900


def test_a_histogram_file_is_a_mix(tmp_path: Path) -> None:
    path = tmp_path / "sizes.txt"
    path.write_text("# of a corpus\n640x480 30\n640x480, 10\n32x32 0\n1024x768\t60  # the most\n")
    mix = mix_of(str(path))
    assert dict(zip(mix.sizes, mix.weights, strict=True)) == {(640, 480): 40, (1024, 768): 60}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothing", "none of photos, documents, thumbnails, uniform"),
        ("512x512,8", "'8' is no size"),
        ("0x5", "none of"),
        ("512x512*0", "no size"),
        ("70000x16", "limit of 65500"),
        ("60000x60000", "limit of 50000000"),
    ],
)
def test_what_is_no_mix_is_told_why(text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        mix_of(text)


def test_a_bad_line_of_a_histogram_is_named(tmp_path: Path) -> None:
    path = tmp_path / "sizes.txt"
    path.write_text("640x480 30\n640 by 480\n")
    with pytest.raises(InvalidInput, match="line 2: '640 by 480'"):
        mix_of(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="no text file"):
        mix_of(str(path))


def test_uniform_has_no_sizes_to_take_one_at_a_time() -> None:
    with pytest.raises(InvalidInput, match="uniform has no list"):
        mix_of("uniform").apart()


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), 1000.0])
def test_a_scale_that_makes_no_sense_is_refused(factor: float) -> None:
    with pytest.raises(InvalidInput, match="scale"):
        mix_of("thumbnails").scaled(factor)


def test_a_histogram_may_be_named_like_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("512x512.txt").write_text("64x64 1\n")
    Path("512x512").write_text("64x64 1\n")
    assert mix_of("512x512.txt").sizes == ((64, 64),)
    assert mix_of("512x512").sizes == ((512, 512),)


@pytest.mark.parametrize("text", ["x" * 5000, "a\0b", ""])
def test_a_name_that_no_file_can_have_is_no_mix(text: str) -> None:
    with pytest.raises(InvalidInput, match="is none of photos") as told:
        mix_of(text)
    assert len(str(told.value)) < 300


def test_a_histogram_without_sizes_or_of_too_many_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sizes.txt"
    path.write_text("# nothing\n\n")
    with pytest.raises(InvalidInput, match="holds no size"):
        mix_of(str(path))
    path.write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(InvalidInput, match="the limit for a histogram is 1048576"):
        mix_of(str(path))
