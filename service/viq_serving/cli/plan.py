"""`viq plan`: what images of some sizes would take."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping

from viq.config import CODES_PER_PATCH, grid_of
from viq.cost import encode_cost
from viq.errors import ViQError
from viq_serving.cli import options
from viq_serving.cli.backends import LIMITS, connect
from viq_serving.cli.failures import DONE, Unusable
from viq_serving.images import over_limit

HELP = "grid, patches, codes and cost of images of some sizes; computes nothing"

_COLUMNS = ("size", "grid", "patches", "codes", "cost", "fits")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("sizes", nargs="+", type=_pixels, metavar="WIDTHxHEIGHT", help="in pixels, for example 640x480")
    parser.add_argument("--json", action="store_true", help="print JSON, as the server's /v1/plan answers")
    options.add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Print what each size takes; returns the exit code. Needs no weights, and no torch unless the server does."""
    options.check_model(args)
    if args.server is None:
        rows = [_planned(width, height) for width, height in args.sizes]
    else:
        with connect(args) as (client, model):
            try:
                rows = client.plan(args.sizes, size=str(model["size"]))
            except ViQError as error:
                raise Unusable(str(error)) from None
    if args.json:
        print(json.dumps({"results": rows}))
        return DONE
    table = [_COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(_COLUMNS))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return DONE


def _planned(width: int, height: int) -> dict[str, object]:
    grid, over = grid_of(height, width), over_limit(height, width, LIMITS)
    patches = grid[0] * grid[1]
    row: dict[str, object] = {
        "grid": list(grid),
        "image_size": [height, width],
        "patches": patches,
        "codes": CODES_PER_PATCH * patches,
        "cost": encode_cost(patches),
        "fits": over is None,
    }
    return row if over is None else {**row, "limit": over.partition(":")[0]}


def _cells(row: Mapping[str, object]) -> tuple[str, ...]:
    """One line of the table; the size is width x height, as it was asked for, the grid rows x columns."""
    height, width = _pair(row["image_size"])
    fits = "yes" if row["fits"] else f"no: {row.get('limit', 'over a limit')}"
    rows, columns = _pair(row["grid"])
    return (f"{width}x{height}", f"{rows}x{columns}", str(row["patches"]), str(row["codes"]), str(row["cost"]), fits)


def _pair(value: object) -> tuple[int, int]:
    first, second = value if isinstance(value, list) else (0, 0)
    return int(first), int(second)


def _pixels(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9][0-9]{0,8})[xX×]([1-9][0-9]{0,8})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size, expected WIDTHxHEIGHT in pixels, for example 640x480")
    return int(match[1]), int(match[2])
