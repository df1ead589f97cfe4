"""Which pictures are worth keeping as codes: each is decoded again and compared with what it was."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from viq.codes import Codes
from viq.errors import ViQError
from viq_serving.similarity import psnr

Pixels = npt.NDArray[np.uint8]


class Decoding(Protocol):
    """What is needed of `viq.ViQ`."""

    def launch_decode(self, codes: Any) -> Any:
        """Hand codes to the device; `results()` are pictures."""


class LowQuality(ViQError):
    """A picture whose codes give back too little of it; `psnr` is in dB."""

    code = "low_quality"

    def __init__(self, psnr: float, least: float) -> None:
        super().__init__(f"what its codes give back has {psnr:.2f} dB, --min-psnr asks for {least:g}")
        self.psnr = psnr


class QualityGate:
    """Refuses pictures whose codes give back less than `least` dB of PSNR, rounded to 0.01 dB.

    Each is decoded alone, so that what became of it does not depend on its company.
    """

    def __init__(self, least: float) -> None:
        self._least = least

    def judged(self, model: Decoding, pixels: Pixels, codes: Codes) -> Codes | LowQuality:
        """`codes`, or why they are not worth it."""
        (decoded,) = model.launch_decode([codes]).results()
        found = round(psnr(pixels, decoded), 2)
        return codes if found >= self._least else LowQuality(found, self._least)
