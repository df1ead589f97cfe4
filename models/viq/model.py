"""ViQ as a library: images to codes, codes to features, codes to images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, cast

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
from viq.errors import FingerprintMismatch, InvalidInput, ViQError
from viq.fingerprint import mode, remembered_family, stated_family
from viq.fp8 import quantise_trunk
from viq.graphs import Graphs, check_experiments
from viq.hardware import FP8, device_named, dtype_named, prepare_cuda
from viq.head_backends import check_asked, facts_of, use_head
from viq.head_build import build
from viq.head_file import HeadFacts, checked_place
from viq.launched import Launched, gathered, on_host
from viq.pack_probe import encoder_is_invariant, head_is_invariant
from viq.packing import Packing, chunks
from viq.parts import PARTS, loaded, same_widths
from viq.patches import Patches, normalise
from viq.pixels import to_rgb
from viq.row_probe import FIRST, UNSETTLED, row_multiple
from viq.scripted import Scripted, scripted
from viq.tensor_file import TensorFile, open_tensors
from viq.weights_root import folder_of

if TYPE_CHECKING:
    from PIL import Image

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
        fp8: bool = False,
    ) -> None:
        self.size, self.untrained = size, untrained
        self.levels, self.codebook_size = variant(size).levels, variant(size).codebook_size
        self._encoder, self._embedder, self._decoder = encoder, embedder, decoder
        self._dtype, self._device, self._fp8 = dtype, device, fp8
        multiples = [row_multiple(one) for one in (encoder, embedder) if one] or [FIRST[device.type]]
        self.row_multiple = max(multiples)
        # Of codes: where the encoder is loaded, what the embedder needs does not count.
        self.family, self.head, self.invariant = family, "eager", multiples[0] < UNSETTLED
        self._folder: Path | None = None
        self._graphs: Graphs | None = None
        self._scripted: Scripted | None = None
        self._dense_from = 0
        self.fingerprint = self._fingerprint()

    @classmethod
    def from_pretrained(
        cls,
        root: str | Path | None = None,
        size: str | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        parts: Collection[str] = PARTS,
        head: str = "eager",
        head_file: str | Path | Sequence[str | Path] = (),
        cuda_graphs: bool = False,
        cudnn_attention_from: int = 0,
    ) -> ViQ:
        """Load the model of `size` from a weights root.

        `root` holds `converted_<size>/` folders, or is `hf:ORG/REPO[/SUBDIR][@REV]`; without it the model is
        `nano`, which ships with the package. `device` is `cpu`, `cuda`, `cuda:1` …, or `auto` for CUDA where
        there is one; `dtype` is `bfloat16`, `float32`, `float16`, `fp8` or `auto` for bfloat16 on CUDA and float32
        on CPU. `fp8` is `bfloat16` but for the matrix products of the encoder's trunk, which are in 8 bits (`viq.fp8`):
        fewer codes are those of float32, there are no gradients, it has not run on a GPU yet, and on a CPU it is
        emulated, slowly. `parts` names what to load of `encoder`, `embedder` and `decoder`; of the rest nothing is
        loaded, but the encoder's file is looked at for its fingerprint where it is there.

        `head` is what computes the quantization head: `eager`, `compile` (torch.compile), or a format that
        `build_head` makes, from `head_file`: one file, or several of which that for these weights is taken. Such a
        file is code and runs as this process. Codes of another head have another fingerprint.

        On CUDA, both experimental and not yet run: `cuda_graphs` has packs of up to 2,048 patches computed by recorded
        graphs, `cudnn_attention_from` has images of at least that many patches attended by cuDNN, one by one.

        Raises `WeightsError` naming the file and tensor at fault, `UnknownModel` for a size there is not,
        `InvalidInput` for a device, dtype or part there is not, or a dtype that is not for the device or the weights.
        """
        where, what = device_named(device), dtype_named(dtype, device_named(device))
        unknown = set(parts) - set(PARTS)
        if unknown or not parts:
            raise InvalidInput(f"parts {sorted(parts)}; there are {', '.join(PARTS)}")
        files = [head_file] if isinstance(head_file, (str, Path)) else list(head_file)
        check_asked(head, files, parts)
        check_experiments(where, what, head, parts, cuda_graphs, cudnn_attention_from)
        folder, size = folder_of(root, size)
        model = cls._from_folder(folder, size, where, what, parts, dtype == FP8)
        model._folder = folder
        model._dense_from = cudnn_attention_from
        model._compute_with(head, files, cuda_graphs)
        return model

    @classmethod
    def _from_folder(
        cls, folder: Path, size: str, device: torch.device, dtype: torch.dtype, parts: Collection[str], fp8: bool
    ) -> ViQ:
        manifest = read_manifest(folder, size)
        heads = cast(int, manifest.get("num_heads", DEFAULT_HEADS))  # read_manifest looked
        stem = encoder_stem(size)
        encoder_file: TensorFile | None = None
        if "encoder" in parts or holds(folder, stem):
            encoder_file = open_tensors(find(folder, stem))
            family_ = remembered_family(encoder_file, manifest, size, heads)
            encoder_file = encoder_file if "encoder" in parts else None
        else:
            family_ = stated_family(manifest, folder)
        drawer = open_tensors(find(folder, "index_drawer")) if "decoder" in parts else None
        own = open_tensors(find(folder, "embedder")) if "embedder" in parts else None
        if drawer and own:
            check_copy(drawer, size)
        if device.type == "cuda":
            prepare_cuda()
        # A drawer carries its own copy of the embedder; it is read only where there is no other.
        codes_file = own or drawer
        encoder = load_encoder(encoder_file, size, heads, dtype, device) if encoder_file else None
        if encoder and fp8:
            quantise_trunk(encoder)
        model = cls(
            size,
            encoder=encoder,
            embedder=load_embedder(codes_file, size, dtype, device, drawer=own is None) if codes_file else None,
            decoder=load_decoder(drawer, heads, dtype, device) if drawer else None,
            family=family_,
            dtype=dtype,
            device=device,
            untrained=manifest.get("untrained") is True,
            fp8=fp8,
        )
        same_widths(model._encoder, model._embedder, model._decoder, folder)
        return model

    def _compute_with(self, head: str, files: Sequence[str | Path], cuda_graphs: bool) -> None:
        """Have another back end compute the head, or graphs the small packs; either gives another fingerprint."""
        if head != "eager" and self._folder is not None:
            self.head = use_head(self.encoder, head, files, self.family, self.size, self._folder)
        if self.invariant and not self._is_invariant():
            self.invariant = False
            warnings.warn(f"codes of head {head} on {self._device} depend on the batch here", stacklevel=3)
        if cuda_graphs:
            self._graphs = Graphs(self.encoder, self.row_multiple)
            for rows, longest in self._graphs.dropped:
                warnings.warn(f"the graph of {rows} rows by {longest} gives other bits: not used", stacklevel=3)
        self.fingerprint = self._fingerprint()

    def _is_invariant(self) -> bool:
        """What a probe finds, where `row_multiple` is not all there is to be found out."""
        if self._encoder is not None and self._device.type == "cuda":
            return encoder_is_invariant(self._encoder, self.row_multiple, self._dense_from)
        return self.head == "eager" or head_is_invariant(self.encoder, self.row_multiple)

    def _fingerprint(self) -> str:
        extras = {"graphs": "cuda"} if self._graphs else {}
        extras |= {"cudnn": str(self._dense_from)} if self._dense_from else {}
        extras |= {"dtype": self.dtype} if self._fp8 else {}  # in place of the activations'
        invariance = "strict" if self.invariant else "none"
        return f"{self.family}.{mode(self._device, self._dtype, invariance, self.head, extras)}"

    def script_small_packs(self) -> bool:
        """Have small packs computed by TorchScript, to the same bits, if that can be here; tells whether it is so.

        For services and loops: it takes a second or two and some 90 MiB, of which torch keeps some for good, and then
        small images take a tenth less, with Python's interpreter left to other threads meanwhile. Only small networks
        in float32 on a CPU with the eager head. Up to 16 million parameters, the weights of products are held once
        more. Where modules or weights are replaced or changed later, or get hooks, all is eager until this is called
        again; only what is written into `Tensor.data` nobody notices.
        """
        made = self._scripted is not None and self._scripted.fits_now()
        if self._encoder is not None and self.head == "eager" and not made:
            with self._alone():
                self._scripted = scripted(self._encoder, self.row_multiple)
        return self._scripted is not None

    def build_head(self, form: str, path: str | Path) -> HeadFacts:
        """Write the quantization head as a file for `from_pretrained(head=form, head_file=path)`.

        `form` is `torchscript`, `aoti`, `onnx` or `tensorrt`. The file serves these weights on this kind of device, in
        this type, with this version of torch. Raises `InvalidInput` for a format there is not, a name that does not
        end as it should or a place among weights, `WeightsError` naming what is missing here to build it.
        """
        facts = facts_of(self.encoder, form, self.family, self.size)
        build(self.encoder, facts, checked_place(path, self._folder))
        return facts

    @property
    def _note(self) -> str:
        return " (untrained)" if self.untrained else ""

    @property
    def device(self) -> str:
        """Where it computes, for example `cpu` or `cuda:0`."""
        return str(self._device)

    @property
    def dtype(self) -> str:
        """What it computes in, as `from_pretrained` was told: `bfloat16`, `fp8`, …"""
        return FP8 if self._fp8 else str(self._dtype).removeprefix("torch.")

    @property
    def parts(self) -> frozenset[str]:
        """Which of `encoder`, `embedder` and `decoder` are loaded."""
        held = zip(PARTS, (self._encoder, self._embedder, self._decoder), strict=True)
        return frozenset(name for name, part in held if part is not None)

    @property
    def weight_bytes(self) -> int:
        """Bytes that the weights of the loaded parts take."""
        parts = (part for part in (self._encoder, self._embedder, self._decoder) if part is not None)
        return sum(weight.nbytes for part in parts for weight in (*part.parameters(), *part.buffers()))

    @property
    def width(self) -> int:
        """Width `C` of features and activations."""
        weight = self._encoder.project_in.weight if self._encoder else self.embedder.lift.weight.T
        return int(weight.shape[1])

    @property
    def encoder(self) -> Encoder:
        """The encoder; raises `WeightsError` if it was not loaded."""
        return loaded(self._encoder, "encoder")

    @property
    def embedder(self) -> Embedder:
        """The embedder; raises `WeightsError` if it was not loaded."""
        return loaded(self._embedder, "embedder")

    @property
    def decoder(self) -> Decoder:
        """The decoder; raises `WeightsError` if it was not loaded."""
        return loaded(self._decoder, "decoder")

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
        for chunk in chunks(pixels, [-(-p.shape[0] // 16) * -(-p.shape[1] // 16) for p in pixels], _PACK_PATCHES):
            results += self.launch_encode([Patches.of(image) for image in chunk]).results()
        return results

    @torch.inference_mode()
    def launch_encode(self, images: Sequence[Patches]) -> Launched[Codes]:
        """Hand one pack of images to the device; results are their codes."""
        begun = perf_counter()
        packing = Packing.of((image.grid for image in images), self.row_multiple, self._dense_from)
        rows, sizes = [image.rows for image in images], [image.image_size for image in images]
        if self._scripted:
            with self._alone():
                codes = self._scripted.codes(rows, sizes, packing)
            if codes is not None:
                return Launched(0.0, partial(self._codes, on_host(codes), packing, sizes))
        patches = gathered(rows, packing.rows, self._device)
        transfer_s = perf_counter() - begun
        with self._alone():
            values = normalise(patches, sizes, packing, self._dtype)
            codes = self._graphs.codes(values, packing) if self._graphs else None
            if codes is None:
                codes = self.encoder(values, packing)
        return Launched(transfer_s, partial(self._codes, on_host(codes), packing, sizes))

    @torch.no_grad()  # and not inference_mode, whose tensors no layer that is trained takes
    def embed(self, codes: Sequence[Codes], *, any_fingerprint: bool = False) -> list[Tensor]:
        """Features `(h*w, C)` of each image, in the compute dtype (with `fp8`: bfloat16).

        Raises `InvalidInput` for codes of another size, `FingerprintMismatch` for codes of other weights
        unless `any_fingerprint`.
        """
        self.check(codes, any_fingerprint=any_fingerprint)
        results: list[Tensor] = []
        for chunk in chunks(codes, [c.grid[0] * c.grid[1] for c in codes], _PACK_PATCHES):
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
        for chunk in chunks(codes, [c.grid[0] * c.grid[1] for c in codes], _PACK_PATCHES):
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
        if codes.view(np.uint32).max() >= self.codebook_size:  # negative ones are large then
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
