"""The steps, in the order in which the next needs what the last settled."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One step: what it asks, what the answer settles, the most seconds, its module beside this one, whose `run` is
    given a record, a device and whether sizes are tiny; and environments that it is run under."""

    letter: str
    name: str
    question: str
    settles: str
    limit_s: float
    module: str
    environments: tuple[dict[str, str], ...] = ({},)


_PLANS = {"TORCH_CUDNN_SDPA_AVOID_RECOMPILE": "1"}
_WORKSPACE = {"CUBLAS_WORKSPACE_CONFIG": ":16:8", "CUBLASLT_WORKSPACE_SIZE": "1"}

STEPS = (
    Step("A", "ceilings", "copy rate, an 8192³ product, each Linear's shape by rows", "the limit, weak shapes, budgets",
         150, "ceilings"),
    Step("B", "attention", "FA2 varlen, flash and cuDNN an image, by N; first call and steady; bits",
         "the backend, and from which N on", 180, "attention", ({}, _PLANS)),
    Step("C", "products", "bits and speed by rows and position, with and without split-K",
         "flags alone, probing and padding, or an own kernel", 150, "products", ({}, _WORKSPACE)),
    Step("D", "strict", "the promise on the full-size network, and what it costs", "the default mode", 200, "strict"),
    Step("E", "end_to_end", "packs, loops of single images, parts, peak memory", "the share of the limit, the ratios",
         320, "end_to_end"),
    Step("F", "small_packs", "CUDA graphs against eager up to 2k patches", "graphs or not", 150, "small_packs"),
    Step("G", "fusion", "what the passes over memory cost, compiled regions", "what to fuse", 200, "fusion"),
    Step("H", "service", "copies beside computing, the engine against the bare model, the decoder by size",
         "the 95 % aim, limits", 200, "service"),
    Step("I", "precision", "float16 and fp8: speed and agreement", "the flags", 120, "precision"),
)  # fmt: skip


def named(text: str) -> list[Step]:
    """The steps of `A-C,F`; raises `ValueError` for one there is not."""
    letters = [step.letter for step in STEPS]
    wanted: set[str] = set()
    for part in text.upper().split(","):
        first, _, last = part.strip().partition("-")
        last = last or first
        if first not in letters or last not in letters or first > last:
            raise ValueError(f"no steps {part!r}: there are {letters[0]} to {letters[-1]}")
        wanted |= set(letters[letters.index(first) : letters.index(last) + 1])
    return [step for step in STEPS if step.letter in wanted]
