"""What callers sent, as messages can hold it."""

from __future__ import annotations

_MOST = 100


def quoted(value: object) -> str:
    """`value` as Python writes it, cut short: a name, a number or a shape may be megabytes long."""
    if isinstance(value, (str, bytes, tuple, list)) and len(value) > _MOST:
        value = value[:_MOST]
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= _MOST else f"{text[:_MOST]}…"
