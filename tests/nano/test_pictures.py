"""Pictures to train on: drawn, scaled, cropped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nano.crops import Crops
from nano.documents import document
from nano.drawing import Fonts
from nano.held_documents import HELD_DOCUMENTS, held_document
from nano.photographs import LONGEST, at_most, read_photograph, scales
from viq.patches import normalise, patchify


def test_a_document_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    fonts = Fonts([])
    first, again, other = (np.asarray(document(seed, fonts)) for seed in (4, 4, 5))
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_there_are_eight_held_out_documents_and_each_has_something_on_it() -> None:
    assert len(HELD_DOCUMENTS) == 8
    for name in HELD_DOCUMENTS:
        assert np.asarray(held_document(name, Fonts([]))).std() > 10, name


def test_a_photograph_is_brought_to_several_sizes_and_never_enlarged() -> None:
    assert [max(image.size) for image in scales(Image.new("RGB", (4000, 2000)))] == [LONGEST, 896, 512, 288]
    assert [image.size for image in scales(Image.new("RGB", (300, 200)))] == [(300, 200)]
    assert at_most(Image.new("RGB", (100, 50)), 200).size == (100, 50)


def test_a_photograph_is_read_as_rgb(tmp_path: Path) -> None:
    Image.new("L", (64, 48), 70).save(tmp_path / "grey.png")
    image = read_photograph(tmp_path / "grey.png")
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (64, 48), (70, 70, 70))


def test_a_batch_is_the_same_for_the_same_seed_and_holds_about_as_many_patches_as_asked(data: Path) -> None:
    crops = Crops(data / "train")
    batch, again, other = crops.batch((0, 1, 0), 100), crops.batch((0, 1, 0), 100), crops.batch((0, 1, 1), 100)
    assert batch.packing == again.packing
    assert (batch.patches == again.patches).all()
    assert batch.packing != other.packing or (batch.patches != other.patches).any()
    assert 70 <= batch.packing.patches <= 100
    assert len(set(crops.batch((3,), 600).packing.grids)) > 3  # mixed sizes and shapes


def test_patches_of_a_crop_are_what_inference_makes_of_its_pixels(data: Path) -> None:
    batch = Crops(data / "train").batch((2,), 80)
    pixels = [((t.permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8) for t in batch.targets]
    sizes = [(p.shape[0], p.shape[1]) for p in pixels]
    expected = normalise(patchify(pixels, batch.packing), sizes, batch.packing, batch.patches.dtype)
    assert (batch.patches == expected).all()


def test_held_out_pictures_are_never_among_the_crops(data: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no prepared pictures"):
        Crops(data / "held-out" / "nothing")
    held = np.asarray(Image.open(data / "held-out" / "document-page.png").convert("RGB"))
    crops = Crops(data / "train")
    pictures = [*crops._documents, *(p for group in crops._photographs for p in group)]
    assert all(p.shape != held.shape for p in pictures)
