"""A progress bar for whatever takes longer than a second, on a terminal only."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

from tqdm import tqdm

_PATIENCE_S = 1.0


class Progress:
    """A bar on stderr, for `total` steps or none known; use it in a `with` block."""

    def __init__(self, doing: str, total: int | None = None) -> None:
        tqdm.monitor_interval = 0
        self._began = time.monotonic()
        shown = sys.stderr.isatty()
        self._bar = tqdm(
            desc=doing,
            total=total,
            unit="file",
            file=sys.stderr,
            delay=_PATIENCE_S,
            leave=False,
            disable=not shown,
            bar_format=None if total else "{desc}[{elapsed}]",
        )
        self._over = threading.Event()
        # The bar draws itself only when a step ends, and one step may take minutes.
        self._heart = threading.Thread(target=self._beat, daemon=True) if shown else None

    def _beat(self) -> None:
        while not self._over.wait(_PATIENCE_S):
            self._bar.refresh()

    def advance(self, steps: int = 1) -> None:
        """Count finished steps."""
        self._bar.update(steps)

    def tell(self, doing: str) -> None:
        """Change what the bar says is being done."""
        self._bar.set_description(doing, refresh=False)

    def print(self, line: str) -> None:
        """A line on stderr that the bar does not run into."""
        if time.monotonic() - self._began < _PATIENCE_S:
            print(line, file=sys.stderr)  # tqdm would draw a bar that is not due yet
        else:
            tqdm.write(line, file=sys.stderr)

    def __enter__(self) -> Progress:
        if self._heart is not None:
            self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._heart is not None:
            self._heart.join()
        self._bar.close()
