"""A client that loses nothing: what a stream leaves unanswered goes first in the next one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from viq_serving.pb import viq_pb2 as pb
from viq_serving.pb.viq_pb2_grpc import ViQStub

AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""How a stream ends that the client did not end itself. The latter is what a proxy may make of it."""

_LOOK_S, _PAUSE_S = 0.05, 0.1


class Sending:
    """Items `0`, `1`, … to be encoded, for as long as there are `more`, through as many streams as it takes.

    At most `at_once` are unanswered at a time. `ends` is how each stream ended, `doubled` counts keys that were
    answered although nobody waited for them.
    """

    def __init__(self, address: str, image: Callable[[int], bytes], more: Callable[[], bool], at_once: int) -> None:
        self.answers: dict[int, pb.Result] = {}
        self.ends: list[tuple[grpc.StatusCode, str]] = []
        self.doubled = self.sent = 0
        self.error: BaseException | None = None
        self._address, self._image, self._more, self._at_once = address, image, more, at_once
        self._unanswered: set[int] = set()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def finish(self, timeout_s: float) -> None:
        """Wait until all that was sent is answered; raises what went wrong."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"{len(self._unanswered)} keys are unanswered; ends: {self.ends[-5:]}"
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            with grpc.insecure_channel(self._address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
                while self._unanswered or self._more():
                    self._stream(ViQStub(channel))
        except BaseException as error:  # noqa: BLE001  # told by `finish`
            self.error = error

    def _stream(self, stub: Any) -> None:
        room, ended = threading.Semaphore(self._at_once), threading.Event()
        call = stub.EncodeStream(self._requests(room, ended))
        try:
            for message in call:
                for result in message.results:
                    self._answered(result)
                    room.release()
        except grpc.RpcError:
            if call.code() not in AGAIN:
                raise
            ended.wait(_PAUSE_S)  # there may be nobody to connect to at the moment
        finally:
            ended.set()
            self.ends.append((call.code(), call.details()))

    def _requests(self, room: threading.Semaphore, ended: threading.Event) -> Iterator[pb.EncodeStreamRequest]:
        again = deque(sorted(self._unanswered))
        while again or self._more():
            while not room.acquire(timeout=_LOOK_S):
                if ended.is_set():
                    return
            if ended.is_set():
                return
            if again:
                key = again.popleft()
            else:
                key, self.sent = self.sent, self.sent + 1
                self._unanswered.add(key)
            yield pb.EncodeStreamRequest(items=[pb.Item(key=str(key), image=self._image(key))])

    def _answered(self, result: pb.Result) -> None:
        key = int(result.key)
        if key not in self._unanswered:
            self.doubled += 1
            return
        self._unanswered.discard(key)
        self.answers[key] = result
