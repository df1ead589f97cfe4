"""What there is to ask for, as the Open Inference Protocol describes it, in its JSON form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from viq import __version__
from viq_serving.errors import UnknownModel, ViQError
from viq_serving.oip.quoting import quoted
from viq_serving.tokenizer import Tokenizer
from viq_serving.types import Method, ModelInfo

Json = dict[str, object]

# Triton's names. `statistics` and `model_repository` would each promise methods that are not here.
EXTENSIONS = ("binary_tensor_data", "model_configuration", "parameters", "schedule_policy")
PLATFORM = "viq"
WIDTH = 0
"""Stands for the width of a model's features in the shape of a `TensorSpec`."""

_CONFIG_TYPES = {"BYTES": "TYPE_STRING"}  # all others are TYPE_ and the datatype
_INDEX_STATES = {"loading": "LOADING", "ready": "READY", "draining": "UNLOADING"}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that a model takes or gives; -1 is a dimension of any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """One of the three models: a method under its protocol name."""

    name: str
    method: Method
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


_CODES = TensorSpec("codes", "UINT16", (-1,))
_CU_SEQLENS = TensorSpec("cu_seqlens", "INT32", (-1,))
_GRIDS = TensorSpec("grid_hw", "INT32", (-1, 2))
_PIXELS = TensorSpec("image_hw", "INT32", (-1, 2))
_IMAGES = TensorSpec("image", "BYTES", (-1,))
_FEATURES = TensorSpec("features", "FP32", (-1, WIDTH))

MODELS: Mapping[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec("viq-encode", "encode", (_IMAGES,), (_CODES, _CU_SEQLENS, _GRIDS, _PIXELS)),
        ModelSpec("viq-embed", "embed", (_CODES, _GRIDS), (_FEATURES, _CU_SEQLENS)),
        ModelSpec("viq-decode", "decode", (_CODES, _GRIDS, TensorSpec("image_hw", "INT32", (-1, 2), True)), (_IMAGES,)),
    )
}
"""The models by name."""


def find(name: str) -> ModelSpec:
    """The model of that name; raises `UnknownModel`."""
    spec = MODELS.get(name)
    if spec is None:
        raise UnknownModel(f"model {quoted(name)} does not exist; there are {', '.join(MODELS)}")
    return spec


def server_metadata() -> Json:
    """Name, version and extensions of the server."""
    return {"name": "viq-serving", "version": __version__, "extensions": list(EXTENSIONS)}


def model_metadata(tokenizer: Tokenizer, name: str, version: str) -> Json:
    """Versions and tensors of a model; raises `UnknownModel` and `NotReady`."""
    spec, model = find(name), tokenizer.model(version)
    return {
        "name": name,
        "versions": [one.size for one in tokenizer.models()],
        "platform": PLATFORM,
        "inputs": [_described(one, model) for one in spec.inputs],
        "outputs": [_described(one, model) for one in spec.outputs],
    }


def model_config(tokenizer: Tokenizer, name: str, version: str) -> Json:
    """A model as Triton's configuration would describe it; raises `UnknownModel` and `NotReady`."""
    spec, model = find(name), tokenizer.model(version)
    inputs = [
        {**_configured(one, model), "optional": True} if one.optional else _configured(one, model)
        for one in spec.inputs
    ]
    return {
        "name": name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "version_policy": {"all": {}},
        "max_batch_size": 0,
        "input": inputs,
        "output": [_configured(one, model) for one in spec.outputs],
        "model_transaction_policy": {"decoupled": False},
    }


def repository_index(tokenizer: Tokenizer, only_ready: bool) -> Sequence[Json]:
    """Every model and version; before anything is loaded the models without one."""
    if only_ready and tokenizer.state != "ready":
        return []
    state = _INDEX_STATES.get(tokenizer.state, "UNAVAILABLE")
    versions = [model.size for model in tokenizer.models()] or [""]
    return [{"name": name, "version": one, "state": state, "reason": ""} for name in MODELS for one in versions]


def model_ready(tokenizer: Tokenizer, name: str, version: str) -> bool:
    """Whether requests for that model and version are welcome; there being none such is a no."""
    try:
        find(name)
        tokenizer.model(version)
    except ViQError:
        return False
    return tokenizer.state == "ready"


def _described(spec: TensorSpec, model: ModelInfo) -> Json:
    return {"name": spec.name, "datatype": spec.datatype, "shape": _dims(spec, model)}


def _configured(spec: TensorSpec, model: ModelInfo) -> Json:
    data_type = _CONFIG_TYPES.get(spec.datatype, f"TYPE_{spec.datatype}")
    return {"name": spec.name, "data_type": data_type, "dims": _dims(spec, model)}


def _dims(spec: TensorSpec, model: ModelInfo) -> list[int]:
    return [model.width if side == WIDTH else side for side in spec.shape]
