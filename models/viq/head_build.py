"""Making compiled quantization heads: a graph of the head, and the files that hold one.

Every back end but TorchScript begins with the one graph of `torch.export`, whose number of patches and images is
open. Attention and, on CPUs, the matrix products stay single operators in it, the very ones of the eager network.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from viq.errors import InvalidInput, WeightsError
from viq.hardware import multiplies_natively
from viq.head import HeadGraph
from viq.head_file import ENTRY, SUFFIXES, HeadFacts
from viq.packing import Packing
from viq.torch_warnings import quiet_about_torch

if TYPE_CHECKING:
    from viq.encoder import Encoder

INDUCTOR = {"cpp.dynamic_threads": True}
"""Options of torch's compiler: the number of threads is torch's at the time of the call, not of the compilation."""

_HEADERS = "precompile_headers"
_GRIDS = ((3, 5), (8, 8), (2, 9))  # of the pack that a graph is made with; any other fits, too
_MOST_ROWS, _MOST_IMAGES = 2**24, 2**20

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def build(encoder: Encoder, facts: HeadFacts, path: Path) -> None:
    """Write the head of `encoder`, with what the file is to say of itself, to `path`, which appears when it is whole.

    Raises `InvalidInput` for a name that does not end as the format's do, `WeightsError` naming what is missing here
    to build it.
    """
    if facts.format not in SUFFIXES:
        raise InvalidInput(f"format {facts.format!r}; there are {', '.join(SUFFIXES)}")
    if path.suffix != SUFFIXES[facts.format]:
        raise InvalidInput(f"{path}: files of format {facts.format} end with {SUFFIXES[facts.format]}")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        made = Path(folder) / path.name
        if facts.format == "torchscript":
            _torchscript(encoder, facts, made)
        elif facts.format == "aoti":
            _aoti(encoder, facts, made)
        elif facts.format == "onnx":
            from viq.head_onnx import write

            write(exported(encoder), made, facts, masked=False)
        else:
            from viq.head_tensorrt import write_engine

            write_engine(exported(encoder), made, facts)
        os.replace(made, path)  # noqa: PTH105  # replaces on every system


def example(encoder: Encoder) -> Inputs:
    """A pack to make a graph with: what `HeadGraph` is given."""
    weight = encoder.project_in.weight
    packing = Packing.of(_GRIDS, 32)
    x = torch.linspace(-1, 1, packing.rows * weight.shape[1]).view(packing.rows, -1)
    where = packing.on(weight.device)
    return x.to(weight), where.ends, where.longest, encoder.rotations(packing).clone()


@torch.no_grad()
def exported(encoder: Encoder) -> torch.export.ExportedProgram:
    """The head as a graph with any number of rows and images."""
    rows = torch.export.Dim("rows", min=2, max=_MOST_ROWS)
    images = torch.export.Dim("images", min=2, max=_MOST_IMAGES)
    shapes = ({0: rows}, {0: images}, None, {1: rows})
    return torch.export.export(HeadGraph(encoder).eval(), example(encoder), dynamic_shapes=shapes, strict=False)


@torch.no_grad()
def traced_head(encoder: Encoder) -> Any:
    """The head as TorchScript, which needs nothing of this package to run."""
    with quiet_about_torch():
        return torch.jit.trace(HeadGraph(encoder).eval(), example(encoder), check_trace=False)


def compiler_missing(error: BaseException) -> WeightsError:
    """What to tell when torch's compiler fails, most often for want of a C++ compiler."""
    told = str(error).partition("\n")[0]
    return WeightsError(f"torch could not compile the head; on CPUs it needs a C++ compiler (g++): {told}")


def _torchscript(encoder: Encoder, facts: HeadFacts, path: Path) -> None:
    with quiet_about_torch():
        torch.jit.save(traced_head(encoder), str(path), _extra_files={ENTRY: facts.to_json().encode()})


def _aoti(encoder: Encoder, facts: HeadFacts, path: Path) -> None:
    weight = encoder.project_in.weight
    if weight.device.type == "cpu" and weight.dtype != torch.float32 and not multiplies_natively(weight.dtype):
        # There weights are widened as they are used, which torch's compiler does not take ahead of time.
        raise InvalidInput(f"format aoti in {facts.dtype} is not for this CPU; there are torchscript, or float32")
    try:
        with quiet_about_torch():
            from torch._inductor import aoti_compile_and_package, config
            from torch._inductor.exc import CppCompileError, InductorError, InvalidCxxCompiler

            options: dict[str, object] = dict(INDUCTOR)
            if hasattr(config.aot_inductor, _HEADERS):  # a third of the time, for further heads only
                options[f"aot_inductor.{_HEADERS}"] = False
            aoti_compile_and_package(exported(encoder), package_path=str(path), inductor_configs=options)
    except (InductorError, InvalidCxxCompiler, CppCompileError) as error:
        raise compiler_missing(error) from error
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        top = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{top}/{ENTRY}", facts.to_json())
