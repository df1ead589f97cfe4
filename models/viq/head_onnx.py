"""The quantization head as ONNX, for any number of patches and images.

Inputs are `rows`, `ends`, `longest` and `rotation`, those of `viq.head.HeadGraph`, the output is `values`.

Attention is written in ONNX's own operators, in one of two ways: a loop over the images, which computes each as if
it were alone, and a mask over the whole pack, which has no loop and takes the square of the pack's rows in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from viq.errors import WeightsError
from viq.head_file import DIGEST, ENTRY, HeadFacts, digest_of
from viq.torch_warnings import quiet_about_torch

INPUTS, OUTPUT = ("rows", "ends", "longest", "rotation"), "values"


def write(program: torch.export.ExportedProgram, path: Path, facts: HeadFacts, *, masked: bool) -> None:
    """Write the exported head; `masked` chooses the form of attention. Raises `WeightsError` without the packages."""
    table: dict[Any, Any] = {torch.ops.viq.attention.default: attention_function(masked=masked)}
    with quiet_about_torch(), _quiet_exporter():
        plain = program.run_decompositions({torch.ops.mkldnn._linear_pointwise.default: _product})
        made = torch.onnx.export(
            plain,
            dynamo=True,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            custom_translation_table=table,
            opset_version=18,
            verbose=False,
        )
    if made is None:
        raise WeightsError("torch made no ONNX of the head")
    made.model.metadata_props[ENTRY] = facts.to_json()
    made.save(str(path), external_data=False)
    seal(path)


def seal(path: Path) -> None:
    """Write the checksum of the model into it: ONNX itself has none."""
    import onnx

    model = onnx.load_model(str(path), load_external_data=False)
    onnx.helper.set_model_props(
        model, {**{one.key: one.value for one in model.metadata_props}, DIGEST: digest_of(model)}
    )
    onnx.save_model(model, str(path))


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's lines about packages that the head does not need."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def attention_function(*, masked: bool) -> Any:
    """`viq.attention` for ONNX, as a function of onnxscript."""
    try:
        from viq.head_onnx_attention import image_by_image, under_mask
    except ImportError as error:
        raise WeightsError(f"ONNX needs onnx and onnxscript: pip install 'viq-serving[heads]' ({error})") from None
    return under_mask if masked else image_by_image


def _product(x: Tensor, weight: Tensor, bias: Tensor, fused: str, scalars: object, algorithm: object) -> Tensor:
    out = F.linear(x, weight, bias)
    return F.gelu(out) if fused == "gelu" else out
