"""The methods of viq.v1.ViQ: the message to domain types, call the tokenizer, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from viq.codes import Codes
from viq_serving.pb import viq_pb2 as pb
from viq_serving.pb.viq_pb2_grpc import ViQServicer
from viq_serving.rpc import convert, heavy
from viq_serving.rpc.call import Call
from viq_serving.settings import Settings
from viq_serving.tokenizer import Tokenizer
from viq_serving.types import Features, Picture, Results

R = TypeVar("R", Codes, Features, Picture)


class ViQ(ViQServicer):
    """Unary methods as the envelope calls them: they raise domain errors, and reply with a message or its bytes."""

    def __init__(self, tokenizer: Tokenizer, settings: Settings) -> None:
        self._tokenizer, self._settings = tokenizer, settings

    async def Encode(self, request: pb.EncodeRequest, call: Call) -> bytes:  # noqa: N802
        """Images in, codes out."""
        model = call.pick(self._tokenizer, request.size)
        images = await heavy.run(call.size, convert.images_of, request.items, self._tokenizer.max_images)
        results = await self._tokenizer.encode(images, model, call.terms)
        return await self._replied(call, request.items, results, convert.encoded)

    async def Embed(self, request: pb.EmbedRequest, call: Call) -> bytes:  # noqa: N802
        """Images or codes in, features out."""
        model, dtype = call.pick(self._tokenizer, convert.size_of(request)), convert.dtype_of(request.dtype)
        limit, foreign = self._tokenizer.max_images, request.allow_fingerprint_mismatch
        inputs = await heavy.run(call.size, convert.inputs_of, request.items, model.size, limit)
        results = await self._tokenizer.embed(inputs, model, dtype, foreign, call.terms)
        return await self._replied(call, request.items, results, convert.embedded)

    async def Decode(self, request: pb.DecodeRequest, call: Call) -> bytes:  # noqa: N802
        """Codes in, pictures out."""
        model, form = call.pick(self._tokenizer, convert.size_of(request)), convert.format_of(request.format)
        limit, foreign = self._tokenizer.max_images, request.allow_fingerprint_mismatch
        codes = await heavy.run(call.size, convert.codes_of, request.items, model.size, limit)
        results = await self._tokenizer.decode(codes, model, form, foreign, call.terms)
        return await self._replied(call, request.items, results, convert.decoded)

    async def Plan(self, request: pb.PlanRequest, call: Call) -> pb.PlanResponse:  # noqa: N802
        """What images would take, from their sizes alone."""
        model, sides = call.pick(self._tokenizer, request.size), convert.sides_of(request, self._tokenizer.max_images)
        return convert.planned(model, [self._tokenizer.plan(height, width) for height, width in sides])

    async def Info(self, request: pb.InfoRequest, call: Call) -> pb.InfoResponse:  # noqa: N802
        """The loaded sizes, with the limits of this server."""
        call.pick(self._tokenizer, None)
        return convert.info(self._tokenizer.models(), self._settings.limits())

    async def _replied(
        self,
        call: Call,
        items: Sequence[pb.Item],
        results: Results[R],
        form: Callable[[Results[R], Sequence[str], int], bytes],
    ) -> bytes:
        call.note(results)
        keys, limit = [item.key for item in items], self._settings.max_message_bytes
        return await heavy.run(convert.weight_of(results), form, results, keys, limit)
