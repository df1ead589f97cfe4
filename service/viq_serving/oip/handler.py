"""What an inference means: tensors to a call of the tokenizer, and its results to tensors."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from viq.codes import Codes
from viq.config import CODES_PER_PATCH
from viq_serving.errors import InvalidInput, TooLarge, ViQError
from viq_serving.exchange import Exchange
from viq_serving.oip.metadata import ModelSpec, find
from viq_serving.oip.options import FEATURE_DTYPES, Options
from viq_serving.oip.packed import ends, of_image, pack, unpack
from viq_serving.oip.quoting import quoted
from viq_serving.oip.tensors import HEAVY_BYTES, NUMBERS, InferRequest, InferResponse, Output, Tensor
from viq_serving.tokenizer import Tokenizer
from viq_serving.types import ImageFile, ModelInfo, Results, Terms

T = TypeVar("T")

TERMS = Terms()


async def infer(
    tokenizer: Tokenizer,
    request: InferRequest,
    exchange: Exchange,
    terms: Terms = TERMS,
    expect: str | None = None,
    max_reply_bytes: float = math.inf,
) -> InferResponse:
    """Do what `request` asks. `terms` and `expect` are what came beside it, which its parameters may narrow.

    A request fails whole, with the error of the first image that failed, and with `TooLarge`, if possible before
    anything is computed, if its outputs are over `max_reply_bytes`. Fills `exchange` as things become known.
    """
    spec = find(request.model)
    exchange.method = spec.method
    model = exchange.model = tokenizer.model(request.version, expect)
    options = Options.of(spec.method, request.parameters)
    terms = _narrowed(terms, options, exchange)
    exchange.priority = terms.priority
    tokenizer.model(request.version, options.expect_fingerprint)
    inputs, wanted = _inputs(spec, request.inputs), _wanted(spec, request.outputs)
    asked = _Inference(tokenizer, model, inputs, options, terms, exchange, max_reply_bytes)
    outputs = {output.name: output for output in await getattr(asked, spec.method)()}
    parameters = {"fingerprint": model.fingerprint, "request_id": exchange.request_id}
    response = InferResponse(request.model, model.size, request.id, parameters, [outputs[name] for name in wanted])
    asked.refuse_reply_of(response.bytes_held)
    return response


@dataclass(frozen=True)
class _Inference:
    """One request whose names are all known. Each method is that of the tokenizer, on tensors."""

    tokenizer: Tokenizer
    model: ModelInfo
    inputs: Mapping[str, Tensor]
    options: Options
    terms: Terms
    exchange: Exchange
    max_reply_bytes: float

    async def encode(self) -> list[Output]:
        tensor = self.inputs["image"]
        self._refuse_images(tensor.count)
        files = await self._off_loop(tensor.heavy, tensor.strings)
        images = [ImageFile(one, self.options.pixels) for one in files]
        return pack(self._whole(await self.tokenizer.encode(images, self.model, self.terms)))

    async def embed(self) -> list[Output]:
        codes, datatype = await self._codes(), self.options.features_datatype
        patches = sum(one.flat.size for one in codes) // CODES_PER_PATCH
        self.refuse_reply_of(patches * self.model.width * NUMBERS[datatype].itemsize)
        dtype, foreign = FEATURE_DTYPES[datatype], self.options.any_fingerprint
        results = self._whole(await self.tokenizer.embed(codes, self.model, dtype, foreign, self.terms))
        arrays = [one.array for one in results]
        heavy = sum(array.nbytes for array in arrays) > HEAVY_BYTES
        features = await self._off_loop(heavy, lambda: np.concatenate(arrays))
        return [Output("features", datatype, features), ends([len(array) for array in arrays])]

    async def decode(self) -> list[Output]:
        codes, foreign = await self._codes(), self.options.any_fingerprint
        results = self._whole(await self.tokenizer.decode(codes, self.model, "png", foreign, self.terms))
        return [Output("image", "BYTES", [one.data for one in results])]

    def refuse_reply_of(self, length: int) -> None:
        """Raise `TooLarge` for outputs of `length` bytes that are over the limit."""
        if length > self.max_reply_bytes:
            raise TooLarge(
                f"outputs of {length} bytes, the limit (max_message_bytes) is {self.max_reply_bytes}: "
                "ask for fewer images at a time, or for features_dtype FP16"
            )

    async def _codes(self) -> list[Codes]:
        self._refuse_images(self.inputs["grid_hw"].count // 2)
        fingerprint, max_patches = self.options.fingerprint, self.tokenizer.limits.max_patches
        heavy = any(tensor.heavy for tensor in self.inputs.values())
        return await self._off_loop(heavy, lambda: unpack(self.inputs, self.model.size, fingerprint, max_patches))

    def _refuse_images(self, images: int) -> None:
        if images > self.tokenizer.max_images:
            raise TooLarge(f"{images} images in one request, the limit is {self.tokenizer.max_images}")
        self.exchange.items = images

    def _whole(self, results: Results[T]) -> list[T]:
        """All results; raises the error of the first image that has one."""
        self.exchange.timings = results.timings
        good: list[T] = []
        for index, item in enumerate(results.items):
            if isinstance(item, ViQError):
                raise of_image(index, item)
            good.append(item)
        return good

    @staticmethod
    async def _off_loop(heavy: bool, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work) if heavy else work()


def _inputs(spec: ModelSpec, given: Sequence[Tensor]) -> Mapping[str, Tensor]:
    """The inputs by name, each of its datatype and rank; raises `InvalidInput`."""
    known = {one.name: one for one in spec.inputs}
    inputs: dict[str, Tensor] = {}
    for tensor in given:
        if tensor.name not in known:
            raise InvalidInput(f"unknown input {quoted(tensor.name)}; {spec.name} has {', '.join(known)}")
        if tensor.name in inputs:
            raise InvalidInput(f"input {tensor.name} is given twice")
        expected = known[tensor.name]
        if tensor.datatype != expected.datatype:
            raise InvalidInput(f"input {tensor.name} is {quoted(tensor.datatype)}, expected {expected.datatype}")
        if not _fits(tensor.shape, expected.shape):
            shape = quoted(tensor.shape)
            raise InvalidInput(f"input {tensor.name} has shape {shape}, expected {list(expected.shape)}")
        inputs[tensor.name] = tensor
    missing = [name for name, one in known.items() if name not in inputs and not one.optional]
    if missing:
        raise InvalidInput(f"{spec.name} needs input {' and '.join(missing)}")
    return inputs


def _fits(shape: Sequence[int], expected: Sequence[int]) -> bool:
    return len(shape) == len(expected) and all(one in (-1, side) for side, one in zip(shape, expected, strict=True))


def _wanted(spec: ModelSpec, names: Sequence[str]) -> Sequence[str]:
    """The outputs to answer, as they were asked; raises `InvalidInput`."""
    known, wanted = [one.name for one in spec.outputs], list[str]()
    for name in names:
        if name not in known:
            raise InvalidInput(f"unknown output {quoted(name)}; {spec.name} has {', '.join(known)}")
        if name in wanted:
            raise InvalidInput(f"output {name!r} is asked for twice")
        wanted.append(name)
    return wanted or known


def _narrowed(terms: Terms, options: Options, exchange: Exchange) -> Terms:
    """`terms` with what the parameters say; a timeout runs from the request's beginning.

    Raises `Forbidden` for a priority that is not the caller's.
    """
    deadline = min(terms.deadline, time.monotonic() - exchange.seconds() + options.timeout_s)
    if options.priority is not None:
        exchange.priority = options.priority
        terms.caller.permit(options.priority)
    return replace(
        terms, deadline=deadline, priority=options.priority or terms.priority, request_id=exchange.request_id
    )
