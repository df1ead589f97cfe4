"""ViQ as a library: images to codes, codes to features, codes to images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from viq.checkpoint import (
    DEFAULT_HEADS,
    check_copy,
    encoder_stem,
    find,
    holds,
    load_decoder,
    load_embedder,
    load_encoder,
    read_manifest,
)
from viq.codes import Codes
from viq.config import CODES_PER_PATCH, variant
from viq.decoder import Decoder, to_bytes
from viq.embedder import Embedder
from viq.encoder import Encoder
from viq.errors import FingerprintMismatch, InvalidInput, ViQError, WeightsError
from viq.fingerprint import mode, remembered_family, stated_family
from viq.hardware import device_named, dtype_named, prepare_cuda
from viq.launched import Launched, gathered, on_host
from viq.packing import Packing
from viq.patches import Patches, normalise
from viq.pixels import to_rgb
from viq.row_probe import FIRST, UNSETTLED, row_multiple
from viq.tensor_file import TensorFile, open_tensors
from viq.weights_root import folder_of

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")
PARTS = ("encoder", "embedder", "decoder")
_PACK_PATCHES = 16_384  # patches computed at a time; more only for a single image that has them


class ViQ:
    """A loaded model, or the parts of one that were asked for.

    Make it with `from_pretrained`. Calls may come from any thread; they compute one after another best.
    """

    def __init__(
        self,
        size: str,
        *,
        encoder: Encoder | None,
        embedder: Embedder | None,
        decoder: Decoder | None,
        family: str,
        dtype: torch.dtype,
        device: torch.device,
        untrained: bool = False,
    ) -> None:
        self.size, self.untrained = size, untrained
        self.levels, self.codebook_size = variant(size).levels, variant(size).codebook_size
        self._encoder, self._embedder, self._decoder = encoder, embedder, decoder
        self._dtype, self._device = dtype, device
        self.row_multiple = row_multiple(encoder) if encoder else FIRST[device.type]
        invariance = "none" if self.row_multiple >= UNSETTLED else "strict"
        self.family, self.fingerprint = family, f"{family}.{mode(device, dtype, invariance)}"

    @classmethod
    def from_pretrained(
        cls,
        root: str | Path | None = None,
        size: str | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        parts: Collection[str] = PARTS,
    ) -> ViQ:
        """Load the model of `size` from a weights root.

        `root` holds `converted_<size>/` folders, or is `hf:ORG/REPO[/SUBDIR][@REV]`; without it the model is
        `nano`, which ships with the package. `device` is `cpu`, `cuda`, `cuda:1` …, or `auto` for CUDA where
        there is one; `dtype` is `bfloat16`, `float32`, `float16` or `auto` for bfloat16 on CUDA and float32
        on CPU. `parts` names what to load of `encoder`, `embedder` and `decoder`; of the rest nothing is loaded,
        but the encoder's file is looked at for its fingerprint where it is there.

        Raises `WeightsError` naming the file and tensor at fault, `UnknownModel` for a size there is not,
        `InvalidInput` for a device, dtype or part there is not.
        """
        where, what = device_named(device), dtype_named(dtype, device_named(device))
        unknown = set(parts) - set(PARTS)
        if unknown or not parts:
            raise InvalidInput(f"parts {sorted(parts)}; there are {', '.join(PARTS)}")
        folder, size = folder_of(root, size)
        return cls._from_folder(folder, size, where, what, parts)

    @classmethod
    def _from_folder(
        cls, folder: Path, size: str, device: torch.device, dtype: torch.dtype, parts: Collection[str]
    ) -> ViQ:
        manifest = read_manifest(folder, size)
        heads = cast(int, manifest.get("num_heads", DEFAULT_HEADS))  # read_manifest looked
        stem = encoder_stem(size)
        encoder_file: TensorFile | None = None
        if "encoder" in parts or holds(folder, stem):
            encoder_file = open_tensors(find(folder, stem))
            family_ = remembered_family(encoder_file, manifest, size, heads)
        else:
            family_ = stated_family(manifest, folder)
        embedder_file = open_tensors(find(folder, "embedder")) if "embedder" in parts else None
        drawer_file = open_tensors(find(folder, "index_drawer")) if "decoder" in parts else None
        if drawer_file and embedder_file:
            check_copy(drawer_file, size)
        model = cls._assemble(
            size, heads, encoder_file if "encoder" in parts else None, embedder_file, drawer_file, device, dtype,
            family_, untrained=manifest.get("untrained") is True,
        )  # fmt: skip
        _same_widths(model, folder)
        return model

    @classmethod
    def _assemble(
        cls,
        size: str,
        heads: int,
        encoder: TensorFile | None,
        embedder: TensorFile | None,
        drawer: TensorFile | None,
        device: torch.device,
        dtype: torch.dtype,
        family_: str,
        untrained: bool = False,
    ) -> ViQ:
        if device.type == "cuda":
            prepare_cuda()
        # A drawer carries its own copy of the embedder; it is read only where there is no other.
        codes_file = embedder or drawer
        return cls(
            size,
            encoder=load_encoder(encoder, size, heads, dtype, device) if encoder else None,
            embedder=load_embedder(codes_file, size, dtype, device, drawer=embedder is None) if codes_file else None,
            decoder=load_decoder(drawer, heads, dtype, device) if drawer else None,
            family=family_,
            dtype=dtype,
            device=device,
            untrained=untrained,
        )

    @property
    def _note(self) -> str:
        return " (untrained)" if self.untrained else ""

    @property
    def device(self) -> str:
        """Where it computes, for example `cpu` or `cuda:0`."""
        return str(self._device)

    @property
    def dtype(self) -> str:
        """What it computes in, for example `bfloat16`."""
        return str(self._dtype).removeprefix("torch.")

    @property
    def parts(self) -> frozenset[str]:
        """Which of `encoder`, `embedder` and `decoder` are loaded."""
        held = zip(PARTS, (self._encoder, self._embedder, self._decoder), strict=True)
        return frozenset(name for name, part in held if part is not None)

    @property
    def width(self) -> int:
        """Width `C` of features and activations."""
        weight = self._encoder.project_in.weight if self._encoder else self.embedder.lift.weight.T
        return int(weight.shape[1])

    @property
    def encoder(self) -> Encoder:
        """The encoder; raises `WeightsError` if it was not loaded."""
        return _loaded(self._encoder, "encoder")

    @property
    def embedder(self) -> Embedder:
        """The embedder; raises `WeightsError` if it was not loaded."""
        return _loaded(self._embedder, "embedder")

    @property
    def decoder(self) -> Decoder:
        """The decoder; raises `WeightsError` if it was not loaded."""
        return _loaded(self._decoder, "decoder")

    def encode(
        self,
        images: Sequence[Image.Image | npt.NDArray[np.uint8]],
        *,
        exif: bool = True,
        alpha: str = "white",
    ) -> list[Codes]:
        """Codes of images of any sizes: PIL images or uint8 arrays `(H, W, 3)` (see `viq.pixels.to_rgb`).

        An image's codes are the same alone and in any company. Raises `InvalidInput`.
        """
        return self.encode_pixels([to_rgb(image, exif=exif, alpha=alpha) for image in images])

    @torch.inference_mode()
    def encode_pixels(self, pixels: Sequence[npt.NDArray[np.uint8]]) -> list[Codes]:
        """Codes of RGB images, uint8 `(H, W, 3)`, packed some at a time."""
        results: list[Codes] = []
        for chunk in _chunks(pixels, [-(-p.shape[0] // 16) * -(-p.shape[1] // 16) for p in pixels]):
            results += self.launch_encode([Patches.of(image) for image in chunk]).results()
        return results

    @torch.inference_mode()
    def launch_encode(self, images: Sequence[Patches]) -> Launched[Codes]:
        """Hand one pack of images to the device; results are their codes."""
        begun = perf_counter()
        packing = Packing.of((image.grid for image in images), self.row_multiple)
        patches = gathered([image.rows for image in images], packing.rows, self._device)
        transfer_s, sizes = perf_counter() - begun, [image.image_size for image in images]
        with self._alone():
            codes = self.encoder(normalise(patches, sizes, packing, self._dtype), packing)
        return Launched(transfer_s, partial(self._codes, on_host(codes), packing, sizes))

    @torch.inference_mode()
    def embed(self, codes: Sequence[Codes], *, any_fingerprint: bool = False) -> list[Tensor]:
        """Features `(h*w, C)` of each image, in the compute dtype.

        Raises `InvalidInput` for codes of another size, `FingerprintMismatch` for codes of other weights
        unless `any_fingerprint`.
        """
        self.check(codes, any_fingerprint=any_fingerprint)
        results: list[Tensor] = []
        for chunk in _chunks(codes, [c.grid[0] * c.grid[1] for c in codes]):
            packing, packed = self._packed(chunk)
            with self._alone():
                features = self.embedder.features(packed)
            results += [part.clone() for part in packing.split(features)]
        return results

    @torch.inference_mode()
    def launch_embed(self, codes: Sequence[Codes]) -> Launched[Tensor]:
        """Hand one pack of codes, already checked, to the device; results are features `(h*w, C)` on the host."""
        begun = perf_counter()
        packing, packed = self._packed(codes)
        transfer_s = perf_counter() - begun
        with self._alone():
            features = on_host(self.embedder.features(packed))
        return Launched(transfer_s, lambda: packing.split(features()))

    @torch.inference_mode()
    def decode(self, codes: Sequence[Codes], *, any_fingerprint: bool = False) -> list[npt.NDArray[np.uint8]]:
        """Pictures, uint8 `(H, W, 3)`, cropped to each image's size. Raises as `embed` does."""
        self.check(codes, any_fingerprint=any_fingerprint)
        pictures: list[npt.NDArray[np.uint8]] = []
        for chunk in _chunks(codes, [c.grid[0] * c.grid[1] for c in codes]):
            pictures += self.launch_decode(chunk).results()
        return pictures

    @torch.inference_mode()
    def launch_decode(self, codes: Sequence[Codes]) -> Launched[npt.NDArray[np.uint8]]:
        """Hand one pack of codes, already checked, to the device; results are pictures as `decode` gives them."""
        begun = perf_counter()
        packing, packed = self._packed(codes)
        transfer_s = perf_counter() - begun
        with self._alone():
            images = [on_host(to_bytes(image)) for image in self.decoder(self.embedder, packed, packing)]

        def pictures() -> list[npt.NDArray[np.uint8]]:
            whole = (image().numpy() for image in images)
            return [p[: c.image_size[0], : c.image_size[1]].copy() for p, c in zip(whole, codes, strict=True)]

        return Launched(transfer_s, pictures)

    def check(self, codes: Sequence[Codes], *, any_fingerprint: bool = False) -> None:
        """Raise `InvalidInput` or `FingerprintMismatch` unless all `codes` can be read with these weights."""
        for item in codes:
            if item.size != self.size:
                raise InvalidInput(f"codes are of size {item.size}, the model is of size {self.size}{self._note}")
            if item.family and item.family != self.family and not any_fingerprint:
                raise FingerprintMismatch(f"codes were made by weights {item.family}, the model's are {self.family}")

    def _in_range(self, codes: npt.NDArray[np.int32]) -> npt.NDArray[np.uint16]:
        if codes.min() < 0 or codes.max() >= self.codebook_size:
            raise ViQError(f"the network gave values that are no numbers in {self.dtype}: damaged weights, or overflow")
        return codes.astype(np.uint16)

    def _alone(self) -> torch.autocast:
        """What the caller's process has switched on must not change what is computed."""
        return torch.autocast(self._device.type, enabled=False)

    def _packed(self, codes: Sequence[Codes]) -> tuple[Packing, Tensor]:
        """The codes of several images, int64 `(rows, 4)`, on the device."""
        packing = Packing.of((c.grid for c in codes), self.row_multiple)
        flat = [c.array.reshape(-1, CODES_PER_PATCH).astype(np.int64) for c in codes]
        return packing, gathered(list(flat), packing.rows, self._device)

    def _codes(self, values: Callable[[], Tensor], packing: Packing, sizes: Sequence[tuple[int, int]]) -> list[Codes]:
        flat = self._in_range(values().numpy())
        results = []
        for (start, end), grid, size in zip(packing.spans, packing.grids, sizes, strict=True):
            part = flat[start * CODES_PER_PATCH : end * CODES_PER_PATCH].reshape(*grid, CODES_PER_PATCH)
            results.append(Codes(part, size, self.size, self.fingerprint))
        return results


