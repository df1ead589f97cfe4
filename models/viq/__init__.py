"""ViQ: images of any resolution to discrete codes, codes to features, codes back to images.

`import viq` and `import viq.codes` import no torch; the network is loaded when it is first named.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from viq.codes import Codes

if TYPE_CHECKING:
    from viq.embedder import Embedder
    from viq.model import ViQ

__all__ = ["Codes", "Embedder", "ViQ"]
__version__ = "0.1.0"

_NETWORK = {"ViQ": "viq.model", "Embedder": "viq.embedder"}


def __getattr__(name: str) -> object:
    if name in _NETWORK:
        return getattr(import_module(_NETWORK[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
