"""The methods of viq.v1.ViQ: messages to domain types, call the tokenizer, and back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from viq.codes import Codes
from viq_serving.pb import viq_pb2 as pb
from viq_serving.pb.viq_pb2_grpc import ViQServicer
from viq_serving.rpc import convert, heavy, replies
from viq_serving.rpc.call import Call
from viq_serving.rpc.stream import Stream, Work
from viq_serving.settings import Settings
from viq_serving.tokenizer import Tokenizer
from viq_serving.types import Features, ImageFile, Picture, Results

R = TypeVar("R", Codes, Features, Picture)

# What a patch becomes, in bytes: 4 codes of 2, features of the model's width, 16x16 pixels of 3.
_CODES, _NUMBER, _PIXELS = 8, {"float32": 4, "float16": 2, "bfloat16": 2}, 768


class ViQ(ViQServicer):
    """The methods as the envelope calls them: they raise domain errors, and unary ones reply with a message."""

    def __init__(self, tokenizer: Tokenizer, settings: Settings) -> None:
        self._tokenizer, self._settings = tokenizer, settings

    async def Encode(self, request: pb.EncodeRequest, call: Call) -> bytes:  # noqa: N802
        """Images in, codes out."""
        model = call.pick(self._tokenizer, request.size)
        images = await heavy.run(call.size, convert.images_of, request.items, self._tokenizer.max_images)
        results = await self._tokenizer.encode(images, model, call.terms)
        return await self._replied(call, request.items, results, replies.encoded)

    async def Embed(self, request: pb.EmbedRequest, call: Call) -> bytes:  # noqa: N802
        """Images or codes in, features out."""
        size, dtype = convert.size_of(request.size, request.items), convert.dtype_of(request.dtype)
        model = call.pick(self._tokenizer, size)
        limit, foreign = self._tokenizer.max_images, request.allow_fingerprint_mismatch
        inputs = await heavy.run(call.size, convert.inputs_of, request.items, model.size, limit)
        results = await self._tokenizer.embed(inputs, model, dtype, foreign, call.terms)
        return await self._replied(call, request.items, results, replies.embedded)

    async def Decode(self, request: pb.DecodeRequest, call: Call) -> bytes:  # noqa: N802
        """Codes in, pictures out."""
        size, form = convert.size_of(request.size, request.items), convert.format_of(request.format)
        model = call.pick(self._tokenizer, size)
        limit, foreign = self._tokenizer.max_images, request.allow_fingerprint_mismatch
        codes = await heavy.run(call.size, convert.codes_of, request.items, model.size, limit)
        results = await self._tokenizer.decode(codes, model, form, foreign, call.terms)
        return await self._replied(call, request.items, results, replies.decoded)

    async def EncodeStream(self, stream: Stream, call: Call) -> None:  # noqa: N802
        """Images in, codes out, many in flight."""
        asked = await stream.first()
        model = call.pick(self._tokenizer, asked.options.size)

        def compute(image: ImageFile) -> Awaitable[Results[Codes]]:
            return self._tokenizer.encode([image], model, call.terms)

        await stream.run(Work(pb.EncodeStreamResponse, convert.image_of, compute, _CODES))

    async def EmbedStream(self, stream: Stream, call: Call) -> None:  # noqa: N802
        """Images or codes in, features out, many in flight."""
        asked = await stream.first()
        options, dtype = asked.options, convert.dtype_of(asked.options.dtype)
        foreign = options.allow_fingerprint_mismatch
        model = call.pick(self._tokenizer, convert.size_of(options.size, asked.items))

        def compute(one: ImageFile | Codes) -> Awaitable[Results[Features]]:
            return self._tokenizer.embed([one], model, dtype, foreign, call.terms)

        content, width = partial(convert.input_of, size=model.size), model.width * _NUMBER[dtype]
        await stream.run(Work(pb.EmbedStreamResponse, content, compute, width))

    async def DecodeStream(self, stream: Stream, call: Call) -> None:  # noqa: N802
        """Codes in, pictures out, many in flight."""
        asked = await stream.first()
        options, form = asked.options, convert.format_of(asked.options.format)
        foreign = options.allow_fingerprint_mismatch
        model = call.pick(self._tokenizer, convert.size_of(options.size, asked.items))

        def compute(one: Codes) -> Awaitable[Results[Picture]]:
            return self._tokenizer.decode([one], model, form, foreign, call.terms)

        content = partial(convert.one_codes_of, size=model.size)
        await stream.run(Work(pb.DecodeStreamResponse, content, compute, _PIXELS))

    async def Plan(self, request: pb.PlanRequest, call: Call) -> pb.PlanResponse:  # noqa: N802
        """What images would take, from their sizes alone."""
        model, sides = call.pick(self._tokenizer, request.size), convert.sides_of(request, self._tokenizer.max_images)
        return replies.planned(model, [self._tokenizer.plan(height, width) for height, width in sides])

    async def Info(self, request: pb.InfoRequest, call: Call) -> pb.InfoResponse:  # noqa: N802
        """The loaded sizes, with the limits of this server."""
        call.pick(self._tokenizer, None)
        return replies.info(self._tokenizer.models(), self._settings.limits())

    async def _replied(
        self,
        call: Call,
        items: Sequence[pb.Item],
        results: Results[R],
        form: Callable[[Results[R], Sequence[str], int], bytes],
    ) -> bytes:
        call.note(results)
        keys, limit = [item.key for item in items], self._settings.max_message_bytes
        return await heavy.run(replies.weight_of(results.items), form, results, keys, limit)
