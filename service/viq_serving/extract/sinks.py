"""One shard of codes, written in order: a WebDataset tar, or a Parquet file."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, Protocol, TypeAlias

import numpy as np

from viq.codes import Codes
from viq.errors import InvalidInput
from viq_serving.extract.errors import PlaceError
from viq_serving.extract.names import member_field, member_key
from viq_serving.extract.packages import arrow

Format: TypeAlias = Literal["webdataset", "parquet"]
SUFFIX: Mapping[Format, str] = {"webdataset": "tar", "parquet": "parquet"}

OWN_COLUMNS = ("key", "codes", "grid", "image_size", "size", "fingerprint")
_OWN_MEMBERS, _JSON = ("codes.npy", "codes.json"), "json"
_FROM_SOURCE = "source_"
"""What stands before the name of a field that would otherwise have one of ours."""

_FIELDS = "fields"
_GROUP_ROWS, _GROUP_CODES = 1000, 2**18  # a row group is what must be read for one row of it
_GROUP_FIELDS_BYTES = 64 * 2**20  # it is held until it is written


class Sink(Protocol):
    """A shard that is being written. Equal items in equal order make equal bytes."""

    def add(self, key: str, codes: Codes, fields: Mapping[str, Any]) -> None:
        """Write the codes of one image, and what travels along."""

    def close(self) -> None:
        """Finish the file."""


class TarSink:
    """WebDataset: `KEY.codes.npy` uint16 `(h, w, 4)`, `KEY.codes.json`, and a member for each field."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115  # closed in close
        self._keys: dict[str, int] = {}

    def add(self, key: str, codes: Codes, fields: Mapping[str, Any]) -> None:
        """Write one sample. A key that the shard has already is told apart by ~2, ~3 … in the names."""
        name = member_key(key)
        count = self._keys[name] = self._keys.get(name, 0) + 1
        name = name if count == 1 else f"{name}~{count}"
        about = {
            "key": key,
            "grid": codes.grid,
            "image_size": codes.image_size,
            "size": codes.size,
            "fingerprint": codes.fingerprint,
        }
        self._put(f"{name}.codes.npy", npy(codes))
        self._put(f"{name}.codes.json", json.dumps(about).encode())
        plain = {field: value for field, value in fields.items() if not isinstance(value, bytes)}
        own = (*_OWN_MEMBERS, _JSON) if plain else _OWN_MEMBERS
        for field, value in fields.items():
            if isinstance(value, bytes):
                self._put(f"{name}.{_FROM_SOURCE if field in own else ''}{member_field(field)}", value)
        if plain:  # columns of a Parquet file
            self._put(f"{name}.{_JSON}", json.dumps(plain, default=str).encode())
        self._tar.members = []  # type: ignore[attr-defined]  # it would keep every header

    def close(self) -> None:
        """Finish the file."""
        try:
            self._tar.close()
        finally:
            self._file.close()

    def _put(self, name: str, data: bytes) -> None:
        header = tarfile.TarInfo(name)
        header.size, header.mode = len(data), 0o644
        self._tar.addfile(header, io.BytesIO(data))


class ParquetSink:
    """Parquet: a row an image, `codes` a list of uint16, `grid` and `image_size` lists of two."""

    def __init__(self, path: Path, columns: Any) -> None:
        """`columns` is the schema of the fields; None: they are all bytes, in one column of a map.

        A column of a name that is ours is written as `source_` and its name. Raises `InvalidInput` if that is taken.
        """
        pa = self._arrow = arrow()
        self._names = {} if columns is None else _named(columns.names)
        fields = pa.schema([(_FIELDS, pa.map_(pa.string(), pa.binary()))])
        if columns is not None:
            fields = pa.schema([one.with_name(self._names[one.name]) for one in columns])
        own = [
            ("key", pa.string()),
            ("codes", pa.list_(pa.uint16())),
            ("grid", pa.list_(pa.int32(), 2)),
            ("image_size", pa.list_(pa.int32(), 2)),
            ("size", pa.string()),
            ("fingerprint", pa.string()),
        ]
        self._mapped = columns is None
        self._schema = pa.schema([*(pa.field(*one) for one in own), *fields])
        self._file: IO[bytes] = path.open("wb")
        self._writer = pa.parquet.ParquetWriter(self._file, self._schema, compression="zstd", write_page_checksum=True)
        self._rows: dict[str, list[Any]] = {name: [] for name in self._schema.names}
        self._codes = self._field_bytes = 0

    def add(self, key: str, codes: Codes, fields: Mapping[str, Any]) -> None:
        """Write one row."""
        row: dict[str, Any] = {
            "key": key,
            "codes": codes.flat,
            "grid": codes.grid,
            "image_size": codes.image_size,
            "size": codes.size,
            "fingerprint": codes.fingerprint,
        }
        row |= {_FIELDS: list(fields.items())} if self._mapped else {self._names[n]: v for n, v in fields.items()}
        for name, column in self._rows.items():
            column.append(row.get(name))
        self._codes += codes.array.size
        self._field_bytes += sum(len(value) for value in fields.values() if isinstance(value, (bytes, str)))
        full = self._codes >= _GROUP_CODES or self._field_bytes >= _GROUP_FIELDS_BYTES
        if full or len(self._rows["key"]) >= _GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        """Finish the file."""
        try:
            if self._rows["key"]:
                self._flush()
            self._writer.close()
        finally:
            self._writer.is_open = False  # or it would try again when it is collected
            self._file.close()

    def _flush(self) -> None:
        try:
            table = self._arrow.table(self._rows, schema=self._schema)
        except self._arrow.ArrowException as error:
            raise PlaceError(
                f"a column is not of the type that it has in the first file of the source: {error}"
            ) from None
        self._writer.write_table(table)
        self._rows, self._codes, self._field_bytes = {name: [] for name in self._rows}, 0, 0


def _named(columns: Sequence[str]) -> dict[str, str]:
    named = {name: f"{_FROM_SOURCE}{name}" if name in OWN_COLUMNS else name for name in columns}
    if len(set(named.values())) < len(columns):
        raise InvalidInput(
            f"columns {', '.join(columns)} cannot be written beside {', '.join(OWN_COLUMNS)}: see --fields"
        )
    return named


def npy(codes: Codes) -> bytes:
    """The codes as a .npy file of little-endian uint16 `(h, w, 4)`."""
    file = io.BytesIO()
    np.lib.format.write_array(file, codes.array.astype("<u2", copy=False), (1, 0), allow_pickle=False)
    return file.getvalue()


def sink_of(format: Format, path: Path, columns: Any) -> Sink:
    """A new shard at `path`."""
    return TarSink(path) if format == "webdataset" else ParquetSink(path, columns)
