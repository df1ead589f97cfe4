"""The quantization head as a TensorRT engine. None of this has been run yet: it needs TensorRT and a GPU.

An engine file is an archive with what `viq.head_file` reads and the engine itself, which fits one kind of GPU and
one version of TensorRT.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from viq.errors import InvalidInput, WeightsError
from viq.head_file import ENTRY, HeadFacts
from viq.head_onnx import INPUTS, OUTPUT, write

_ENGINE = "engine.plan"
_LEAST_ROWS, MOST_ROWS = 32, 16_384
"""Rows of a pack that an engine takes: the most are those of the largest image and batch, by the service's defaults."""


def write_engine(program: torch.export.ExportedProgram, path: Path, facts: HeadFacts) -> None:
    """Build and write an engine for packs of up to `MOST_ROWS` rows. Raises `WeightsError` naming what is missing."""
    trt = _tensorrt()
    network_file = path.with_suffix(".onnx")
    write(program, network_file, facts, masked=True)
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(network_file.read_bytes()):
        told = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise WeightsError(f"TensorRT {trt.__version__} cannot read the head: {told}")
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for i in range(network.num_inputs):
        given = network.get_input(i)
        profile.set_shape(given.name, *shapes_of(given.name, tuple(given.shape)))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise WeightsError(f"TensorRT {trt.__version__} made no engine of the head; its log says why")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(ENTRY, facts.to_json())
        archive.writestr(_ENGINE, bytes(plan))


def engine(path: Path, device: torch.device) -> tuple[Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], str]:
    """What computes the head by the engine file `path`, and TensorRT's version. Raises `WeightsError`."""
    trt = _tensorrt()
    with zipfile.ZipFile(path) as archive:
        plan = archive.read(_ENGINE)
    with torch.cuda.device(device):
        loaded = trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(plan)
    if loaded is None:
        raise WeightsError(f"head file {path}: TensorRT {trt.__version__} cannot load it; its log says why")
    context = loaded.create_execution_context()
    held = {loaded.get_tensor_name(i) for i in range(loaded.num_io_tensors)}
    lock = Lock()  # replicas of one device share the context
    most = loaded.get_tensor_profile_shape(INPUTS[0], 0)[2][0]
    unused = torch.ones(1, dtype=torch.int64, device=device)  # attention under a mask has no use for the longest

    def run(x: Tensor, ends: Tensor, longest: Tensor, table: Tensor) -> Tensor:
        if x.shape[0] > most:
            raise InvalidInput(
                f"a pack of {x.shape[0]} patches is over the {most} that the TensorRT head is for: "
                "--max-batch-patches and --max-patches of the service can be set so"
            )
        given = {name: t.contiguous() for name, t in zip(INPUTS, (x, ends, unused, table), strict=True) if name in held}
        with lock:
            for name, tensor in given.items():
                if not context.set_input_shape(name, tuple(tensor.shape)):
                    raise InvalidInput(f"{name} of shape {tuple(tensor.shape)} is none that the TensorRT head is for")
                context.set_tensor_address(name, tensor.data_ptr())
            out = x.new_empty(tuple(context.get_tensor_shape(OUTPUT)))
            context.set_tensor_address(OUTPUT, out.data_ptr())
            if not context.execute_async_v3(torch.cuda.current_stream(x.device).cuda_stream):
                raise RuntimeError("TensorRT did not run the head")
        return out

    return run, ".".join(trt.__version__.split(".")[:2])


def _tensorrt() -> Any:
    try:
        trt = import_module("tensorrt")
    except ImportError:
        raise WeightsError("head tensorrt needs TensorRT, which is not installed here: pip install tensorrt") from None
    if not torch.cuda.is_available():
        raise WeightsError("head tensorrt needs an NVIDIA GPU: torch finds no CUDA device here")
    return trt


def shapes_of(name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Least, usual and greatest shape of an input, whose open dimension is -1.

    The most images are those of one patch each, what fills a pack up among them.
    """
    sizes = (2, 65, MOST_ROWS + 1) if name == INPUTS[1] else (_LEAST_ROWS, 2048, MOST_ROWS)
    return tuple(tuple(size if dim < 0 else dim for dim in shape) for size in sizes)
