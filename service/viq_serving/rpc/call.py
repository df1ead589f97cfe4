"""What a method is told of its request beside the message."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast, get_args

from grpc.aio import ServicerContext

from viq_serving.errors import InvalidInput, ViQError
from viq_serving.exchange import Exchange
from viq_serving.rpc.errors import code_of
from viq_serving.tokenizer import Tokenizer
from viq_serving.types import Caller, ModelInfo, Priority, Results, Terms

Context: TypeAlias = ServicerContext[Any, Any]


@dataclass(slots=True)
class Call:
    """One request under way: what methods are given in place of grpc's context.

    Methods raise domain errors; the envelope turns them into statuses. `expect` is the fingerprint that the caller
    expects, None for any; `size` is that of the request's message in bytes.
    """

    exchange: Exchange
    context: Context
    terms: Terms
    expect: str | None
    size: int = 0

    @classmethod
    def of(
        cls,
        exchange: Exchange,
        context: Context,
        metadata: Mapping[str, str | bytes],
        caller: Caller,
        *,
        stream: bool = False,
    ) -> Call:
        """The call that `metadata` describes; streams are bulk and patient unless it says otherwise.

        Raises `InvalidInput` for a priority that there is not, `Forbidden` for one that is not the caller's.
        """
        usual: Priority = "bulk" if stream else "interactive"
        asked = _priority(metadata.get("viq-priority"))
        exchange.priority = asked or usual  # what was asked is counted also where it is refused
        exchange.priority = caller.lane(asked, usual)
        remaining = context.time_remaining()
        deadline = math.inf if remaining is None else time.monotonic() + remaining
        expect = metadata.get("viq-expect-fingerprint")
        terms = Terms(deadline, exchange.priority, exchange.request_id, stream, caller)
        return cls(exchange, context, terms, None if expect is None else str(expect))

    def pick(self, tokenizer: Tokenizer, size: str | None) -> ModelInfo:
        """The model that answers, held against the caller's expectation and noted for the reply's metadata."""
        model = self.exchange.model = tokenizer.model(size, self.expect)
        return model

    def note(self, results: Results[Any]) -> None:
        """Note for the log what came of the request; one whose every item failed counts as the first one's error."""
        self.exchange.items, self.exchange.timings = len(results.items), results.timings
        first = results.items[0]
        if isinstance(first, ViQError) and all(isinstance(item, ViQError) for item in results.items):
            self.exchange.outcome = code_of(first)


def _priority(given: str | bytes | None) -> Priority | None:
    if given is None:
        return None
    name = str(given).strip().lower()
    if name not in get_args(Priority):
        raise InvalidInput(f"viq-priority is {given!r}; there are {' and '.join(get_args(Priority))}")
    return cast(Priority, name)
