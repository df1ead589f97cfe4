"""Warnings that torch's own code sets off, which nobody who calls this package can mend."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_KNOWN = (
    (r"`torch\.jit\.", DeprecationWarning),  # torch 2.13 deprecates TorchScript, and its compiler imports it
    (r"`isinstance\(treespec, LeafSpec\)`", FutureWarning),
)


@contextmanager
def quiet_about_torch() -> Iterator[None]:
    """Ignore those warnings and no others for a while."""
    with warnings.catch_warnings():
        for message, category in _KNOWN:
            warnings.filterwarnings("ignore", message, category)
        yield
