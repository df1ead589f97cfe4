"""Run under `TRITON_INTERPRET=1`: Triton's interpreter with products whose rows are alike; then the module named.

NumPy's BLAS multiplies a tile by kernels that, on some CPUs, sum a row in another order where it lies elsewhere.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

import numpy as np
from triton import language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def multiply_rows_alike() -> None:
    """Have the interpreter multiply each row of a tile by itself."""

    def product(self: Any, a: Any, b: Any, added: Any, *others: Any) -> Any:
        assert {a.dtype.scalar, b.dtype.scalar} <= {tl.float16, tl.float32}
        rows = np.ascontiguousarray(a.data, np.float32)[:, None]
        return TensorHandle(np.matmul(rows, b.data.astype(np.float32))[:, 0] + added.data, added.dtype.scalar)

    InterpreterBuilder.create_dot = product


if __name__ == "__main__":
    multiply_rows_alike()
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
