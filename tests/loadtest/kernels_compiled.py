"""Compile the steps' kernels for a Hopper GPU, without one, for widths of the network; tell what each takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from loadtest.gpu import kernels
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

ROWS = (1, 7, 128, 1024)  # Triton by itself would compile anew for 1, and for multiples of 16


class NoCard:
    """The driver of a Hopper GPU that is not there."""

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def used(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and bytes of its stack and local memory: where what finds no register would be."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    numbers = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", told))
    return {"registers": int(numbers["REG"]), "spilled": int(numbers["STACK"]) + int(numbers["LOCAL"])}


def main() -> None:
    """Print a row for each kernel that was compiled."""
    driver.set_active(NoCard())
    launch, compiled = JITFunction.run, list[tuple[str, float, Any]]()

    def compile_only(self: Any, *arguments: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        kernel = launch(self, *arguments, **{**options, "warmup": True})
        if all(kernel is not one for _, _, one in compiled):
            compiled.append((self.__name__, time.perf_counter() - begun, kernel))
        return kernel

    JITFunction.run = compile_only

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.bfloat16)

    for rows in ROWS:
        for inner, out in ((768, 1536), (1536, 16), (256, 768)):
            for descriptors in (False, True):
                for gelu in (False, True):
                    kernels.linear(zeros(rows, inner), zeros(out, inner), zeros(out), gelu, descriptors)
        kernels.rotate(zeros(rows, 4, 3, 256).unbind(2)[1], zeros(2, rows, 4, 128))
        kernels.add_norm(zeros(rows, 1536), zeros(rows, 1536), zeros(1536), zeros(1536), 1e-6)
    found = [
        {
            "name": name, "seconds": round(took, 1), "shared": kernel.metadata.shared,
            "wgmma": "wgmma.mma_async" in kernel.asm["ptx"], **used(kernel.asm["cubin"]),
        }
        for name, took, kernel in compiled
    ]  # fmt: skip
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
