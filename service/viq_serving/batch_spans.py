"""Batches of the engine as the traces tell of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from viq_serving.engine.jobs import Answers
from viq_serving.engine.work import Entry
from viq_serving.tracing import Batch, Part, Trace, Traces, harmless


def teller(traces: Traces) -> Callable[[Answers, int], None]:
    """What tells `traces` of entries that are answered, given them and what a full batch costs.

    To be called on the event loop before any who waits for them goes on: its span would end without its batch.
    """

    def tell(answers: Answers, full: int) -> None:
        with harmless():
            done = [(entry, answer) for entry, answer in answers if answer.compute_s]
            mine: dict[Trace, list[Entry]] = {}
            for entry, _ in done:
                if isinstance(entry.request.trace, Trace):
                    mine.setdefault(entry.request.trace, []).append(entry)
            if mine:
                batch = _batch(done, full)
                traces.computed(batch, [(trace, _part(batch, entries)) for trace, entries in mine.items()])

    return tell


def _batch(done: Answers, full: int) -> Batch:
    entries, answer = [entry for entry, _ in done], done[0][1]
    return Batch(
        method=entries[0].flow.method,
        size=entries[0].flow.size,
        images=len(entries),
        patches=sum(entry.patches for entry in entries),
        fill=sum(entry.cost for entry in entries) / full,
        device=answer.device,
        begun=answer.begun,
        transfer_s=answer.transfer_s,
        compute_s=answer.compute_s,
    )


def _part(batch: Batch, entries: Sequence[Entry]) -> Part:
    return Part(
        method=batch.method,
        images=len(entries),
        patches=sum(entry.patches for entry in entries),
        # What is embedded or decoded needs no preparation, or had it before it was encoded.
        prepared_from=entries[0].request.asked if batch.method == "encode" else None,
        queued=max(entry.queued for entry in entries),
        begun=batch.begun,
        transfer_s=batch.transfer_s,
        compute_s=batch.compute_s,
    )
