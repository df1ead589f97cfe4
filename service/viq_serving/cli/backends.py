"""Where a command computes: with weights loaded here, or at a server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from viq.codes import Codes
from viq.config import grid_of
from viq.errors import InvalidInput, UnknownModel, ViQError, WeightsError
from viq_serving.cli.batches import BATCH_PATCHES
from viq_serving.cli.failures import Unusable, UsageError, require
from viq_serving.cli.options import weights_root
from viq_serving.cli.progress import Progress
from viq_serving.heap import keep_freed_memory
from viq_serving.images import ImageLimits, decode
from viq_serving.openmp import spin_briefly

if TYPE_CHECKING:
    from viq.model import ViQ
    from viq_serving.client.http import Client

Pixels: TypeAlias = npt.NDArray[np.uint8]

LIMITS = ImageLimits()


class Backend(Protocol):
    """The three methods and what they need to know beforehand. Errors are those of `viq.errors`."""

    size: str
    untrained: bool

    def image(self, data: bytes) -> tuple[Pixels | bytes, int]:
        """What is computed on of an image file, and how many patches to count for it."""

    def encode(self, images: Sequence[Pixels | bytes]) -> list[Codes]:
        """Codes of what `image` gave."""

    def embed(self, inputs: Sequence[Codes | Pixels | bytes]) -> list[npt.NDArray[np.float32]]:
        """Features of codes, or of what `image` gave."""

    def decode(self, codes: Sequence[Codes]) -> list[Pixels]:
        """Pictures of codes."""


class Here:
    """Weights loaded in this process."""

    def __init__(self, options: argparse.Namespace, parts: Collection[str]) -> None:
        self._options, self._model = options, load(options, parts)
        self.size, self.untrained = self._model.size, self._model.untrained

    def image(self, data: bytes) -> tuple[Pixels | bytes, int]:
        """Decoded pixels, and their patches."""
        pixels = decode(data, LIMITS, exif=self._options.exif, alpha=self._options.alpha)
        h, w = grid_of(*pixels.shape[:2])
        return pixels, h * w

    def encode(self, images: Sequence[Pixels | bytes]) -> list[Codes]:
        """Codes of pixels, packed."""
        return self._model.encode_pixels([one for one in images if isinstance(one, np.ndarray)])

    def embed(self, inputs: Sequence[Codes | Pixels | bytes]) -> list[npt.NDArray[np.float32]]:
        """Features, encoding first what is not codes yet."""
        encoded = iter(self.encode([one for one in inputs if not isinstance(one, Codes)]))
        codes = [one if isinstance(one, Codes) else next(encoded) for one in inputs]
        features = self._model.embed(codes, any_fingerprint=self._options.any_fingerprint)
        return [one.float().cpu().numpy() for one in features]

    def decode(self, codes: Sequence[Codes]) -> list[Pixels]:
        """Pictures, packed."""
        return self._model.decode(codes, any_fingerprint=self._options.any_fingerprint)


class There:
    """A server, given by its address."""

    def __init__(self, options: argparse.Namespace, client: Client, row: Mapping[str, Any]) -> None:
        self._options, self._client = options, client
        self.size, self.untrained = str(row["size"]), bool(row.get("untrained"))

    def image(self, data: bytes) -> tuple[Pixels | bytes, int]:
        """The file itself, counted as a whole batch: each is a request of its own."""
        return data, BATCH_PATCHES

    def encode(self, images: Sequence[Pixels | bytes]) -> list[Codes]:
        """Codes of files."""
        return self._client.encode(images, size=self._options.size, exif=self._options.exif, alpha=self._options.alpha)

    def embed(self, inputs: Sequence[Codes | Pixels | bytes]) -> list[npt.NDArray[np.float32]]:
        """Features of codes or files."""
        pixels = {"exif": self._options.exif, "alpha": self._options.alpha}
        return self._client.embed(
            inputs, size=self._options.size, any_fingerprint=self._options.any_fingerprint, **pixels
        )

    def decode(self, codes: Sequence[Codes]) -> list[Pixels]:
        """Pictures of codes."""
        return self._client.decode(codes, any_fingerprint=self._options.any_fingerprint)


@contextmanager
def backend(options: argparse.Namespace, parts: Collection[str]) -> Iterator[Backend]:
    """Where `options` say to compute, ready; `parts` is what is loaded if that is here."""
    if options.server is None:
        yield _noted(Here(options, parts))
        return
    with connect(options) as (client, row):
        yield _noted(There(options, client, row))


def load(options: argparse.Namespace, parts: Collection[str]) -> ViQ:
    """The model that `options` name; raises `Unusable` with the reason, `UsageError` for an impossible device."""
    require("torch", "safetensors")
    spin_briefly()
    keep_freed_memory()
    with Progress("loading"):
        from viq.model import ViQ

        try:
            return ViQ.from_pretrained(
                weights_root(options),
                options.size,
                device=options.device or "auto",
                dtype=options.dtype or "auto",
                parts=parts,
                head=options.head or "eager",
                head_file=options.head_file or (),
            )
        except InvalidInput as error:
            raise UsageError(str(error)) from None
        except (WeightsError, UnknownModel) as error:
            raise Unusable(str(error)) from None


@contextmanager
def connect(options: argparse.Namespace) -> Iterator[tuple[Client, dict[str, Any]]]:
    """A client of the server that `options` name, and its description of the model that will compute."""
    from viq_serving.client.http import Client

    try:
        client = Client(options.server)
    except InvalidInput as error:
        raise UsageError(str(error)) from None
    except ViQError as error:
        raise Unusable(str(error)) from None
    with client:
        try:
            rows = client.models()
        except ViQError as error:
            raise Unusable(str(error)) from None
        wanted = [row for row in rows if (row["size"] == options.size if options.size else row.get("default"))]
        if not wanted:
            held = ", ".join(str(row["size"]) for row in rows)
            raise Unusable(f"{options.server} does not serve size {options.size}; it has {held}")
        yield client, wanted[0]


def _noted(chosen: Backend) -> Backend:
    if chosen.untrained:
        name = named(chosen.size, chosen.untrained)
        print(f"viq: {name}: random weights, the results carry no meaning; see --weights-root", file=sys.stderr)
    return chosen


def named(size: str, untrained: bool) -> str:
    """The name of a model as it is shown to people."""
    return f"{size} (untrained)" if untrained else size
