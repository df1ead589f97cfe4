"""Pictures in folders, tar shards and Parquet files, the smallest real model, and a run of it."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_iterator

from viq import ViQ
from viq_serving.cli.main import main
from viq_serving.extract.extraction import Extraction
from viq_serving.extract.here import Here
from viq_serving.extract.output import Output, Run
from viq_serving.extract.sources import Reading, source_of
from viq_serving.images import ImageLimits

LIMITS = ImageLimits()


def png(seed: int, height: int = 20, width: int = 35) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIQ_WEIGHTS_ROOT", raising=False)


@pytest.fixture(scope="session")
def model() -> ViQ:
    return ViQ.from_pretrained()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """23 pictures of several sizes in three folders, of which two cannot be decoded, and what is no picture."""
    root = tmp_path / "photos"
    for i in range(23):
        path = root / f"d{i % 3}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"broken" if i in (4, 17) else png(i, 1 + 7 * i % 50, 1 + 11 * i % 60))
    (root / "d0" / "000.txt").write_text("the first")
    (root / "d1" / ".hidden.png").write_bytes(png(0))
    (root / "readme.md").write_text("no picture")
    return root


@pytest.fixture
def viq(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in this process; gives its exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return run


Extract = Callable[..., dict[str, Any] | None]


@pytest.fixture
def extract(model: ViQ) -> Extract:
    """Extracts in this process with the model that is loaded; gives the manifest."""

    def run(
        source: object,
        out: object,
        *,
        fingerprint: str | None = None,
        part: tuple[int, int] = (0, 1),
        reading: Mapping[str, Any] = {},
        **options: Any,
    ) -> dict[str, Any] | None:
        defaults: dict[str, Any] = {
            "format": "webdataset", "shard_items": 10, "exif": True, "alpha": "white", "fields": reading.get("fields"),
            "image_field": None, "key_field": None, "max_bytes": LIMITS.max_bytes, "max_pixels": LIMITS.max_pixels,
            "max_patches": LIMITS.max_patches,
        }  # fmt: skip
        wanted = Run(fingerprint or model.fingerprint, model.size, **{**defaults, **options})
        output, given = Output(str(out)), source_of([str(source)], Reading(**reading))
        with output.opened(), Here([model], LIMITS) as here:
            return Extraction(given, output, output.begin(wanted), part=part[0], parts=part[1]).run(here)

    return run


def files(folder: Path) -> dict[str, bytes]:
    """What a finished output holds."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


@pytest.fixture
def samples() -> Callable[..., list[dict[str, Any]]]:
    """What the webdataset package makes of tar shards."""

    def read(*paths: Path) -> list[dict[str, Any]]:
        found = []
        for path in paths:
            with path.open("rb") as file:  # the package itself leaves files open
                found += list(group_by_keys({**member, "__url__": str(path)} for member in tar_file_iterator(file)))
        return found

    return read
