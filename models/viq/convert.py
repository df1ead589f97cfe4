"""A training checkpoint to the three files of the released layout (model.md, "Converting a training checkpoint")."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from viq.checkpoint import DEFAULT_HEADS, encoder_stem, load_decoder, load_embedder, load_encoder
from viq.config import CODES_PER_PATCH, GRID, PATCH, variant
from viq.errors import InvalidInput, WeightsError
from viq.fingerprint import family, sample_check, write_manifest
from viq.fsq import bound, codebook, quantise
from viq.patches import normalise, pack_images, patchify
from viq.released_names import DECODER_UNUSED, ENCODER_UNUSED
from viq.row_probe import FIRST
from viq.tensor_file import TensorFile, open_tensors

State = dict[str, Tensor]

PREFIX = "base_model.model.model.vision_tower.vision_tower."
_DROPPED = ("perceptual_loss", "vae_cpu")
_RENAMED = (("dualvq_head.", "fusion_block."), ("movq", "vae"), ("vq_low.fsq.", "vq_low."))
_EMBEDDER = (
    ("fusion_block.vq_low.project_out.", "projector_1."),
    ("fusion_block.vq_low_inverse_token_shuffle_head.", "projector_2."),
    ("fusion_block.vq_low_postprocess_layers.", "projector_3."),
    ("fusion_block.vq_low_norm_trick_post_quantize_affine_", "_"),
)
_DRAWER = ("vae_preprocess_layers.", "vae_head.")


def convert(
    checkpoint: Path,
    size: str,
    root: Path,
    *,
    num_heads: int = DEFAULT_HEADS,
    file_format: str = "pth",
    verify: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write `root/converted_<size>/` from a training run's `vision_tower.pth`; returns that folder.

    The folder appears whole: files are written beside it and moved when all are good, and with `verify` only
    after encode, embed and decode through them have given the same bytes as the network built from the
    checkpoint directly. Equal inputs give equal files. Raises `WeightsError` naming the tensor at fault,
    `UnknownModel` for a size there is not, `InvalidInput` for such a format or number of heads.
    """
    say = progress or (lambda _: None)
    if file_format not in ("pth", "safetensors"):
        raise InvalidInput(f"format {file_format!r}; there are pth and safetensors")
    if num_heads < 1:
        raise InvalidInput(f"num_heads is {num_heads}, expected at least 1")
    variant(size)
    _refuse_mixture(root / f"converted_{size}", size, file_format)
    say(f"reading {checkpoint}")
    trained = open_tensors(checkpoint, _kept)  # the others may well be integers
    try:
        states = split(rename(trained, grid=None if size == "nano" else GRID), size)
    except WeightsError as error:
        raise WeightsError(f"{checkpoint}: {error}") from None
    _refuse_not_finite(states, checkpoint)
    # Loading them all now refuses a checkpoint with a tensor missing before anything is written.
    direct = _Networks({stem: TensorFile(checkpoint, state) for stem, state in states.items()}, size, num_heads)
    root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=root, prefix=f".converted_{size}.") as scratch:
        folder = Path(scratch)
        for stem, state in states.items():
            say(f"writing {stem}.{file_format}")
            _write(state, folder / f"{stem}.{file_format}")
        files = {stem: open_tensors(folder / f"{stem}.{file_format}") for stem in states}
        encoder = files[encoder_stem(size)]
        manifest = {
            "size": size,
            "levels": list(variant(size).levels),
            "num_heads": num_heads,
            "family": family(encoder, size, num_heads),
            "family_check": sample_check(encoder, size, num_heads),
        }
        write_manifest(folder, manifest)
        if verify:
            say("verifying: encode, embed and decode through the files against the checkpoint")
            _verify(_Networks(files, size, num_heads), direct)
        return _publish(folder, root / f"converted_{size}")


def rename(checkpoint: Mapping[str, Tensor], grid: int | None = GRID) -> State:
    """The vision tower's tensors under their released names, position grid and patch kernel at released sizes.

    A `grid` of `None` leaves the position grid as it was trained: at 128x128 it would be a quarter of `nano`.
    """
    state: State = {}
    for name, tensor in checkpoint.items():
        if not _kept(name):
            continue
        released = name.removeprefix(PREFIX)
        for old, new in _RENAMED:
            released = released.replace(old, new)
        if released in state:
            raise WeightsError(f"two tensors become {released}, one of them {name}")
        state[released] = tensor
    if not state:
        raise WeightsError(f"no tensor starts with {PREFIX}: not a training checkpoint")
    for name in ("pos_embed", "patch_embed.proj.weight"):
        if name not in state:
            raise WeightsError(f"missing tensor {PREFIX}{name}")
    state["pos_embed"] = _resize_positions(state["pos_embed"], grid)
    state["patch_embed.proj.weight"] = _resize_kernel(state["patch_embed.proj.weight"])
    return state


def split(state: Mapping[str, Tensor], size: str) -> dict[str, State]:
    """Released names to the contents of the three files, by stem. Raises `WeightsError` for another size's tensors."""
    levels = variant(size).levels
    dimensions = state.get("fusion_block.vq_low.project_in.weight")
    if dimensions is None or dimensions.shape[:1] != (len(levels),):
        found = "missing" if dimensions is None else f"of shape {tuple(dimensions.shape)}"
        wanted = f"size {size} has {len(levels)} levels"
        raise WeightsError(f"tensor fusion_block.vq_low.project_in.weight is {found}, {wanted}")
    embedder: State = {"ori_codebook.weight": codebook(levels).to(dimensions.dtype)}
    for name, tensor in state.items():
        for old, new in _EMBEDDER:
            if name.startswith(old):
                embedder[new + name[len(old) :]] = tensor
    drawer = {**embedder, **{name: tensor for name, tensor in state.items() if name.startswith(_DRAWER)}}
    return {encoder_stem(size): dict(state), "embedder": embedder, "index_drawer": drawer}


