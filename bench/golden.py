"""Compare with a full folder of golden tensors: what the released code computed.

    python bench/golden.py FOLDER        (or: make golden GOLDEN=FOLDER)

Prints per size and dtype the share of equal codes and the largest errors as shares of the largest value, then
what differs between this project's converter and the released one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from viq import Codes, ViQ
from viq.convert import convert
from viq.packing import Packing


def main() -> None:
    golden = Path(sys.argv[1])
    for size in ("16k", "64k"):
        for dtype, key in (("float32", "fp32"), ("bfloat16", "bf16")):
            print(json.dumps({"size": size, "dtype": dtype, **compare(golden, size, dtype, key)}))
    print(json.dumps({"converter": converter(golden / "training_4k")}))


@torch.inference_mode()
def compare(golden: Path, size: str, dtype: str, key: str) -> dict[str, object]:
    """Codes from the pictures; features, latents and images each from the golden tensors before them."""
    folder = golden / f"expected_{size}"
    expected = load_file(folder / "expected.safetensors")
    listing = json.loads((folder / "expected.json").read_text())["images"]
    model = ViQ.from_pretrained(golden, size, device="cpu", dtype=dtype)
    encoded = model.encode([Image.open(folder / entry["file"]) for entry in listing])
    equal = total = 0
    errors = {"features": 0.0, "latent": 0.0, "image": 0.0}
    for k, codes in enumerate(encoded):
        theirs = {what: expected[f"{key}.{k}.{what}"] for what in ("codes", *errors)}
        equal += int((torch.from_numpy(codes.flat.astype("int32")) == theirs["codes"]).sum())
        total += codes.flat.size
        released = Codes.from_flat(theirs["codes"].numpy(), codes.grid, size)
        packing = Packing.of([codes.grid], model.row_multiple)
        indices = packing.pad(torch.from_numpy(released.array.reshape(-1, 4).astype("int64")))
        ours = {
            "features": model.embed([released])[0],
            "latent": model.decoder.latents(model.embedder.features(indices), packing)[0],
            "image": picture(model, theirs["latent"]),
        }
        for what, tensor in ours.items():
            errors[what] = max(errors[what], error(tensor, theirs[what]))
    return {"codes_equal": equal, "codes": total, **{f"{what}_error": value for what, value in errors.items()}}


def picture(model: ViQ, latent: Tensor) -> Tensor:
    """The VAE's image of a golden latent, in the latent's own dtype."""
    vae = model.decoder.vae
    computing = vae.conv_in.weight.dtype
    image: Tensor = vae.to(latent.dtype)(latent[None])[0]
    vae.to(computing)
    return image


def error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference as a share of the largest value."""
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())


def converter(training: Path) -> dict[str, object]:
    """Tensors of the converted files that are not bit-equal to the released converter's."""
    with TemporaryDirectory() as scratch:
        folder = convert(training / "vision_tower.pth", "4k", Path(scratch), num_heads=4, verify=True)
        compared, different = 0, []
        for name in ("model_viq_fsq_4k", "embedder", "index_drawer"):
            ours, theirs = (torch.load(f / f"{name}.pth", weights_only=True) for f in (folder, training / "expected"))
            compared += len(theirs)
            different += [
                f"{name}:{key}"
                for key in ours.keys() | theirs.keys()
                if key not in ours or key not in theirs or not torch.equal(ours[key], theirs[key])
            ]
    return {"tensors": compared, "different": different}


if __name__ == "__main__":
    main()
