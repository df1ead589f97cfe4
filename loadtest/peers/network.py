"""The same network behind every door: files of images to flat codes, in a process of some peer.

Imported in the peers' own environments, which hold torch, numpy, Pillow and safetensors; `models/`, `service/` and
this folder come by PYTHONPATH. What is decoded and how is the service's own code.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from viq import ViQ
from viq.config import grid_of
from viq_serving.images import ImageLimits, decode

Pixels = npt.NDArray[np.uint8]
LIMITS = ImageLimits()
WORKERS = int(os.environ.get("PEER_WORKERS", "2"))
THREADS = int(os.environ.get("PEER_THREADS", "1"))
BATCH = int(os.environ.get("PEER_BATCH", "8"))
WAIT_MS = int(os.environ.get("PEER_WAIT_MS", "10"))
BATCH_PATCHES = int(os.environ.get("PEER_BATCH_PATCHES", "1024"))
SCRIPTED = os.environ.get("PEER_SCRIPTED") == "1"
PORT = int(os.environ.get("PEER_PORT", "9000"))


class Network:
    """The encoder with this process's share of the threads; weights as PEER_WEIGHTS and PEER_SIZE name, else nano."""

    def __init__(self) -> None:
        torch.set_num_threads(THREADS)
        root, size = os.environ.get("PEER_WEIGHTS") or None, os.environ.get("PEER_SIZE") or None
        self._model = ViQ.from_pretrained(root, size, device="cpu", dtype="float32", parts=("encoder",))
        if SCRIPTED and not self._model.script_small_packs():
            raise RuntimeError("this network cannot be scripted here")
        self.codes([np.zeros((64, 64, 3), np.uint8)])  # ready means warmed

    def pixels(self, data: bytes) -> Pixels:
        """Pixels `(H, W, 3)` of an image file."""
        return decode(data, LIMITS)

    def codes(self, images: Sequence[Pixels]) -> list[bytes]:
        """Flat codes of each image, uint16 little-endian; all in one pack, as `ViQ.encode_pixels` makes them."""
        return [codes.array.astype("<u2").tobytes() for codes in self._model.encode_pixels(list(images))]


def patches(image: Pixels) -> int:
    """Number of patches of an image."""
    h, w = grid_of(image.shape[0], image.shape[1])
    return h * w
