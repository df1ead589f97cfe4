"""Where in its life the service is, and whoever wants to know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from viq_serving.metrics import Metrics

State = Literal["loading", "ready", "draining", "stopping", "lost"]


class Life:
    """The state; requests are answered while it is "ready" or "draining"."""

    def __init__(self, metrics: Metrics) -> None:
        self.state: State = "loading"
        self._ready = metrics.ready
        self._listeners: list[Callable[[State], None]] = []

    def become(self, state: State) -> None:
        """Change the state, from which "lost" is no way back."""
        if self.state == "lost":
            return
        self.state = state
        self._ready.set(state == "ready")
        for listener in self._listeners:
            listener(state)

    def listen(self, listener: Callable[[State], None]) -> None:
        """Tell `listener` the state, now and whenever it changes."""
        self._listeners.append(listener)
        listener(self.state)
