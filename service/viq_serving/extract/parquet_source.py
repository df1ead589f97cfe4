"""Rows of Parquet files that hold image files, read a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from viq.errors import InvalidInput, ViQError
from viq_serving.extract.errors import PlaceError
from viq_serving.extract.names import shown
from viq_serving.extract.packages import arrow
from viq_serving.extract.places import Place
from viq_serving.extract.sources import Item, Kind, Reading, Wanted, bounded, containers, failing, size_of

_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
_KEY_NAMES = ("key", "__key__", "id")
_ROWS, _ROWS_BYTES = 64, 64 * 2**20  # of a row group decoded at a time; a whole one may hold gigabytes of images
_BUFFER = 2**20

Columns = Any  # a pyarrow schema


class Rows:
    """Parquet files with a column of image files, bytes or the struct of bytes and path that `datasets` writes."""

    kind: Kind = "parquet"

    def __init__(self, addresses: Sequence[str], reading: Reading) -> None:
        self._arrow, self._reading = arrow(), reading
        self._files = list(containers(addresses))
        if not self._files:
            raise PlaceError(f"no file is named by {' '.join(addresses)}")
        *self._before, total = accumulate((size_of(*file) for file in self._files), initial=0.0)
        self.total: float | None = total
        try:
            with _opened(*self._files[0]) as first:
                schema = first.schema_arrow
        except (self._arrow.ArrowException, OSError) as error:
            raise PlaceError(f"{self._files[0][1]}: {error}") from None
        self._image, self._struct = self._image_of(schema)
        key = reading.key_field or next((name for name in _KEY_NAMES if name in schema.names), None)
        self._key = self._known(key, schema)
        taken = [n for n in schema.names if n not in (self._image, self._key)]
        if reading.fields is not None:
            taken = [name for name in reading.fields if self._known(name, schema)]
        self.columns: Columns = self._arrow.schema([schema.field(name) for name in taken])

    def items(self, wanted: Wanted) -> Iterator[Item]:
        """Each row. Files must have the columns of the first one; what cannot be read of one is failed items."""
        position = 0
        for (place, path), before in zip(self._files, self._before, strict=True):
            name, size = shown(path.rpartition("/")[2]), size_of(place, path)
            try:
                with _opened(place, path) as file:
                    missing = {self._image, self._key, *self.columns.names} - {None, *file.schema_arrow.names}
                    if missing:
                        raise PlaceError(f"{path}: lacks the column {', '.join(sorted(map(str, missing)))}")
                    rows = file.metadata.num_rows
                    for item in self._rows(file, name, wanted, position):
                        item.done = before + size * (item.position - position) / rows
                        yield item
                    position += rows
            except (self._arrow.ArrowException, OSError) as error:
                yield Item(position, name, failing(_damage(path, error)))
                position += 1

    def _rows(self, file: Any, name: str, wanted: Wanted, first: int) -> Iterator[Item]:
        begin = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            contents = any(wanted(first + begin + i) for i in range(count))
            row, wrong = 0, None
            try:
                for values in self._values(file, group, contents):
                    yield self._item(first + begin + row, name, begin + row, values)
                    row += 1
            except (self._arrow.ArrowException, OSError) as error:
                wrong = _damage(name, error)
            if wrong is not None:  # every row keeps its place, so that the next run finds it there
                for key in self._keys(file, group, count)[row:]:
                    item = self._item(first + begin + row, name, begin + row, key)
                    item.content = failing(wrong)
                    yield item
                    row += 1
            begin += count

    def _values(self, file: Any, group: int, contents: bool) -> Iterator[dict[str, Any]]:
        names = [*([self._key] if self._key else []), *([self._image, *self.columns.names] if contents else [])]
        if not names:
            yield from ({} for _ in range(file.metadata.row_group(group).num_rows))
            return
        about = file.metadata.row_group(group)
        fit = max(1, min(_ROWS, _ROWS_BYTES * about.num_rows // max(1, about.total_byte_size)))
        for batch in file.iter_batches(fit if contents else 2**14, row_groups=[group], columns=names):
            yield from batch.to_pylist()

    def _keys(self, file: Any, group: int, count: int) -> list[dict[str, Any]]:
        try:
            return list(self._values(file, group, contents=False))
        except (self._arrow.ArrowException, OSError):
            return [{}] * count

    def _item(self, position: int, file: str, row: int, values: dict[str, Any]) -> Item:
        value = values.get(self._key) if self._key else None
        key = f"{file.rpartition('.')[0]}/{row:09d}" if value is None else str(value)
        data = values.get(self._image)
        data = data.get("bytes") if self._struct and data is not None else data
        fields = {name: values[name] for name in self.columns.names if name in values}
        held = len(data or b"") + sum(len(v) for v in fields.values() if isinstance(v, (bytes, str)))
        try:
            if data is None:
                raise InvalidInput(f"column {self._image} of the row is empty")
            whole = bounded(data, self._reading.max_bytes)
        except ViQError as error:
            return Item(position, key, failing(error), fields, held=held)
        return Item(position, key, lambda: whole, fields, held=held)

    def _image_of(self, schema: Any) -> tuple[str, bool]:
        """The column that holds images, and whether that is a struct of bytes and path."""
        types = self._arrow.types

        def binary(kind: Any) -> bool:
            return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))

        fit = {}
        for field in schema:
            if binary(field.type):
                fit[field.name] = False
            elif types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
                fit[field.name] = True
        wanted = self._reading.image_field
        names = [wanted] if wanted else [n for n in _IMAGE_NAMES if n in fit] or (list(fit) if len(fit) == 1 else [])
        if not names or names[0] not in fit:
            what = f"no column {wanted} of image bytes" if wanted else "no column that is plainly of image bytes"
            raise InvalidInput(f"{what}: name it by --image-field; there are {', '.join(schema.names)}")
        return names[0], fit[names[0]]

    def _known(self, name: str | None, schema: Any) -> str | None:
        if name is not None and name not in schema.names:
            raise InvalidInput(f"no column {name}; there are {', '.join(schema.names)}")
        return name


@contextmanager
def _opened(place: Place, path: str) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with place.open(path) as raw, pq.ParquetFile(raw, buffer_size=_BUFFER, pre_buffer=False) as file:
        yield file


def _damage(path: str, error: Exception) -> ViQError:
    """What is wrong with a file's contents; raises `PlaceError` if it is the system that cannot read it now."""
    if isinstance(error, OSError) and error.errno is not None:
        raise PlaceError(f"{path}: {error}") from None
    return InvalidInput(f"Parquet file is damaged: {error}")
