"""The table of pictures: where each comes from, whose it is, under which licence, and what it may be used for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

TRAINABLE = frozenset({"CC0-1.0", "public domain", "CC-BY-2.0", "CC-BY-4.0"})
"""Licences whose pictures may train weights that ship under Apache-2.0: no share-alike, nothing of the GNU family."""

FONTS = {
    "fonts-dejavu-core": "train",
    "fonts-hack": "train",
    "fonts-liberation2": "train",
    "fonts-open-sans": "train",
    "fonts-lato": "held-out",
    "fonts-ebgaramond": "held-out",
}
"""Debian packages of fonts (bookworm) that pages are set in, and whether those are trained on."""


@dataclass(frozen=True)
class Source:
    """One picture: `path` inside `package`, which is of `origin` (`debian/<suite>` or `wheel`)."""

    package: str
    origin: str
    path: str
    title: str
    author: str
    licence: str
    use: str

    @property
    def name(self) -> str:
        """File name without its ending, unique in the table."""
        return PurePosixPath(self.path).stem


class Forbidden(ValueError):
    """A picture is used for what it must not be used for."""


def read_sources(path: Path = Path(__file__).with_name("sources.json")) -> list[Source]:
    """The committed table, checked by `check`."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    sources = [Source(**{("origin" if key == "from" else key): value for key, value in row.items()}) for row in rows]
    check(sources)
    return sources


def check(sources: Sequence[Source]) -> None:
    """Raise `Forbidden` for a training picture without a licence that allows it, or a name that comes twice."""
    names: set[str] = set()
    for source in sources:
        if source.use not in ("train", "held-out"):
            raise Forbidden(f"{source.name}: use {source.use!r}; there are train and held-out")
        if source.use == "train" and source.licence not in TRAINABLE:
            raise Forbidden(f"{source.name}: licence {source.licence} does not allow training")
        if source.name in names:
            raise Forbidden(f"{source.name}: twice in the table, so it could be trained on and held out")
        names.add(source.name)