def load_embedder_alone(root: str | Path | None, size: str | None, device: str, dtype: str) -> Embedder:
    """The embedder of a weights root, from its own file alone; see `Embedder.from_pretrained`."""
    folder, size = folder_of(root, size)
    read_manifest(folder, size)
    where = device_named(device)
    return load_embedder(open_tensors(find(folder, "embedder")), size, dtype_named(dtype, where), where)


def _chunks(items: Sequence[T], patches: Sequence[int]) -> Iterator[list[T]]:
    """Runs of items of at most `_PACK_PATCHES` patches together, or one item of more."""
    chunk: list[T] = []
    held = 0
    for item, size in zip(items, patches, strict=True):
        if chunk and held + size > _PACK_PATCHES:
            yield chunk
            chunk, held = [], 0
        chunk.append(item)
        held += size
    if chunk:
        yield chunk


def _loaded(part: T | None, name: str) -> T:
    if part is None:
        raise WeightsError(f"the {name} was not loaded (parts=)")
    return part


def _same_widths(model: ViQ, folder: Path) -> None:
    widths = {}
    if "encoder" in model.parts:
        widths["encoder"] = model.encoder.project_in.weight.shape[1]
    if "embedder" in model.parts:
        widths["embedder"] = model.embedder.lift.weight.shape[0]
    if "decoder" in model.parts:
        widths["index_drawer"] = model.decoder.norm.weight.shape[0]
    if len(set(widths.values())) > 1:
        raise WeightsError(f"{folder}: files are of different widths, {widths}")
