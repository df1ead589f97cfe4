"""Who waits for room: in order, and in turns between callers, so that none waits behind all that another has sent."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Line(Generic[T]):
    """Waiting demands; used from one thread only, the event loop's.

    `admit` takes the room for a demand and says whether there was any, `undo` gives it back for one that left at
    the moment it was admitted. `serve` is to be called whenever room is given back.
    """

    def __init__(self, admit: Callable[[T], bool], undo: Callable[[T], None]) -> None:
        self._admit, self._undo = admit, undo
        self._callers: OrderedDict[str, OrderedDict[asyncio.Future[None], T]] = OrderedDict()
        self._serving = False

    def __len__(self) -> int:
        return sum(len(waiting) for waiting in self._callers.values())

    async def wait(self, demand: T, caller: str = "") -> None:
        """Return when `demand` is admitted; who is cancelled meanwhile holds nothing and leaves no hole."""
        if not self._callers and self._admit(demand):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._callers.setdefault(caller, OrderedDict())[turn] = demand
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._undo(demand)
            else:
                self._leave(caller, turn)
            self.serve()
            raise

    def head(self) -> T | None:
        """The demand that is next; None if none waits."""
        while self._callers:
            caller, waiting = next(iter(self._callers.items()))
            turn, demand = next(iter(waiting.items()))
            if not turn.done():
                return demand
            self._leave(caller, turn)
        return None

    def serve(self) -> None:
        """Admit those that are next for as long as there is room."""
        if self._serving:  # `undo` and `admit` may give room back themselves
            return
        self._serving = True
        try:
            while (demand := self.head()) is not None and self._admit(demand):
                caller, waiting = next(iter(self._callers.items()))
                turn = next(iter(waiting))
                self._leave(caller, turn)
                if caller in self._callers:
                    self._callers.move_to_end(caller)
                turn.set_result(None)
        finally:
            self._serving = False

    def _leave(self, caller: str, turn: asyncio.Future[None]) -> None:
        waiting = self._callers.get(caller, OrderedDict())
        waiting.pop(turn, None)
        if not waiting:
            self._callers.pop(caller, None)
