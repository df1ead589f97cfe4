"""A replica in a process of its own: its models compute there, and here stand others in for them.

Threads of one process share one interpreter, which each operation of a forward needs for a moment: where images are
small and other threads take requests, that costs a quarter of what a CPU could compute, unless TorchScript computes
them (`viq.scripted`). A process has its own, and what kills it kills one replica. What is exchanged is pickled, by and
for this project's own processes only.

Two sockets lead to the child: one for work, and one that tells it, even while it computes, that the parent is gone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from multiprocessing.connection import Connection, Pipe
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from viq import errors
from viq.hardware import device_named
from viq.launched import Launched
from viq_serving.engine.fresh_thread import FreshThread
from viq_serving.engine.memory import free_memory, out_of_memory
from viq_serving.errors import InvalidInput, ViQError
from viq_serving.heap import give_freed_memory_back
from viq_serving.types import ModelInfo

if TYPE_CHECKING:
    from viq.model import ViQ

    Model = Union[ViQ, "ChildModel"]  # noqa: UP007  # at this line there is none yet
    """What the engine computes with."""

_ERRORS = {kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ViQError)}


class ChildModel:
    """Stands in for a model of a child process: has its facts, and launches there."""

    def __init__(self, facts: ModelInfo, child: Child) -> None:
        self.size, self.fingerprint, self.family = facts.size, facts.fingerprint, facts.family
        self.levels, self.codebook_size, self.width = facts.levels, facts.codebook_size, facts.width
        self.dtype, self.device, self.untrained = facts.dtype, facts.device, facts.untrained
        self._child = child

    def close(self) -> None:
        """End the process that computes for it, and for others of the same replica."""
        self._child.close()

    def launch_encode(self, images: Sequence[Any]) -> Launched[Any]:
        """As `ViQ.launch_encode`; on return all is computed."""
        return self._child.launch("encode", self.size, images)

    def launch_embed(self, codes: Sequence[Any]) -> Launched[Any]:
        """As `ViQ.launch_embed`."""
        return self._child.launch("embed", self.size, codes)

    def launch_decode(self, codes: Sequence[Any]) -> Launched[Any]:
        """As `ViQ.launch_decode`."""
        return self._child.launch("decode", self.size, codes)


class ProcessEnded(RuntimeError):
    """The process of a replica is gone, and with it whatever it was computing."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"process {pid} of a replica ended")


class Child:
    """A process that loads models and computes what it is sent, one batch at a time."""

    def __init__(self, asked: Sequence[Mapping[str, Any]]) -> None:
        """Begin to load; `asked` are arguments of `ViQ.from_pretrained`, a model each."""
        self._work, work = Pipe()
        self._life, life = Pipe()
        fds = work.fileno(), life.fileno()
        # -P: modules are not looked for in whatever folder the service was started in.
        command = [sys.executable, "-P", "-c", _PROGRAM, *map(str, fds), json.dumps(list(asked))]
        with work, life:
            self.process = subprocess.Popen(  # noqa: S603  # our own module, no shell
                command, pass_fds=fds, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )

    def models(self) -> list[ChildModel]:
        """Wait until it has loaded; raises what loading raised."""
        return [ChildModel(facts, self) for facts in self._answer()]

    def launch(self, method: str, size: str, items: Sequence[Any]) -> Launched[Any]:
        """Have a batch computed with as many threads as this one would use; raises what failed.

        Raises `ProcessEnded` if the process is gone.
        """
        try:
            self._work.send((method, size, torch.get_num_threads(), items))
        except OSError as error:
            raise ProcessEnded(self.process.pid) from error
        transfer_s, results = self._answer()
        return Launched(transfer_s, lambda: [_unpacked(one) for one in results])

    def close(self) -> None:
        """End the process, whatever it does; a thread that waits for its answer hears so."""
        self.process.kill()
        self.process.wait()

    def _answer(self) -> Any:
        try:
            done, answer = self._work.recv()
        except (EOFError, OSError) as error:
            raise ProcessEnded(self.process.pid) from error
        if done:
            return answer
        code, text = answer
        if code == _MEMORY:
            raise MemoryError(text)
        raise _ERRORS[code](text) if code in _ERRORS else RuntimeError(text)


