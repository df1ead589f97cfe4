"""The engine in this process as a door of the load generator: the way of a request without a transport."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from viq.codes import Codes
from viq.errors import ViQError
from viq_serving.bench.doors.door import Answer
from viq_serving.bench.pictures import PictureFile
from viq_serving.errors import Overloaded
from viq_serving.tokenizer import TERMS, Tokenizer
from viq_serving.types import ImageFile


class EngineDoor:
    """Encodes through a tokenizer that is loaded, files being decoded as the service decodes them."""

    def __init__(self, tokenizer: Tokenizer, files: Sequence[PictureFile]) -> None:
        self._tokenizer, self._files = tokenizer, files
        self._terms = replace(TERMS, patient=False)

    async def open(self) -> None:
        """Nothing: it is loaded."""

    async def ask(self, index: int) -> Answer:
        """Encode picture `index`."""
        try:
            model = self._tokenizer.model()
            results = await self._tokenizer.encode([ImageFile(self._files[index].data)], model, self._terms)
        except Overloaded as error:
            return Answer("overloaded", reject=True, hint_s=error.retry_after_s)
        except ViQError as error:
            return Answer(error.code)
        except asyncio.CancelledError:
            raise
        (codes,) = results.items
        return Answer("", content=codes) if isinstance(codes, Codes) else Answer(codes.code)

    def codes_of(self, answer: Answer) -> bytes:
        """The codes of an answer."""
        if not isinstance(answer.content, Codes):
            raise ValueError("no codes")
        return answer.content.to_bytes()

    def sent_bytes(self, index: int) -> int:
        """Bytes of the file of picture `index`."""
        return len(self._files[index].data)

    async def close(self) -> None:
        """Nothing: whoever loaded it closes it."""
