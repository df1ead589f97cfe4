"""What may compute the quantization head in the eager network's place: `--head`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from viq.errors import InvalidInput, WeightsError
from viq.fingerprint import device_mode
from viq.hardware import cpu_features
from viq.head import HeadGraph
from viq.head_build import INDUCTOR, compiler_missing, example, exported
from viq.head_file import SUFFIXES, HeadFacts, check_whole, checked_place, chosen, torch_version
from viq.torch_warnings import quiet_about_torch

if TYPE_CHECKING:
    from viq.encoder import Encoder, HeadBackend
    from viq.packing import Packing

HEADS = ("eager", "compile", *SUFFIXES)
"""Values of `--head`: all but the first two are loaded from a file."""


def check_asked(head: str, files: Sequence[str | Path], parts: object) -> None:
    """Raise `InvalidInput` for a head there is not, or one whose files or parts do not go with it."""
    if head not in HEADS:
        raise InvalidInput(f"head {head!r}; there are {', '.join(HEADS)}")
    if files and head not in SUFFIXES:
        raise InvalidInput(f"a head file is for --head {', '.join(SUFFIXES)}, not for {head}")
    if head != "eager" and "encoder" not in parts:  # type: ignore[operator]
        raise InvalidInput(f"head {head} is a part of the encoder, which is not loaded here")


def facts_of(encoder: Encoder, form: str, family: str, size: str) -> HeadFacts:
    """What a head file of `form` for this encoder says of itself."""
    weight = encoder.project_in.weight
    return HeadFacts(
        format=form,
        family=family,
        size=size,
        dtype=str(weight.dtype).removeprefix("torch."),
        device=device_mode(weight.device, weight.dtype, exact=True),
        width=weight.shape[1],
        torch=torch_version(),
        made_with=f"torch {torch.__version__}",
        weights=_weights(encoder),
        cpu=cpu_features() if (form, weight.device.type) == ("aoti", "cpu") else "",
    )


def _weights(encoder: Encoder) -> str:
    """16 hex digits of SHA-256 over names, types, shapes and bytes of the head's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(HeadGraph(encoder).state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def use_head(encoder: Encoder, head: str, files: Sequence[str | Path], family: str, size: str, weights: Path) -> str:
    """Have `head` compute the quantization head of `encoder`; its name with what it runs on, for the fingerprint.

    `files` are head files, of which the one for these weights is taken; `weights` is the folder that these come from.
    Raises `WeightsError` if there is none, or it does not fit or load.
    """
    if head == "eager":
        return head
    if head == "compile":
        encoder.head, name = _Compiled(encoder), head
        return name
    wanted = facts_of(encoder, head, family, size)
    path = chosen([checked_place(file, weights) for file in files], wanted)
    check_whole(path)
    encoder.head, name = _LOADERS[head](path, encoder.project_in.weight.device)
    return name


class _Compiled:
    """`torch.compile` of the exported graph, once for packs of every size. Raises `WeightsError` without a compiler."""

    def __init__(self, encoder: Encoder) -> None:
        # Guards on the number of threads or on gradients would compile again when a batch is small.
        options: dict[str, Any] = {"guard_filter_fn": lambda guards: [g.guard_type != "GLOBAL_STATE" for g in guards]}
        options |= INDUCTOR
        with quiet_about_torch():
            from torch._inductor import config
            from torch._inductor.exc import InductorError

            self._run = torch.compile(exported(encoder).module(), fullgraph=True, options=options)
            try:
                # The compiler takes oneDNN's product only with weights that it may call constant.
                with config.patch(freezing=encoder.project_in.weight.device.type == "cpu"):
                    self._first(encoder)
            except InductorError as error:
                raise compiler_missing(error) from error

    @torch.inference_mode()
    def _first(self, encoder: Encoder) -> None:
        """Compile, with those sizes left open that a pack determines, and no others."""
        x, ends, longest, table = example(encoder)
        for tensor, dim in ((x, 0), (ends, 0), (table, 1)):
            torch._dynamo.mark_dynamic(tensor, dim)
        self._run(x, ends, longest, table)

    def __call__(self, x: Tensor, packing: Packing, table: Tensor) -> Tensor:
        """See `viq.encoder.HeadBackend`."""
        return self._run(x, *packing.on(x.device), table)  # type: ignore[no-any-return]


def _one_at_a_time(run: Callable[..., Any]) -> Callable[[Tensor, Tensor, Tensor, Tensor], Any]:
    # The program's own lock is waited for with the interpreter's held, which attention, being Python, needs.
    lock = Lock()

    def locked(*tensors: Tensor) -> Any:
        with lock:
            return run(*tensors)

    return locked


def _on_tensors(run: Callable[[Tensor, Tensor, Tensor, Tensor], Any]) -> HeadBackend:
    def head(x: Tensor, packing: Packing, table: Tensor) -> Tensor:
        out: Tensor = run(x, *packing.on(x.device), table)
        return out

    return head


def _torchscript(path: Path, device: torch.device) -> tuple[HeadBackend, str]:
    if device.type == "cuda":
        torch._C._jit_set_texpr_fuser_enabled(False)  # it would put other kernels in place after a few calls
    with quiet_about_torch():
        try:
            return _on_tensors(torch.jit.load(str(path), map_location=device)), "torchscript"
        except RuntimeError as error:
            raise WeightsError(f"head file {path}: torch cannot load it ({error})") from None


def _aoti(path: Path, device: torch.device) -> tuple[HeadBackend, str]:
    from torch._inductor import aoti_load_package

    index = device.index or 0 if device.type == "cuda" else -1
    try:
        with quiet_about_torch():
            return _on_tensors(_one_at_a_time(aoti_load_package(str(path), device_index=index))), "aoti"
    except (RuntimeError, OSError) as error:
        raise WeightsError(f"head file {path}: torch cannot load it ({error})") from None


def _onnx(path: Path, device: torch.device) -> tuple[HeadBackend, str]:
    if device.type != "cpu":
        raise WeightsError("head onnx runs on a CPU here; on CUDA there are compile, torchscript, aoti and tensorrt")
    try:
        runtime = import_module("onnxruntime")
    except ImportError:
        raise WeightsError("head onnx needs onnxruntime: pip install 'viq-serving[heads]'") from None
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  # its errors have no common base but this
        raise WeightsError(f"head file {path}: onnxruntime cannot load it ({error})") from None
    names = {one.name for one in session.get_inputs()}

    def run(x: Tensor, ends: Tensor, longest: Tensor, table: Tensor) -> Tensor:
        given = {"rows": x, "ends": ends, "longest": longest, "rotation": table}
        arrays = {name: tensor.numpy() for name, tensor in given.items() if name in names}
        return torch.from_numpy(session.run(None, arrays)[0])

    return _on_tensors(run), f"onnx/onnxruntime-{'.'.join(runtime.__version__.split('.')[:2])}"


def _tensorrt(path: Path, device: torch.device) -> tuple[HeadBackend, str]:
    from viq.head_tensorrt import engine

    run, version = engine(path, device)
    return _on_tensors(run), f"tensorrt/{version}"


_LOADERS = {"torchscript": _torchscript, "aoti": _aoti, "onnx": _onnx, "tensorrt": _tensorrt}
