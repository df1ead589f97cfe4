"""Attention within images in ONNX's operators: read by onnxscript, which knows a part of Python.

Symbols as in `viq.attention`: `q`, `k`, `v` are `(rows, H, D)`, `ends` int32 `(sequences + 1,)`. The types are
named for the number of outputs that follows from them; nothing in the functions is for float32 alone.
"""
# mypy: ignore-errors

from onnxscript import FLOAT, INT32, INT64, script
from onnxscript import opset18 as op


@script()
def image_by_image(q: FLOAT[...], k: FLOAT[...], v: FLOAT[...], ends: INT32[...], longest: INT64[...]) -> FLOAT[...]:
    """Each image as if it were alone, one after another."""
    scale = op.Sqrt(op.CastLike(op.Shape(q, start=2, end=3), q))
    images = op.Squeeze(op.Shape(ends)) - 1
    bounds = op.Cast(ends, to=7)
    first = op.Slice(q, [0], [0], [0])
    out = first
    for i in range(images):
        start = op.Gather(bounds, op.Unsqueeze(i, [0]))
        end = op.Gather(bounds, op.Unsqueeze(i + 1, [0]))
        a = op.Transpose(op.Slice(q, start, end, [0]), perm=[1, 0, 2])
        b = op.Transpose(op.Slice(k, start, end, [0]), perm=[1, 2, 0])
        c = op.Transpose(op.Slice(v, start, end, [0]), perm=[1, 0, 2])
        weights = op.Softmax(op.Div(op.MatMul(a, b), scale), axis=-1)
        out = op.Concat(out, op.Transpose(op.MatMul(weights, c), perm=[1, 0, 2]), axis=0)
    return out


@script()
def under_mask(q: FLOAT[...], k: FLOAT[...], v: FLOAT[...], ends: INT32[...], longest: INT64[...]) -> FLOAT[...]:
    """All images at once, with scores across images far below all others."""
    scale = op.Sqrt(op.CastLike(op.Shape(q, start=2, end=3), q))
    numbers = op.Cast(op.Range(0, op.Squeeze(op.Shape(q, start=0, end=1)), 1), to=6)
    passed = op.GreaterOrEqual(op.Unsqueeze(numbers, [1]), op.Unsqueeze(ends, [0]))
    image = op.ReduceSum(op.Cast(passed, to=6), [1], keepdims=0)
    across = op.Not(op.Equal(op.Unsqueeze(image, [1]), op.Unsqueeze(image, [0])))
    a = op.Transpose(q, perm=[1, 0, 2])
    b = op.Transpose(k, perm=[1, 2, 0])
    c = op.Transpose(v, perm=[1, 0, 2])
    scores = op.Div(op.MatMul(a, b), scale) - op.CastLike(across, q) * op.CastLike(30000.0, q)
    return op.Transpose(op.MatMul(op.Softmax(scores, axis=-1), c), perm=[1, 0, 2])
