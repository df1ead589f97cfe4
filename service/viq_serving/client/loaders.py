"""Codes for training loops. The only module of the client that imports torch.

From shards that `viq extract` wrote, and features made of them inside the training step:

    from torch.utils.data import DataLoader
    from viq import Embedder
    from viq_serving.client.loaders import ShardDataset, packed

    embedder = Embedder.from_pretrained()  # (root, "16k", device="cuda")
    loader = DataLoader(ShardDataset("extracted"), batch_size=64, shuffle=True, num_workers=0, collate_fn=packed)
    for batch in loader:
        features = embedder(batch["codes"])  # (N, C), images one after another: see batch["cu_seqlens"]

From images, by a service:

    from pathlib import Path

    from torch.utils.data import DataLoader
    from viq_serving.client.loaders import ServiceDataset, packed

    def pairs():
        return ((path.name, path) for path in sorted(Path("photos").iterdir()))

    dataset = ServiceDataset(pairs, "viq.example:8001", errors="skip")
    for batch in DataLoader(dataset, batch_size=64, collate_fn=packed):
        print(batch["keys"], batch["codes"].shape)

Workers are to be started with `num_workers=4, multiprocessing_context="forkserver"` (or "spawn", where there is no
forkserver), in a script whose own work stands below `if __name__ == "__main__":`. A worker that is forked out of the
training process, which is the default of Linux before Python 3.14, inherits the locks of gRPC's, pyarrow's and torch's
threads but not the threads, and may hang or crash; Python, gRPC and PyTorch all warn of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from viq.codes import Codes
from viq.errors import InvalidInput, ViQError
from viq_serving.client.client import Client
from viq_serving.client.codes_folder import CodesFolder
from viq_serving.client.http import Picture
from viq_serving.client.shards import Row

Pair = tuple[Any, Codes | ViQError]


class ShardDataset(Dataset[Row]):
    """All images of a folder that `viq extract` has finished, by number; see `CodesFolder`."""

    def __init__(self, folder: str | os.PathLike[str], shards: Sequence[str] | None = None) -> None:
        """`shards` are names of shards in `folder`; default: all."""
        self.codes = CodesFolder(folder, shards)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> Row:
        row: Row = self.codes[index]
        return row


class ServiceDataset(IterableDataset[Pair]):
    """Any stream of (key, image) as (key, codes) through a service, many on their way at a time.

    `pairs` is called anew for each pass and gives all pairs; of those each worker of each rank takes its share, so that
    each image is taken once. A source that can skip cheaply should do the sharing itself: `share=False`. Ranks may get
    one image more than others, and fewer where `errors="skip"` left some out: what trains in step must allow for that.
    """

    def __init__(
        self,
        pairs: Callable[[], Iterable[tuple[Any, Picture]]],
        server: str | Sequence[str],
        *,
        errors: Literal["yield", "skip", "raise"] = "raise",
        rank: int | None = None,
        world_size: int | None = None,
        share: bool = True,
        size: str | None = None,
        exif: bool = True,
        alpha: str = "white",
        **client: Any,
    ) -> None:
        """`errors`: what becomes of an image that cannot be encoded. `rank` of `world_size` is by default that of
        `torch.distributed`, where that is in use. `client` is passed on to `Client`."""
        if errors not in ("yield", "skip", "raise"):
            raise InvalidInput(f"errors={errors!r}; there are yield, skip and raise")
        if (rank is None) != (world_size is None) or (rank is not None and not 0 <= rank < (world_size or 0)):
            raise InvalidInput(f"rank {rank} of {world_size}: give both, rank below world_size")
        self._pairs, self._server, self._client = pairs, server, client
        self._errors, self._share = errors, share
        self._rank, self._world_size = rank, world_size
        self._options = {"size": size, "exif": exif, "alpha": alpha}

    def __getstate__(self) -> dict[str, Any]:
        """A worker that is not forked knows of no `torch.distributed`: this rank's place goes with the dataset."""
        rank, world_size = self._place()
        return {**self.__dict__, "_rank": rank, "_world_size": world_size}

    def __iter__(self) -> Iterator[Pair]:
        pairs = iter(self._pairs())
        if self._share:
            rank, world_size = self._place()
            worker = get_worker_info()
            pairs = islice(pairs, rank, None, world_size)
            if worker is not None:
                pairs = islice(pairs, worker.id, None, worker.num_workers)
        with Client(self._server, **self._client) as client:  # made here: a client does not survive a fork
            options: Mapping[str, Any] = self._options
            for key, result in client.encode_each(pairs, **options):
                if isinstance(result, ViQError):
                    if self._errors == "raise":
                        raise type(result)(f"{key}: {result}") if type(result) in _PLAIN else result
                    if self._errors == "skip":
                        continue
                yield key, result

    def _place(self) -> tuple[int, int]:
        """This rank, and how many there are."""
        rank, world_size = self._rank, self._world_size
        if rank is None or world_size is None:
            used = torch.distributed.is_available() and torch.distributed.is_initialized()
            rank = torch.distributed.get_rank() if used else 0
            world_size = torch.distributed.get_world_size() if used else 1
        return rank, world_size


_PLAIN = (InvalidInput,)


def packed(rows: Sequence[Row | Pair]) -> dict[str, Any]:
    """A batch with its images one after another, as `viq.Embedder` takes it; a `collate_fn`.

    `codes` int32 `(N, 4)`, `cu_seqlens` int32 `(images+1,)` in patches, `grid_hw` and `image_hw` int32 `(images, 2)`,
    `keys`, `fields`, a mapping of each image's, and `errors`, pairs of key and error of what has no codes. If nothing
    has any, the batch is one of no images, `N` is 0.
    """
    given = [(row.key, row.codes, row.fields) if isinstance(row, Row) else (*row, {}) for row in rows]
    pairs = [(key, one, fields) for key, one, fields in given if isinstance(one, Codes)]
    arrays = [np.zeros((0, 4), np.int32), *(one.array.reshape(-1, 4).astype(np.int32) for _, one, _ in pairs)]
    grids = np.array([one.grid for _, one, _ in pairs], np.int32).reshape(-1, 2)
    sizes = np.array([one.image_size for _, one, _ in pairs], np.int32).reshape(-1, 2)
    return {
        "codes": torch.from_numpy(np.concatenate(arrays)),
        "cu_seqlens": _ends(grids),
        "grid_hw": torch.from_numpy(grids),
        "image_hw": torch.from_numpy(sizes),
        "keys": [key for key, _, _ in pairs],
        "fields": [fields for _, _, fields in pairs],
        "errors": [(key, one) for key, one, _ in given if not isinstance(one, Codes)],
    }


def _ends(grids: np.ndarray[Any, Any]) -> Tensor:
    ends = np.zeros(len(grids) + 1, np.int32)
    np.cumsum(grids.prod(axis=1), out=ends[1:])
    return torch.from_numpy(ends)