_IDLE_S = 60.0  # without work, before freed memory goes back to the system
_MEMORY = "out_of_memory"
_PROGRAM = f"""
from viq_serving.heap import keep_freed_memory
from viq_serving.openmp import spin_briefly
from viq_serving.turns import wait_for_turns
spin_briefly()
keep_freed_memory()
wait_for_turns()
from {__name__} import main
main()
"""


def in_processes(asked: Sequence[Mapping[str, Any]], device: str, count: int) -> list[ChildModel]:
    """Models as `asked` for in each of `count` processes, those of a process one after another.

    Raises `InvalidInput` unless `device` is a CPU, and what loading raised.
    """
    if device_named(device).type != "cpu":
        raise InvalidInput(f"replicas in processes of their own are for a CPU, the device is {device_named(device)}")
    children, models = [Child([{**one, "device": "cpu"} for one in asked]) for _ in range(count)], list[ChildModel]()
    try:
        for child in children:
            models += child.models()
    except BaseException:
        for child in children:
            child.close()
        raise
    return models


def main() -> None:
    """The child: load, then compute until the parent hangs up."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal sends them to all; the parent still has to drain
        signal.signal(number, signal.SIG_IGN)
    work, life, asked = Connection(int(sys.argv[1])), Connection(int(sys.argv[2])), json.loads(sys.argv[3])
    threading.Thread(target=_end_with_parent, args=(life,), daemon=True).start()
    try:
        models = _loaded(asked)
    except Exception as error:  # noqa: BLE001  # the parent tells
        work.send((False, _told(error)))
        return
    work.send((True, [_facts(model) for model in models.values()]))
    used, fresh = True, FreshThread()
    while True:
        if used and not work.poll(_IDLE_S):
            give_freed_memory_back()
            used = False
        try:
            method, size, threads, items = work.recv()
        except EOFError:
            return
        used = True
        work.send(_computed(fresh, getattr(models[size], f"launch_{method}"), threads, items))


def _end_with_parent(life: Connection) -> None:
    life.poll(None)  # nothing is ever sent: it is the other end that closes
    os._exit(0)


def _loaded(asked: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    from viq.model import ViQ

    models = [ViQ.from_pretrained(**one) for one in asked]
    for model in models:
        model.script_small_packs()
    return {model.size: model for model in models}


def _facts(model: ViQ) -> ModelInfo:
    names = [one.name for one in fields(ModelInfo) if one.name not in ("levels", "replicas")]
    return ModelInfo(levels=tuple(model.levels), **{name: getattr(model, name) for name in names})


def _computed(fresh: FreshThread, launch: Any, threads: int, items: Sequence[Any]) -> tuple[bool, Any]:
    def launch_here() -> Launched[Any]:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        return launch(items)  # type: ignore[no-any-return]

    try:
        launched = fresh.do(launch_here)
        return True, (launched.transfer_s, [_packed(one) for one in launched.results()])
    except Exception as error:  # noqa: BLE001  # whatever it is, it is looked at by the one who asked
        told = _told(error)
    if told[0] == _MEMORY:
        free_memory()
    return False, told


def _packed(result: Any) -> Any:
    # By itself: torch would pass a tensor on as a file that both processes hold open.
    return _Values(str(result.dtype), result.view(torch.uint8).numpy()) if isinstance(result, Tensor) else result


def _unpacked(result: Any) -> Any:
    if not isinstance(result, _Values):
        return result
    dtype: torch.dtype = getattr(torch, result.dtype.removeprefix("torch."))
    return torch.from_numpy(result.data).view(dtype)


@dataclass(frozen=True)
class _Values:
    """A tensor on its way: numpy has no bfloat16."""

    dtype: str
    data: npt.NDArray[np.uint8]


def _told(error: Exception) -> tuple[str, str]:
    if out_of_memory(error):
        return _MEMORY, str(error)
    if isinstance(error, ViQError):
        return error.code, str(error)
    return "", f"{type(error).__name__}: {error}"
