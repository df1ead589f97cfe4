"""Shards of codes as `viq extract` writes them, one image at a time in any order. No torch."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from viq.codes import Codes
from viq.errors import InvalidInput

_NPY, _JSON = "codes.npy", "codes.json"
_OWN_COLUMNS = frozenset(("key", "codes", "grid", "image_size", "size", "fingerprint"))
_BLOCK = tarfile.BLOCKSIZE
_PLAIN_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '<u2', 'fortran_order': False, 'shape': \((\d+), (\d+), (4)\), \} *\n", re.DOTALL
)
_GROUPS = 4


@dataclass(frozen=True)
class Row:
    """One image of a shard: its key in the source, its codes, and what travelled along."""

    key: str
    codes: Codes
    fields: Mapping[str, Any] = field(default_factory=dict)


class Shard(Protocol):
    """A file of codes; use it in a `with` block."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Row: ...
    def __enter__(self) -> Shard: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Closing:
    """Closes its file at the end of a `with` block."""

    _file: IO[bytes]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class TarShard(_Closing):
    """A WebDataset tar of codes. Where each sample begins is looked up once: 8 bytes an image are kept."""

    def __init__(self, file: IO[bytes], name: str = "shard", begins: array[int] | None = None) -> None:
        """`begins` is what an earlier look found. Raises `InvalidInput` if `file` is no tar."""
        self._file, self._name = file, name
        self.begins = array("q") if begins is None else begins
        if begins is None:
            self._look()

    def _look(self) -> None:
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as archive:
                for member in archive:
                    archive.members = []  # type: ignore[attr-defined]  # it would keep every header
                    if _field(member.name) == _NPY:
                        self.begins.append(member.offset)
                self.begins.append(archive.offset)
        except tarfile.TarError as error:
            raise InvalidInput(f"{self._name} is no readable tar: {error}") from None

    def __enter__(self) -> TarShard:
        return self

    def __len__(self) -> int:
        return len(self.begins) - 1

    def __getitem__(self, index: int) -> Row:
        at = checked(index, len(self))
        begin, end = self.begins[at], self.begins[at + 1]
        self._file.seek(begin)
        parts = _members(self._file.read(end - begin))
        try:
            about = json.loads(parts.pop(_JSON))
            codes = _array(parts.pop(_NPY))
            made = Codes(codes, tuple(about["image_size"]), about["size"], about["fingerprint"])
        except (KeyError, ValueError, TypeError) as error:
            raise InvalidInput(f"{self._name}: sample {index} is none of viq extract: {error}") from None
        return Row(about["key"], made, parts)


class ParquetShard(_Closing):
    """A Parquet file of codes. The row groups read last are kept.

    No thread but the caller's reads: the pool that pyarrow has otherwise does not survive a fork in all cases.
    """

    def __init__(self, file: IO[bytes], name: str = "shard") -> None:
        """Raises `InvalidInput` if `file` is no Parquet file, `ImportError` without pyarrow."""
        import pyarrow
        import pyarrow.parquet as pq

        self._file, self._name = file, name
        try:
            self._parquet = pq.ParquetFile(file, pre_buffer=False, page_checksum_verification=True)
        except pyarrow.ArrowException as error:
            raise InvalidInput(f"{name} is no readable Parquet file: {error}") from None
        # Fields of what had no columns of its own are in one; a column of a source may be called so, too.
        schema = self._parquet.schema_arrow
        self._mapped = {*schema.names} - _OWN_COLUMNS == {"fields"} and pyarrow.types.is_map(
            schema.field("fields").type
        )
        metadata = self._parquet.metadata
        self._ends = list(accumulate(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)))
        self._groups: OrderedDict[int, Any] = OrderedDict()

    def __enter__(self) -> ParquetShard:
        return self

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Row:
        row = checked(index, len(self))
        group = bisect_right(self._ends, row)
        table, at = self._group(group), row - (self._ends[group - 1] if group else 0)
        try:
            flat = table["codes"][at].values.to_numpy()
            one = {name: table[name][at].as_py() for name in table.column_names if name != "codes"}
            codes = Codes.from_flat(flat, one["grid"], one["size"], one["image_size"], one["fingerprint"])
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise InvalidInput(f"{self._name}: row {index} is none of viq extract: {error}") from None
        fields = {name: value for name, value in one.items() if name not in _OWN_COLUMNS}
        if self._mapped:
            fields = dict(fields.pop("fields") or ())
        return Row(one["key"], codes, fields)

    def _group(self, group: int) -> Any:
        import pyarrow

        if group not in self._groups:
            try:
                self._groups[group] = self._parquet.read_row_group(group, use_threads=False)
            except (pyarrow.ArrowException, OSError) as error:
                raise InvalidInput(f"{self._name}: row group {group} cannot be read: {error}") from None
            if len(self._groups) > _GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(group)
        return self._groups[group]


def open_shard(file: IO[bytes] | str | os.PathLike[str], name: str = "") -> Shard:
    """A shard by its file or path; `name`, or the path, ends in `.parquet` or `.tar`."""
    if isinstance(file, (str, os.PathLike)):
        name, file = name or str(file), Path(file).open("rb")  # noqa: SIM115  # the shard closes it
    try:
        return ParquetShard(file, name) if name.endswith(".parquet") else TarShard(file, name)
    except BaseException:
        file.close()
        raise


def _members(data: bytes) -> dict[str, bytes]:
    """The members of one sample, by what follows the first dot of their names."""
    parts, at = dict[str, bytes](), 0
    while at + _BLOCK <= len(data):
        header = tarfile.TarInfo.frombuf(data[at : at + _BLOCK], "utf-8", "surrogateescape")
        if header.type != tarfile.REGTYPE:  # a name that needs more than a header: by the whole machinery
            return _members_by_tarfile(data)
        begin = at + _BLOCK
        parts[_field(header.name)] = data[begin : begin + header.size]
        at = begin + -(-header.size // _BLOCK) * _BLOCK
    return parts


def _members_by_tarfile(data: bytes) -> dict[str, bytes]:
    parts: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for member in archive:
            opened = archive.extractfile(member)
            parts[_field(member.name)] = b"" if opened is None else opened.read()
    return parts


def _array(data: bytes) -> npt.NDArray[np.uint16]:
    """A .npy file; to parse its header as Python takes longer than all else, so what is always written goes first."""
    begin = 10 + int.from_bytes(data[8:10], "little")
    plain = _PLAIN_HEADER.fullmatch(data[:begin])
    if plain is not None:
        return np.frombuffer(data, "<u2", offset=begin).reshape([int(side) for side in plain.groups()])
    array: npt.NDArray[np.uint16] = np.load(io.BytesIO(data), allow_pickle=False)
    return array


def _field(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2]


def checked(index: int, length: int) -> int:
    """`index` from the front; raises `IndexError` if there is no such."""
    if not -length <= index < length:
        raise IndexError(f"image {index} of {length}")
    return index % length
