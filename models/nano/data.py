"""Prepares the pictures: `python -m nano.data`. What is there already is kept, so it can be run again at any time."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from nano.documents import document
from nano.drawing import Fonts
from nano.held_documents import HELD_DOCUMENTS, held_document
from nano.packages import Packages, Unavailable, files
from nano.photographs import LONGEST, at_most, read_photograph, scales
from nano.sources import FONTS, Source, read_sources

TRAINING, HELD_OUT = "train", "held-out"
_DOCUMENTS = 260


def prepare(folder: Path, documents: int = _DOCUMENTS) -> None:
    """Fill `folder/train` and `folder/held-out` with PNG files, and say in `prepared.json` what could not be had."""
    packages = Packages(folder / "packages")
    missing: dict[str, str] = {}
    for part in (TRAINING, HELD_OUT):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for source in tqdm(read_sources(), desc="photographs"):
        try:
            _photograph(source, packages, folder)
        except (Unavailable, FileNotFoundError) as error:  # the latter: another version of a package may lack a file
            missing[source.name] = str(error)
    fonts = {use: _fonts(packages, use, missing) for use in (TRAINING, HELD_OUT)}
    for seed in tqdm(range(documents), desc="documents"):
        path = folder / TRAINING / f"document-{seed:04}.png"
        if not path.exists():
            _save(document(seed, fonts[TRAINING]), path)
    for name in HELD_DOCUMENTS:
        path = folder / HELD_OUT / f"document-{name}.png"
        if not path.exists():
            _save(held_document(name, fonts[HELD_OUT]), path)
    report = {"documents": documents, "missing": missing}
    (folder / "prepared.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, why in missing.items():
        print(f"left out {name}: {why}")


def _photograph(source: Source, packages: Packages, folder: Path) -> None:
    """A held-out photograph once, a training one at several scales."""
    first = folder / source.use / f"{source.name}{'-0' * (source.use == TRAINING)}.png"
    if first.exists():
        return
    image = read_photograph(packages.folder_of(source.package, source.origin) / source.path)
    if source.use == HELD_OUT:
        _save(at_most(image, LONGEST), first)
        return
    for i, scaled in reversed(list(enumerate(scales(image)))):  # the first last: it says that all are there
        _save(scaled, folder / TRAINING / f"{source.name}-{i}.png")


def _fonts(packages: Packages, use: str, missing: dict[str, str]) -> Fonts:
    found: list[Path] = []
    for package in (name for name, for_ in FONTS.items() if for_ == use):
        try:
            found += _upright(files(packages.folder_of(package, "debian/bookworm"), (".ttf", ".otf")))
        except Unavailable as error:
            missing[package] = str(error)
    return Fonts(found)


def _upright(paths: Iterable[Path]) -> list[Path]:
    """Faces that books and screens are set in: no weights in between, which would crowd out other families."""
    odd = ("Light", "Thin", "Hairline", "Black", "Heavy", "Semi", "Medium", "Extra", "Cond", "08", "SC", "Math")
    return [path for path in paths if not any(word in path.stem for word in odd)]


def _save(image: Image.Image, path: Path) -> None:
    partial = path.with_suffix(".partial")
    image.save(partial, format="PNG", compress_level=1)
    partial.replace(path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("build/nano/data"), help="folder to fill")
    parser.add_argument("--documents", type=int, default=_DOCUMENTS, help="training pages to draw")
    arguments = parser.parse_args()
    prepare(arguments.data, arguments.documents)


if __name__ == "__main__":
    main()
