"""The page's own arithmetic against that of the package, in the browser that runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.page.driving import Desk, Pixels

from viq.fsq import codebook
from viq_serving.similarity import psnr, ssim

if TYPE_CHECKING:
    from tests.doors.serving import Server


def asked(desk: Desk, module: str, expression: str, *values: Any) -> Any:
    """What `expression` of a module's exports `m` and `values` `v` is."""
    script = f"async v => {{ const m = await import('{desk.url}page/{module}.js'); return {expression}; }}"
    return desk.page.evaluate(script, list(values))


def rgba(pixels: Pixels) -> list[int]:
    return np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]).ravel().tolist()


@pytest.mark.parametrize("shape", [(40, 150), (11, 11), (10, 40)])
def test_likeness_is_that_of_the_service(desk: Desk, server: Server, shape: tuple[int, int]) -> None:
    random = np.random.default_rng(1)
    a = random.integers(0, 256, (*shape, 3), np.uint8)
    b = np.clip(a.astype(int) + random.integers(-30, 31, a.shape), 0, 255).astype(np.uint8)
    desk.visit(server.url)
    sides = [shape[1], shape[0]]
    ours = asked(
        desk,
        "measures",
        "[m.psnr(v[0], v[1]), m.ssim(v[0], v[1], ...v[2]), m.psnr(v[0], v[0])]",
        rgba(a),
        rgba(b),
        sides,
    )
    assert ours[0] == pytest.approx(psnr(a, b), rel=1e-9)
    assert ours[1] == pytest.approx(ssim(a, b), rel=1e-9, nan_ok=True)
    assert ours[2] == np.inf


def test_levels_are_those_of_the_codebook(desk: Desk, server: Server) -> None:
    levels, codes = (8, 8, 8, 5, 5, 5), [0, 1, 7, 8, 511, 512, 40_000, 63_999]
    desk.visit(server.url)
    indices = asked(desk, "codes", "v[0].map(code => m.levelsOf(code, v[1]))", codes, list(levels))
    half = np.array(levels) // 2
    assert np.allclose((np.array(indices) - half) / half, codebook(levels)[codes].numpy())
    middle = asked(desk, "codes", "m.middleCode(v[0])", list(levels))
    assert not codebook(levels)[middle].any()


def test_quantiles_are_those_of_prometheus(desk: Desk, server: Server) -> None:
    """histogram_quantile(0.99, …) of 100 between 0.1 and 0.25, of none, and of one beyond the last bound."""
    bucket = 'x_bucket{method="a",le="%s"} %%d\n'
    text = "# HELP x\n" + "".join(bucket % bound for bound in ("0.1", "0.25", "+Inf"))
    desk.visit(server.url)
    found = asked(
        desk,
        "prometheus",
        "v[1].map(after => m.quantile(0.99, ...[v[0], after].map(text => m.buckets(m.parse(text), 'x'))))",
        text % (5, 5, 5),
        [text % (5, 105, 105), text % (5, 5, 5), text % (5, 5, 6)],
    )
    assert found[0] == pytest.approx(0.1 + 0.99 * 0.15)
    assert np.isnan(found[1])
    assert found[2] == 0.25
    assert asked(desk, "prometheus", "m.sum(m.parse(v[0]), 'y')", 'y{a="1"} 2\ny{a="b\\"}"} 3.5\nz 9') == 5.5
