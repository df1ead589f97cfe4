"""Cut the full golden tensors (what the authors' released code computed) down to what the tests read.

    python tests/golden/trim.py FOLDER_OF_GOLDEN_TENSORS

Per size it keeps: every weight that this project reads, except that position rows which no picture's
bilinear resize touches become zero (and so compress away); codes, features and latents of all pictures in
both dtypes; images of the small pictures. `make golden GOLDEN=…` checks the full set.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

HERE = Path(__file__).parent
SMALL = (2, 3, 4)
UNREAD = {"encoder": ("norm.", "attn_pool.", "vae_"), "drawer": ("vae_head.vae.encoder.", "vae_head.vae.quant_conv.")}
Array = npt.NDArray[Any]
Arrays = dict[str, Array]


def trim(golden: Path, size: str) -> None:
    """Write `<size>_weights.npz` and `<size>_expected.npz`, and copy the pictures."""
    folder, pictures = golden / f"converted_{size}", golden / f"expected_{size}"
    listing = json.loads((pictures / "expected.json").read_text())["images"]
    files = {"encoder": f"model_viq_fsq_{size}.pth", "embedder": "embedder.pth", "drawer": "index_drawer.pth"}
    weights: Arrays = {}
    for part, name in files.items():
        for key, tensor in torch.load(folder / name, weights_only=True).items():
            if not key.startswith(UNREAD.get(part, ())):
                weights[f"{part}/{key}"] = tensor.numpy()
    weights["encoder/pos_embed"] = touched(weights["encoder/pos_embed"], [image["grid"] for image in listing])
    for key in [k for k in weights if k.startswith("drawer/") and k.replace("drawer/", "embedder/") in weights]:
        assert np.array_equal(weights[key], weights[key.replace("drawer/", "embedder/")])
        del weights[key]  # the drawer's copy of the embedder is the embedder's
    np.savez_compressed(HERE / f"{size}_weights.npz", allow_pickle=False, **weights)

    expected: Arrays = {}
    for key, tensor in load_file(pictures / "expected.safetensors").items():
        what = key.rsplit(".", 1)[1]
        if what == "image" and int(key.split(".")[1]) not in SMALL:
            continue
        expected[key] = tensor.numpy().astype(np.uint16) if what == "codes" else tensor.float().numpy()
    np.savez_compressed(HERE / f"{size}_expected.npz", allow_pickle=False, **expected)
    for image in listing:
        target = HERE / size
        target.mkdir(exist_ok=True)
        shutil.copyfile(pictures / image["file"], target / image["file"])
    (HERE / size / "pictures.json").write_text(json.dumps(listing) + "\n")


def touched(positions: Array, grids: list[list[int]]) -> Array:
    """The position embedding with rows that no resize to `grids` reads set to zero."""
    side = round(positions.shape[1] ** 0.5)
    mark = torch.zeros(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    # A row is read exactly where the sum of a resize has a gradient; bilinear weights of zero do not matter.
    total = sum(F.interpolate(mark, size=tuple(g), mode="bilinear", align_corners=False).sum() for g in grids)
    total.backward()  # type: ignore[union-attr]
    assert mark.grad is not None
    read = mark.grad.view(-1).numpy() != 0
    kept = positions.copy()
    kept[:, ~read] = 0
    return kept


def digests(golden: Path) -> None:
    """Copy the training checkpoint and write what the released converter makes of it as a digest a tensor."""
    source = golden / "training_4k"
    shutil.copyfile(source / "vision_tower.pth", HERE / "vision_tower_4k.pth")
    table = {}
    for name in ("model_viq_fsq_4k", "embedder", "index_drawer"):
        state = torch.load(source / "expected" / f"{name}.pth", weights_only=True)
        table[name] = {
            key: [str(t.dtype), list(t.shape), hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest()[:16]]
            for key, t in state.items()
        }
    (HERE / "converted_4k.json").write_text(json.dumps(table, indent=0) + "\n")


if __name__ == "__main__":
    for released in ("16k", "64k"):
        trim(Path(sys.argv[1]), released)
    digests(Path(sys.argv[1]))
