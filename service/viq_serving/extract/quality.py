"""Which pictures are worth keeping as codes: each is decoded again and compared with what it was."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from viq.codes import Codes
from viq.errors import ViQError
from viq_serving.similarity import psnr

Pixels = npt.NDArray[np.uint8]


class LowQuality(ViQError):
    """A picture whose codes give back too little of it; `psnr` is in dB."""

    code = "low_quality"

    def __init__(self, psnr: float, least: float) -> None:
        super().__init__(f"what its codes give back has {psnr:.2f} dB, --min-psnr asks for {least:g}")
        self.psnr = psnr


class QualityGate:
    """Refuses pictures whose codes give back less than `least` dB of PSNR, rounded to 0.01 dB.

    What is decoded for it is decoded so that it does not depend on its company: alone, or by a service.
    """

    def __init__(self, least: float) -> None:
        self._least = least

    def judged(self, pixels: Pixels, codes: Codes, decoded: Pixels) -> Codes | LowQuality:
        """`codes`, or why they are not worth it; `decoded` is what they give back."""
        found = round(psnr(pixels, decoded), 2)
        return codes if found >= self._least else LowQuality(found, self._least)
