"""CUDA graphs of the encoder for packs so small that launching 580 kernels takes longer than running them.

A graph is recorded for a number of rows and replayed for every pack that fits: its inputs are copied into buffers that
the graph reads, the rest of its rows being one more sequence, and the rest of its sequences empty. The kernels are
those of the eager network for as many rows, so the bits should be, too; at load each graph is compared with it.
Opt-in: none of this has been run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from viq.config import CODES_PER_PATCH
from viq.errors import InvalidInput
from viq.fsq import quantise
from viq.packing import Ends, Packing

if TYPE_CHECKING:
    from viq.encoder import Encoder

BUDGETS = (256, 384, 512, 768, 1024, 1536, 2048)
"""Rows that graphs are recorded for. Above, the device is busy long enough to hide the launches."""

LONGEST = (256, 1024)
"""Lengths of a graph's longest sequence, beside all its rows: attention starts a block for each part of a sequence that
is so long, and for most of 66 sequences nearly all of these would have nothing to do."""

SLOTS = 64
"""Images that a graph has room for; packs of more are computed eagerly."""

_WARM = 2  # runs before recording, in which libraries set up what must not be set up within

Pair = tuple[Tensor, Tensor]
Recorder = Callable[[Callable[[], Pair]], tuple[Callable[[], None], Pair]]
"""Records what a function does to fixed buffers: gives what repeats it, and the buffers that then hold its results."""


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
    """The graphs of one encoder; all calls must be on one stream.

    `multiple` is what `viq.row_probe` found: no graph has rows by another number, whose products may have other bits.
    """

    @torch.inference_mode()
    def __init__(self, encoder: Encoder, multiple: int, record: Recorder | None = None) -> None:
        """Record them all, and keep those that give the eager network's bits on a pack that is tried."""
        recorder = record or CudaRecorder(encoder.project_in.weight.device)
        self._graphs, self.dropped = dict[tuple[int, int], _Graph](), list[tuple[int, int]]()
        self._rows = tuple(rows for rows in BUDGETS if rows % multiple == 0)
        for rows in self._rows:
            for longest in (*(length for length in LONGEST if length < rows), rows):
                graph = _Graph(encoder, rows, longest, recorder)
                if graph.is_exact(multiple):
                    self._graphs[rows, longest] = graph
                else:
                    self.dropped.append((rows, longest))
        self._lock = Lock()  # replicas of one device share its graphs

    def codes(self, patches: Tensor, packing: Packing) -> Tensor | None:
        """Codes of normalised patches `(rows, 768)` as `Encoder.forward` gives them; None for a pack without graph."""
        graph = self.graph_for(packing)
        if graph is None:
            return None
        with self._lock:
            return graph.replayed(patches, packing)[1].clone()

    def graph_for(self, packing: Packing) -> _Graph | None:
        """The graph that computes a pack, by its rows and its longest sequence."""
        rows = next((rows for rows in self._rows if rows >= packing.patches), None)
        if rows is None or len(packing.grids) > SLOTS:
            return None
        most = max(packing.max_seqlen, rows - packing.patches)
        return self._graphs.get((rows, next((one for one in LONGEST if most <= one < rows), rows)))


class _Graph:
    """One recorded graph and the buffers that it reads."""

    def __init__(self, encoder: Encoder, rows: int, longest: int, record: Recorder) -> None:
        weight = encoder.project_in.weight
        self._encoder, self.rows, self.longest = encoder, rows, longest
        inputs, width = encoder.patch_embed.in_features, encoder.patch_embed.out_features
        self._patches, self._positions = weight.new_zeros((rows, inputs)), weight.new_zeros((rows, width))
        self._rotations = encoder.rotations(Packing.of([(1, rows)]))
        # The kernels' grid is made for sequences of that length, whatever they turn out to be.
        ends = torch.full((SLOTS + 2,), rows, dtype=torch.int32, device=weight.device)
        ends[0] = 0
        self._where = Ends(ends, torch.tensor([longest]))
        self._replay, self._results = record(self._run)

    def replayed(self, patches: Tensor, packing: Packing) -> Pair:
        """Values before quantization and codes of the images of a pack, until the next replay."""
        count, images = packing.patches, len(packing.grids)
        for buffer, values in (
            (self._patches, patches[:count]),
            (self._positions, self._encoder.positions(packing)[:count]),
        ):
            buffer[:count] = values
            buffer[count:] = 0
        self._rotations[:, :count] = self._encoder.rotations(packing)[:, :count]
        self._where.ends[1 : images + 1] = packing.on(patches.device).ends[1 : images + 1]
        self._where.ends[images + 1 :] = self.rows
        self._replay()
        values, codes = self._results
        return values[: count * CODES_PER_PATCH], codes[: count * CODES_PER_PATCH]

    @torch.inference_mode()
    def is_exact(self, multiple: int) -> bool:
        """Whether values have the bits of the eager network's, on a pack with a sequence as long as may be."""
        first = min(self.longest, self.rows - 3)
        sizes = [first, *[self.longest] * ((self.rows - 3 - first) // self.longest)]
        sizes += [left] if (left := self.rows - 3 - sum(sizes)) else []
        packing, weight = Packing.of([(1, size) for size in sizes], multiple), self._patches
        draw = torch.Generator(weight.device).manual_seed(self.rows)
        shape = packing.rows, weight.shape[1]
        patches = (torch.rand(shape, generator=draw, dtype=torch.float32, device=weight.device) * 2 - 1).to(weight)
        eager = self._encoder.project(patches, packing)[: packing.patches * CODES_PER_PATCH]
        return torch.equal(self.replayed(patches, packing)[0].view(torch.uint8), eager.view(torch.uint8))

    def _run(self) -> Pair:
        values = self._encoder.values(self._patches, self._positions, self._rotations, self._where)
        return values, quantise(values, self._encoder.levels)


class CudaRecorder:
    """Records CUDA graphs that share one pool of memory, as only one is ever replayed at a time.

    All are warmed and recorded on one stream of `device`: torch's own stream for recording is of whichever device was
    current first, and libraries keep a workspace for each stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def __call__(self, run: Callable[[], Pair]) -> tuple[Callable[[], None], Pair]:
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
