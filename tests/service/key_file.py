"""A file of keys that a test writes and exchanges, and a clock that it moves."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from viq_serving.errors import Unauthenticated
from viq_serving.keys import Keys
from viq_serving.settings import Settings

LONG_AGO = 1_000_000_000


class Clock:
    """Time that passes when the test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_a_second(self) -> None:
        self.now += 1.0


class KeyFile:
    """A file of keys, old enough to be taken as it is."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keys"

    def write(self, text: str | bytes) -> None:
        self.path.write_bytes(text.encode() if isinstance(text, str) else text)
        os.utime(self.path, (LONG_AGO, LONG_AGO))

    def replace(self, text: str) -> None:
        """Put another file in its place at once, as careful writers do."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(text)
        os.utime(fresh, (LONG_AGO, LONG_AGO))
        fresh.replace(self.path)

    def keys(self, clock: Callable[[], float] = Clock()) -> Keys:
        return Keys(Settings.load({"api_keys_file": str(self.path)}), clock)


def knows(keys: Keys, key: str) -> bool:
    try:
        keys.check(f"Bearer {key}")
    except Unauthenticated:
        return False
    return True
