"""What became of each request, in columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from viq_serving.bench.doors.door import Answer

_NUMBERS = ("picture", "due", "begun", "ended", "sent", "received", "reject", "hint_s")


@dataclass
class Records:
    """One entry a request in each column; times in seconds of the machine's monotonic clock.

    `due` is when it was meant to be sent, `begun` when it was. `hint_s` is NaN where there was none.
    """

    picture: list[int] = field(default_factory=list)
    due: list[float] = field(default_factory=list)
    begun: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    received: list[int] = field(default_factory=list)
    reject: list[bool] = field(default_factory=list)
    hint_s: list[float] = field(default_factory=list)
    kind: list[str] = field(default_factory=list)

    def add(self, picture: int, due: float, begun: float, ended: float, sent: int, answer: Answer) -> None:
        """Add one request and what came of it."""
        self.picture.append(picture)
        self.due.append(due)
        self.begun.append(begun)
        self.ended.append(ended)
        self.sent.append(sent)
        self.received.append(answer.received)
        self.reject.append(answer.reject)
        self.hint_s.append(float("nan") if answer.hint_s is None else answer.hint_s)
        self.kind.append(answer.kind)

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Each column as an array."""
        return {name: np.array(getattr(self, name)) for name in _NUMBERS} | {"kind": np.array(self.kind, dtype=np.str_)}

    def save(self, path: Path) -> None:
        """Write them; `load` reads them."""
        np.savez(path, allow_pickle=False, **self.columns())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as held:
            return cls(**{name: held[name].tolist() for name in (*_NUMBERS, "kind")})

    @classmethod
    def joined(cls, several: Sequence[Records]) -> Self:
        """All of them as one."""
        whole = cls()
        for one in several:
            for name in (*_NUMBERS, "kind"):
                getattr(whole, name).extend(getattr(one, name))
        return whole
