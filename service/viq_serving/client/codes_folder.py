"""A folder of shards of codes as one sequence: `CodesFolder("extracted")[17].codes`. No torch."""

from __future__ import annotations

import json
import os
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from viq.errors import InvalidInput
from viq_serving.client.shards import Row, Shard, TarShard, checked, open_shard

_OPEN_SHARDS = 16


class CodesFolder(Sequence[Row]):
    """All images of a folder that `viq extract` has finished, or of some shards, as one sequence.

    The folder is on this machine's disk, or anywhere that fsspec reaches (`s3://…`; slow in random order).
    It can be handed to other processes, and to a `torch.utils.data.DataLoader` as it is. Reading in random order is
    for tar shards; of Parquet shards whole row groups are read, so read those in order or in blocks. Nothing is open
    before the first image is asked for; a process that was forked opens everything anew.
    """

    def __init__(self, folder: str | os.PathLike[str], shards: Sequence[str] | None = None) -> None:
        """`shards` are names in `folder`; default: those of its manifest.

        Raises `InvalidInput` if there is no manifest, that is if the extraction is not finished.
        """
        self.folder: Path | str = str(folder) if "://" in str(folder) else Path(folder)
        self.manifest: Mapping[str, Any] = {}
        if shards is None:
            try:
                with self._file("manifest.json") as file:
                    self.manifest = json.load(file)
                counts = {str(row["shard"]): int(row["images"]) for row in self.manifest["shard_list"]}
            except FileNotFoundError:
                raise InvalidInput(f"{folder} has no manifest.json: its extraction is not finished") from None
            except (ValueError, KeyError, TypeError) as error:
                raise InvalidInput(f"{folder}/manifest.json is none of viq extract: {error}") from None
        else:
            counts = {name: self._length(name) for name in shards}
        self.shards = list(counts)
        self._ends = list(accumulate(counts.values()))
        self._opened: OrderedDict[str, Shard] = OrderedDict()
        self._begins: dict[str, array[int]] = {}
        self._process = os.getpid()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = checked(index, len(self))
        shard = bisect_right(self._ends, at)
        return self._shard(self.shards[shard])[at - (self._ends[shard - 1] if shard else 0)]

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(len(self)))

    def close(self) -> None:
        """Close the files that are open."""
        while self._opened:
            self._opened.popitem()[1].__exit__(None, None, None)

    def __enter__(self) -> CodesFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:  # a data loader drops its dataset without a word
        if hasattr(self, "_opened"):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": OrderedDict()}  # files stay behind

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _process=os.getpid())

    def _length(self, name: str) -> int:
        with open_shard(self._file(name), name) as shard:
            return len(shard)

    def _file(self, name: str) -> IO[bytes]:
        if isinstance(self.folder, Path):
            return (self.folder / name).open("rb")
        try:
            import fsspec
        except ImportError:
            raise InvalidInput(f"{self.folder}: this needs fsspec: pip install 'viq-serving[extract]'") from None
        system, path = fsspec.core.url_to_fs(self.folder)
        opened: IO[bytes] = system.open(f"{path.rstrip('/')}/{name}", "rb")
        return opened

    def _shard(self, name: str) -> Shard:
        if self._process != os.getpid():  # a forked worker must not share the place in a file with its parent
            self._process = os.getpid()
            self.close()
        if name not in self._opened:
            self._opened[name] = self._open(name)
            if len(self._opened) > _OPEN_SHARDS:
                self._opened.popitem(last=False)[1].__exit__(None, None, None)
        self._opened.move_to_end(name)
        return self._opened[name]

    def _open(self, name: str) -> Shard:
        file = self._file(name)
        if name.endswith(".parquet"):
            return open_shard(file, f"{self.folder}/{name}")
        try:
            shard = TarShard(file, name, self._begins.get(name))
        except BaseException:
            file.close()
            raise
        self._begins[name] = shard.begins
        return shard
