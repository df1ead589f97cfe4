"""CUDA graphs of the encoder for packs so small that launching 580 kernels takes longer than running them.

A graph is recorded for a number of rows and replayed for every pack that fits: its inputs are copied into buffers that
the graph reads, the rest of its rows being one more sequence, and the rest of its sequences empty. The kernels are
those of the eager network for as many rows, so the bits are, too. Opt-in: none of this has been run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from viq.errors import InvalidInput
from viq.packing import Ends, Packing

if TYPE_CHECKING:
    from viq.encoder import Encoder

BUDGETS = (256, 384, 512, 768, 1024, 1536, 2048)
"""Rows that graphs are recorded for. Above, the device is busy long enough to hide the launches."""

SLOTS = 64
"""Images that a graph has room for; packs of more are computed eagerly."""

_WARM = 2  # runs before recording, in which libraries set up what must not be set up within

Recorder = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
"""Records what a function does to fixed buffers: gives what repeats it, and the buffer that then holds the result."""


def check_experiments(
    device: torch.device,
    dtype: torch.dtype,
    head: str,
    parts: Collection[str],
    cuda_graphs: bool,
    cudnn_attention_from: int,
) -> None:
    """Raise `InvalidInput` for what is switched on where it means nothing, or would have a code depend on its pack."""
    if cudnn_attention_from < 0:
        raise InvalidInput(f"cuDNN attention from {cudnn_attention_from} patches on; 0 is never")
    if (cuda_graphs or cudnn_attention_from) and (device.type != "cuda" or head != "eager" or "encoder" not in parts):
        raise InvalidInput(
            f"CUDA graphs and cuDNN attention are for the eager encoder on CUDA, not for head {head} on {device.type}"
        )
    if (cuda_graphs or cudnn_attention_from) and dtype == torch.float32:
        # Its attention is image by image: a recorded graph would hold the images of one pack, and wait for the device.
        raise InvalidInput("CUDA graphs and cuDNN attention are for 16 bits, not for float32")
    if cuda_graphs and 0 < cudnn_attention_from <= BUDGETS[-1]:
        raise InvalidInput(
            f"cuDNN attention from {cudnn_attention_from} patches on: "
            f"images of up to {BUDGETS[-1]} are for CUDA graphs, with another kernel"
        )


class Graphs:
    """The graphs of one encoder, recorded when they are first needed; all calls must be on one stream.

    `multiple` is what `viq.row_probe` found: no graph has rows by another number, whose products may have other bits.
    """

    def __init__(self, encoder: Encoder, multiple: int, record: Recorder | None = None) -> None:
        self._encoder, self._record = encoder, record or CudaRecorder(encoder.project_in.weight.device)
        self._budgets = tuple(budget for budget in BUDGETS if budget % multiple == 0)
        self._recorded: dict[int, _Graph] = {}
        self._lock = Lock()  # replicas of one device share its graphs

    def codes(self, patches: Tensor, packing: Packing) -> Tensor | None:
        """Codes of normalised patches `(rows, 768)` as `Encoder.forward` gives them; None for a pack too large."""
        rows = next((budget for budget in self._budgets if budget >= packing.patches), None)
        if rows is None or len(packing.grids) > SLOTS:
            return None
        with self._lock:
            if rows not in self._recorded:
                self._recorded[rows] = _Graph(self._encoder, rows, patches, self._record)
            return self._recorded[rows].codes(patches, packing)


class _Graph:
    """One recorded graph and the buffers that it reads."""

    def __init__(self, encoder: Encoder, rows: int, patches: Tensor, record: Recorder) -> None:
        weight = encoder.project_in.weight
        self._encoder, self._rows = encoder, rows
        whole = Packing.of([(1, rows)])
        self._patches = patches.new_zeros((rows, patches.shape[1]))
        self._positions = weight.new_zeros((rows, weight.shape[1]))
        self._rotations = encoder.rotations(whole)
        # The kernels' grid is made for sequences as long as the graph, whatever they turn out to be.
        ends = torch.full((SLOTS + 2,), rows, dtype=torch.int32, device=weight.device)
        ends[0] = 0
        self._where = Ends(ends, torch.tensor([rows]))
        self._replay, self._codes = record(self._run)

    def codes(self, patches: Tensor, packing: Packing) -> Tensor:
        count, images = packing.patches, len(packing.grids)
        for buffer, values in (
            (self._patches, patches[:count]),
            (self._positions, self._encoder.positions(packing)[:count]),
        ):
            buffer[:count] = values
            buffer[count:] = 0
        self._rotations[:, :count] = self._encoder.rotations(packing)[:, :count]
        self._where.ends[1 : images + 1] = packing.on(patches.device).ends[1 : images + 1]
        self._where.ends[images + 1 :] = self._rows
        self._replay()
        return self._codes[: packing.patches * (self._codes.shape[0] // self._rows)].clone()

    def _run(self) -> Tensor:
        return self._encoder.codes(self._patches, self._positions, self._rotations, self._where)


class CudaRecorder:
    """Records CUDA graphs that share one pool of memory, as only one is ever replayed at a time.

    All are warmed and recorded on one stream of `device`: torch's own stream for recording is of whichever device was
    current first, and libraries keep a workspace for each stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """See `Recorder`."""
        with torch.cuda.device(self._device):
            side, current = self._stream or torch.cuda.Stream(), torch.cuda.current_stream()
            self._stream = side
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(_WARM):
                    run()
            current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"):
                out = run()
            self._pool = self._pool or graph.pool()
            return graph.replay, out
