"""Which of the forms a reply has suits the caller's Accept header best (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request

from viq_serving.errors import NotAcceptable


def choose(request: Request, offers: Sequence[str]) -> str:
    """The offer of highest quality, then the one named most exactly, then the first; raises `NotAcceptable`."""
    accept = ", ".join(request.headers.getlist("accept")) or "*/*"
    ranges = [_parsed(part) for part in accept.split(",") if part.strip()]
    rated = [(*_rating(offer, ranges), -index, offer) for index, offer in enumerate(offers)]
    quality, _, _, best = max(rated)
    if quality <= 0:
        raise NotAcceptable(f"Accept is {accept!r}; there are {', '.join(offers)}")
    return best


def _parsed(text: str) -> tuple[str, float]:
    kind, *parameters = (part.strip().lower() for part in text.split(";"))
    quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
    try:
        return kind, min(max(float(quality), 0.0), 1.0)
    except ValueError:
        return kind, 0.0


def _rating(offer: str, ranges: Sequence[tuple[str, float]]) -> tuple[float, int]:
    """Quality of `offer` under its most exact range, and how exact that range is (0 to 2, -1 for none)."""
    patterns = ("*/*", offer.partition("/")[0] + "/*", offer)
    matches = [(patterns.index(kind), quality) for kind, quality in ranges if kind in patterns]
    exactness, quality = max(matches, default=(-1, 0.0))
    return quality, exactness
