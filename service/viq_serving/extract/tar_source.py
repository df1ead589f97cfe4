"""Samples of tar shards in WebDataset form, read from front to back."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import IO, Any

from viq.errors import InvalidInput, TooLarge, ViQError
from viq_serving.extract.errors import PlaceError
from viq_serving.extract.names import IMAGE_SUFFIXES, sample_of, shown
from viq_serving.extract.sources import Item, Kind, Reading, Wanted, containers, failing, size_of

OWN_FIELDS = ("codes.npy", "codes.json")
"""What codes are written under: members of these names are not taken along."""

_DAMAGED = (tarfile.TarError, EOFError, UnicodeDecodeError, ValueError)
_LONGEST_HEADER, _LONGEST_MEMBER = 2**20, 2**42  # no file is longer, and no place in one is further
_READ_WHOLE = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, *(b"L", b"K"))  # long names and the like


class _Header(tarfile.TarInfo):
    """A header that tells the archive why it was none: `tarfile` takes a damaged header for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        limit = _LONGEST_HEADER if header.type in _READ_WHOLE else _LONGEST_MEMBER
        if not 0 <= header.size <= limit:
            wrong = f"a header says {header.size} bytes, the limit is {limit}"
            raise tarfile.InvalidHeaderError(wrong)  # type: ignore[attr-defined]
        return header

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            archive.ended = error  # type: ignore[attr-defined]
            raise


class Tars:
    """Tar shards. The key is the sample's own; all its members but the image are its fields."""

    kind: Kind = "tar"

    def __init__(self, addresses: Sequence[str], reading: Reading) -> None:
        self._files, self._reading = list(containers(addresses)), reading
        if not self._files:
            raise PlaceError(f"no file is named by {' '.join(addresses)}")
        *self._before, total = accumulate((size_of(*file) for file in self._files), initial=0.0)
        self.total: float | None = total

    def items(self, wanted: Wanted) -> Iterator[Item]:
        """Each sample; a shard that is damaged ends there, with one failed item that says so."""
        position = 0
        for (place, path), before in zip(self._files, self._before, strict=True):
            try:
                with place.open(path) as file:
                    for item in self._samples(file, path, wanted, position):
                        item.position, item.done = position, before + item.done
                        yield item
                        position += 1
            except OSError as error:
                raise PlaceError(f"{path}: {error.strerror or error}") from None

    def _samples(self, file: IO[bytes], path: str, wanted: Wanted, position: int) -> Iterator[Item]:
        sample: _Sample | None = None
        ended: BaseException | None = None
        try:
            mode = "r|gz" if path.endswith(("gz", "tgz")) else "r:"
            with tarfile.open(fileobj=file, mode=mode, tarinfo=_Header) as archive:  # type: ignore[call-overload]
                for member in archive:
                    archive.members = []  # it would keep every header
                    named = sample_of(member.name) if member.isfile() else None
                    if named is None:
                        continue
                    key, field = named
                    if sample is not None and (sample.key != key or field in sample.parts):
                        yield sample.item()
                        position, sample = position + 1, None
                    sample = sample or _Sample(key, member.offset, self._reading)
                    sample.add(field, member, archive if wanted(position) else None)
                ended = getattr(archive, "ended", None)
        except _DAMAGED as error:
            # Whether it is read or only passed over, it ends within the same sample.
            ended, sample = error, None
        if sample is not None:
            yield sample.item()
        if type(ended).__name__ != "EOFHeaderError":  # the mark that ends an archive
            reason = f"tar shard is damaged, what follows in it is lost ({ended or 'it ends without its end mark'})"
            yield Item(0, shown(path.rpartition("/")[2]), failing(InvalidInput(reason)))


class _Sample:
    """Members of one key that follow one another."""

    def __init__(self, key: str, offset: int, reading: Reading) -> None:
        self.key, self.parts = key, dict[str, bytes]()
        self._offset, self._reading = offset, reading
        self._wrong: ViQError | None = None

    def add(self, field: str, member: tarfile.TarInfo, archive: tarfile.TarFile | None) -> None:
        """Take a member, read from `archive` if that is given and it is of use."""
        self.parts[field] = b""
        if archive is None or not (_is_image(field) or field == self._reading.image_field or self._takes(field)):
            return
        if member.size > self._reading.max_bytes:
            most = self._reading.max_bytes
            self._wrong = TooLarge(f"{field} of the sample is {member.size} bytes, the limit is {most}")
            return
        opened = archive.extractfile(member)
        self.parts[field] = b"" if opened is None else opened.read()
        if len(self.parts[field]) != member.size:
            raise tarfile.ReadError(f"unexpected end of data in {member.name}")

    def item(self) -> Item:
        """The sample as an item; its image is the one field that is an image, or the one asked for."""
        images = [name for name in self.parts if _is_image(name)]
        chosen = self._reading.image_field or (images[0] if len(images) == 1 else "")
        wrong = self._wrong
        if wrong is None and chosen not in self.parts:
            has = ", ".join(self.parts)
            what = f"no {chosen}" if chosen else "several images: name one by --image-field" if images else "no image"
            wrong = InvalidInput(f"sample holds {what} (it has {has})")
        data = self.parts.get(chosen, b"")
        fields: dict[str, Any] = {name: part for name, part in self.parts.items() if self._along(name, chosen)}
        held = len(data) + sum(len(value) for value in fields.values())
        content: Callable[[], bytes] = failing(wrong) if wrong is not None else lambda: data
        return Item(0, shown(self.key), content, fields, float(self._offset), held)

    def _along(self, field: str, chosen: str) -> bool:
        return field != chosen and self._takes(field)

    def _takes(self, field: str) -> bool:
        chosen = self._reading.fields
        if chosen is None:
            return field not in OWN_FIELDS and not _is_image(field)
        return field in chosen


def _is_image(field: str) -> bool:
    return field.rpartition(".")[2] in IMAGE_SUFFIXES
