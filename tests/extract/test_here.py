"""Images to codes in order: packs that are full, failures that stay alone, and room that is bounded."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image

from viq.codes import Codes
from viq.config import grid_of
from viq.errors import InvalidInput, ViQError
from viq.launched import Launched
from viq.patches import Patches
from viq_serving.extract.errors import DeviceLost
from viq_serving.extract.here import Here
from viq_serving.extract.results import Result
from viq_serving.extract.sources import Item
from viq_serving.images import ImageLimits


class Device:
    """Gives each image codes that say which one it is; `wrong` is asked about every pack."""

    fingerprint = "0" * 16 + "." + "0" * 8

    def __init__(self, wrong: Callable[[Sequence[Patches]], Exception | None] = lambda pack: None, name: str = "cpu"):
        self.device, self._wrong, self.packs = name, wrong, list[int]()

    def launch_encode(self, images: Sequence[Patches]) -> Launched[Codes]:
        error = self._wrong(images)
        self.packs.append(sum(len(image.rows) for image in images))
        if error is not None and self.device == "cpu":
            raise error
        return Launched(0.0, partial(self._results, images, error))

    def launch_decode(self, codes: Sequence[Codes]) -> Launched[Any]:
        """One shade lighter than it was."""
        shades = [np.full((*one.image_size, 3), one.array[0, 0, 0] + 1, np.uint8) for one in codes]
        return Launched(0.0, lambda: shades)

    def _results(self, images: Sequence[Patches], error: Exception | None) -> list[Codes]:
        if error is not None:
            raise error
        return [coded(image) for image in images]


def coded(image: Patches) -> Codes:
    h, w = grid_of(*image.image_size)
    return Codes(np.full((h, w, 4), int(image.rows[0, 0]), np.uint16), image.image_size, "nano", Device.fingerprint)


def shade(value: int, height: int = 16, width: int = 16) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def item(position: int, data: bytes) -> Item:
    return Item(position, str(position), lambda: data, held=len(data))


def run(device: Device, given: Sequence[bytes], **options: Any) -> list[Result]:
    with Here([device], ImageLimits(), **options) as here:
        return list(here.encoded(item(i, data) for i, data in enumerate(given)))


def values(results: Sequence[Result]) -> list[object]:
    return [int(r.codes.array[0, 0, 0]) if isinstance(r.codes, Codes) else str(r.codes) for r in results]


@pytest.mark.parametrize("name", ["cpu", "cuda:0"])
def test_results_come_in_order_from_packs_that_are_full(name: str) -> None:
    device = Device(name=name)
    sizes = [(16 * (1 + i % 5), 16 * (1 + i % 3)) for i in range(200)]
    results = run(device, [shade(i, *size) for i, size in enumerate(sizes)], pack_cost=64, threads=2)
    assert values(results) == list(range(200))
    assert [r.item.position for r in results] == list(range(200))
    assert max(device.packs) <= 64
    full = sum((h // 16) * (w // 16) for h, w in sizes) / 64
    assert len(device.packs) < 2 * full


def test_an_image_larger_than_a_pack_goes_alone() -> None:
    device = Device()
    assert values(run(device, [shade(1, 64, 64), shade(2), shade(3, 64, 64)], pack_cost=4)) == [1, 2, 3]


def test_what_cannot_be_decoded_fails_alone_and_in_its_place() -> None:
    results = run(Device(), [shade(1), b"", b"no picture", shade(4)])
    assert [type(r.codes) for r in results] == [Codes, InvalidInput, InvalidInput, Codes]


@pytest.mark.parametrize("name", ["cpu", "cuda:0"])
@pytest.mark.parametrize("error", [InvalidInput("bad one"), RuntimeError("kernel"), MemoryError()])
def test_of_a_pack_that_fails_only_the_image_to_blame_does(name: str, error: Exception) -> None:
    device = Device(lambda pack: error if any(p.rows[0, 0] == 13 for p in pack) else None, name)
    results = values(run(device, [shade(i) for i in range(40)], pack_cost=16))
    assert [v for v in results if isinstance(v, int)] == [i for i in range(40) if i != 13]
    assert str(error) in str(results[13])


def test_a_pack_too_large_for_the_memory_is_computed_in_halves() -> None:
    device = Device(lambda pack: MemoryError() if len(pack) > 3 else None)
    assert values(run(device, [shade(i) for i in range(50)], pack_cost=16)) == list(range(50))


@pytest.mark.parametrize("name", ["cpu", "cuda:0"])
def test_a_device_that_computes_nothing_any_more_ends_the_run(name: str) -> None:
    calls = iter(range(10**6))
    device = Device(lambda pack: RuntimeError("gone") if next(calls) >= 3 else None, name)
    with pytest.raises(DeviceLost, match="gone"):
        run(device, [shade(i % 256) for i in range(100)], pack_cost=8)


def test_no_more_is_read_than_there_is_room_for() -> None:
    read, taken, most = 0, 0, 0

    def source() -> Iterator[Item]:
        nonlocal read
        for i in range(2000):
            read += 1
            yield item(i, data)

    data = shade(7, 64, 64)
    with Here([Device()], ImageLimits(), pack_cost=32, threads=2) as here:
        for _ in here.encoded(source()):
            taken += 1
            most = max(most, read - taken)
    assert taken == 2000
    assert most < 64  # 4 packs of 2 that wait, and as many images as are being decoded


def test_fields_are_read_with_the_image_and_those_that_are_not_there_are_left_out() -> None:
    fields = {"txt": lambda: b"here", "json": lambda: None}
    with Here([Device()], ImageLimits()) as here:
        (result,) = here.encoded([Item(0, "a", lambda: shade(1), fields)])
    assert result.fields == {"txt": b"here"}


def test_each_image_is_judged_by_what_its_codes_give_back() -> None:
    given = [shade(value, 1 + value, 9) for value in range(20)]
    striped = io.BytesIO()
    Image.fromarray(np.tile(np.array([[[0] * 3, [200] * 3]], np.uint8), (16, 8, 1))).save(striped, "PNG")
    given[7] = striped.getvalue()
    results = run(Device(), given, min_psnr=48.0, pack_cost=8)  # a shade off is 48.13 dB
    assert [i for i, result in enumerate(results) if isinstance(result.codes, Codes)] == [*range(7), *range(8, 20)]
    assert str(results[7].codes) == "what its codes give back has 5.16 dB, --min-psnr asks for 48"
    refused = run(Device(), given, min_psnr=48.14)
    assert {result.codes.code for result in refused if isinstance(result.codes, ViQError)} == {"low_quality"}
    assert not any(isinstance(result.codes, Codes) for result in refused)
