"""Pictures drawn from a seed."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from viq_serving.bench.mixes import mix_of
from viq_serving.bench.pictures import Content, FileFormat, digest, pictures_of


@pytest.mark.parametrize("content", ["photo", "document", "mixed"])
@pytest.mark.parametrize("file_format", ["jpeg", "png"])
def test_files_are_pictures_of_the_size_and_format_asked_for(content: Content, file_format: FileFormat) -> None:
    files = pictures_of(mix_of("96x64,1x1,17x300"), 3, 0, file_format, content)
    for one in files:
        with Image.open(io.BytesIO(one.data)) as image:
            assert (image.format or "").lower() == file_format
            assert image.size == (one.width, one.height)
    assert sorted(one.patches for one in files) == [1, 24, 38]


def test_the_seed_decides_the_files() -> None:
    mix = mix_of("64x48")
    one, again, other = (digest(pictures_of(mix, 3, seed)) for seed in (1, 1, 2))
    assert one == again != other
    assert len({file.data for file in pictures_of(mix, 3, 1)}) == 3


def test_photographs_take_the_bits_that_photographs_take() -> None:
    (one,) = pictures_of(mix_of("1024x768"), 1, 0)
    assert 1.2 < 8 * len(one.data) / one.pixels < 2.6
