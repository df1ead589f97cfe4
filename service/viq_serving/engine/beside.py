"""Work beside the event loop that nobody can stop: loading weights, and whatever a driver does meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def beside(work: Callable[[], T]) -> T:
    """Run `work` on a thread of its own that does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # None only beside an error

    def run() -> None:
        result, wrong = None, None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  # whatever it is, the one who waits must hear of it
            wrong = error
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, wrong)

    threading.Thread(target=run, name="viq-loading", daemon=True).start()
    return await done
