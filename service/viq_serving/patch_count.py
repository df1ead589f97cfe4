"""How many patches each input has, by its header or grid, before any pixel is decoded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

from viq.codes import Codes
from viq_serving.errors import Internal, InvalidInput, NotReady, TooLarge, ViQError
from viq_serving.images import ImageLimits, claimed_patches, over_limit, probe
from viq_serving.products import or_error
from viq_serving.types import ImageFile, ModelInfo, Priority


class PatchCount:
    """Counts patches within limits; files whose first bytes do not tell are opened on a thread of their lane."""

    def __init__(self, limits: ImageLimits) -> None:
        self._limits, self._ended = limits, False
        # Beside the pool: to be refused must not wait behind what is decoded there, nor anybody behind a flood of bulk.
        self._headers = {lane: ThreadPoolExecutor(1, thread_name_prefix="viq-headers") for lane in get_args(Priority)}

    def shutdown(self, *, wait: bool) -> None:
        """Open no more files; to be called on the event loop."""
        self._ended = True
        for thread in self._headers.values():
            thread.shutdown(wait=wait, cancel_futures=True)

    def claimed(self, item: ImageFile | Codes) -> int:
        """Patches of `item` as far as its first bytes tell at once, else 0; never more than may be. Raises nothing."""
        if isinstance(item, Codes):
            return item.grid[0] * item.grid[1]
        try:
            return claimed_patches(item.data, self._limits) or 0
        except ViQError:
            return 0

    async def of(
        self, inputs: Sequence[ImageFile | Codes | ViQError], model: ModelInfo, lane: Priority
    ) -> list[int | ViQError]:
        """Patches of each input, or what is wrong with it. Raises `NotReady` for files to open once shut down."""
        counted = [self._easily(one, model) for one in inputs]
        unsure = {i: one for i, one in enumerate(inputs) if counted[i] is None and isinstance(one, ImageFile)}
        if unsure:
            if self._ended:
                raise NotReady("the service has stopped")
            opened = await asyncio.get_running_loop().run_in_executor(
                self._headers[lane], lambda: [or_error(self._probed, one) for one in unsure.values()]
            )
            for index, patches in zip(unsure, opened, strict=True):
                counted[index] = patches
        return [Internal() if patches is None else patches for patches in counted]

    def _easily(self, one: ImageFile | Codes | ViQError, model: ModelInfo) -> int | ViQError | None:
        if isinstance(one, ViQError):
            return one
        try:
            if isinstance(one, ImageFile):
                return claimed_patches(one.data, self._limits)
            self._check_codes(one, model)
        except ViQError as error:
            return error.bare()
        return one.grid[0] * one.grid[1]

    def _probed(self, image: ImageFile) -> int:
        return probe(image.data, self._limits, exif=False).patches

    def _check_codes(self, codes: Codes, model: ModelInfo) -> None:
        if codes.size != model.size:
            raise InvalidInput(f"codes are of size {codes.size}, the size asked is {model.label}")
        over = over_limit(*codes.image_size, self._limits)
        if over is not None:
            raise TooLarge(f"image of the codes is over {over}")