def _kept(name: str) -> bool:
    return name.startswith(PREFIX) and not any(word in name for word in _DROPPED)


class _Networks:
    """Encoder, embedder and decoder of one source, float32 on the CPU, so that both sides compute alike."""

    def __init__(self, files: Mapping[str, TensorFile], size: str, heads: int) -> None:
        where, dtype = torch.device("cpu"), torch.float32
        self.encoder = load_encoder(files[encoder_stem(size)], size, heads, dtype, where)
        self.embedder = load_embedder(files["embedder"], size, dtype, where)
        self.decoder = load_decoder(files["index_drawer"], heads, dtype, where)
        # The drawer's copy of the embedder must be whole too, though this project reads it only in need.
        load_embedder(files["index_drawer"], size, dtype, where, drawer=True)


@torch.inference_mode()
def _verify(written: _Networks, direct: _Networks) -> None:
    """Both ways on noise of an odd size, compared byte for byte. Raises `WeightsError` naming what differs."""
    pixels = [np.random.default_rng(0).integers(0, 256, shape, np.uint8) for shape in ((70, 100, 3), (16, 33, 3))]
    packing = pack_images(pixels, FIRST["cpu"])
    sizes = [(int(p.shape[0]), int(p.shape[1])) for p in pixels]
    patches = normalise(patchify(pixels, packing), sizes, packing, torch.float32)

    values = written.encoder.project(patches, packing)
    codes = quantise(values, written.encoder.levels)
    features = written.embedder.features(codes.view(packing.rows, CODES_PER_PATCH).long())
    images = written.decoder(written.embedder, codes.view(packing.rows, CODES_PER_PATCH).long(), packing)

    # The training network knows no codes: it goes on with the rounded values themselves.
    levels = direct.encoder.levels
    reals = direct.encoder.project(patches, packing)
    expected = direct.embedder.project(torch.round(bound(reals, levels)) / torch.tensor([n // 2 for n in levels]))
    latents = direct.decoder.latents(expected, packing)
    for what, ours, theirs in (
        ("values before quantization", [values], [reals]),
        ("features", [features], [expected]),
        ("images", images, [direct.decoder.vae(latent[None])[0] for latent in latents]),
    ):
        for a, b in zip(ours, theirs, strict=True):
            if not torch.equal(a, b):
                raise WeightsError(f"verification failed: {what} differ by up to {(a - b).abs().max().item():.3g}")


def _resize_positions(positions: Tensor, grid: int | None) -> Tensor:
    side = round(positions.shape[1] ** 0.5) if positions.dim() == 3 else 0
    if positions.numel() == 0 or positions.shape[0] != 1 or side * side != positions.shape[1]:
        raise WeightsError(f"tensor pos_embed has shape {tuple(positions.shape)}, expected (1, side * side, width)")
    if grid is None or side == grid:
        return positions
    square = positions.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).reshape(1, grid * grid, -1)


def _resize_kernel(kernel: Tensor) -> Tensor:
    if kernel.dim() != 4 or kernel.numel() == 0:
        raise WeightsError(f"tensor patch_embed.proj.weight has shape {tuple(kernel.shape)}, expected 4 dimensions")
    if kernel.shape[-2:] == (PATCH, PATCH):
        return kernel
    return F.interpolate(kernel, size=(PATCH, PATCH), mode="bicubic", align_corners=False)


def _write(state: State, path: Path) -> None:
    whole: State = {}
    seen: set[int] = set()
    for name, tensor in state.items():
        # A view would drag its whole storage into the file, and of two tensors on one storage safetensors takes none.
        own = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
        own = own and tensor.data_ptr() not in seen
        whole[name] = tensor if own else tensor.clone(memory_format=torch.contiguous_format)
        seen.add(whole[name].data_ptr())
    if path.suffix == ".safetensors":
        save_file(whole, path, metadata={"format": "pt"})
    else:
        torch.save(whole, path)
    path.chmod(0o644)


def _publish(folder: Path, target: Path) -> Path:
    """Move finished files into place: the whole folder at once where there is none yet."""
    if not target.exists():
        folder.chmod(0o755)
        folder.rename(target)
        folder.mkdir()  # for the caller's clean-up
        return target
    for file in sorted(folder.iterdir()):
        file.replace(target / file.name)
    return target


def _refuse_not_finite(states: Mapping[str, State], checkpoint: Path) -> None:
    """Raise `WeightsError` naming a needed tensor with a NaN or infinity: a run that went wrong has no codes."""
    for stem, state in states.items():
        unused = DECODER_UNUSED if stem == "index_drawer" else ENCODER_UNUSED if stem != "embedder" else ()
        for name, tensor in state.items():
            if not name.startswith(unused) and not tensor.isfinite().all():
                raise WeightsError(f"{checkpoint}: tensor {name} of {stem} holds a NaN or an infinity")


def _refuse_mixture(target: Path, size: str, file_format: str) -> None:
    other = {"pth": "safetensors", "safetensors": "pth"}[file_format]
    held = [f"{stem}.{other}" for stem in (encoder_stem(size), "embedder", "index_drawer")]
    found = [name for name in held if (target / name).exists()]
    if found:
        raise WeightsError(f"{target} already holds {', '.join(found)}: two formats of one model would disagree")
