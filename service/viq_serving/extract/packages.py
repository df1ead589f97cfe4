"""Packages that only some extractions need."""

from __future__ import annotations

from typing import Any

from viq_serving.extract.errors import PlaceError


def arrow() -> Any:
    """pyarrow; raises `PlaceError` naming the remedy if it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise PlaceError("Parquet needs pyarrow: pip install 'viq-serving[extract]'") from None
    return pyarrow
