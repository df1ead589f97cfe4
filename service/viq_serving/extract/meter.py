"""How fast a run is and when it will end. Plain numbers, the clock is passed in."""

from __future__ import annotations

from collections import deque

from viq_serving.extract.extraction import Tally

_LOOK_BACK_S = 60.0


class Meter:
    """Rates over the last minute, and over all of the run for the end that is to be expected."""

    def __init__(self, now: float) -> None:
        self._begun = now
        self._marks: deque[tuple[float, int, int]] = deque([(now, 0, 0)])

    def line(self, tally: Tally, total: float | None, now: float) -> str:
        """One line for people."""
        self._marks.append((now, tally.images, tally.patches))
        while len(self._marks) > 2 and now - self._marks[0][0] > _LOOK_BACK_S:
            self._marks.popleft()
        then, images, patches = self._marks[0]
        seconds = max(1e-9, now - then)
        parts = [
            f"{tally.images} images",
            f"{(tally.images - images) / seconds:.1f} images/s",
            f"{(tally.patches - patches) / seconds:.0f} patches/s",
        ]
        if tally.failed:
            parts.append(f"{tally.failed} failed")
        if tally.rejected:
            parts.append(f"{tally.rejected} below the PSNR asked for")
        left_s = self.left_s(tally, total, now)
        if left_s is not None and total:
            parts.append(f"{100 * tally.done / total:.1f} %, {_spoken(left_s)} left")
        return ", ".join(parts)

    def left_s(self, tally: Tally, total: float | None, now: float) -> float | None:
        """Seconds to the expected end, None where nothing is known yet."""
        covered = tally.done - tally.begun_at
        if total is None or covered <= 0:
            return None
        return max(0.0, (total - tally.done) * (now - self._begun) / covered)


def _spoken(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
