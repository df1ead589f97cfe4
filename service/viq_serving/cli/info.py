"""`viq info`: what is loaded."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from viq_serving.cli import options
from viq_serving.cli.backends import connect, load, named
from viq_serving.cli.failures import DONE

HELP = "what is loaded: size, fingerprint, levels, type, device"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("--json", action="store_true", help="print JSON, as the server's /v1/models answers")
    options.add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Print the models; returns the exit code."""
    options.check_model(args)
    rows = _here(args) if args.server is None else _there(args)
    if args.json:
        print(json.dumps({"models": rows}))
        return DONE
    for row in rows:
        print("\n".join(_lines(row)))
    return DONE


def _here(args: argparse.Namespace) -> list[dict[str, Any]]:
    model = load(args, ("encoder", "embedder", "decoder"))
    row: dict[str, Any] = {
        "size": model.size,
        "fingerprint": model.fingerprint,
        "codebook_size": model.codebook_size,
        "levels": list(model.levels),
        "width": model.width,
        "dtype": model.dtype,
        "device": model.device,
        "head": model.head,
        "default": True,
        "weights_root": options.weights_root(args),
    }
    return [{**row, "untrained": True} if model.untrained else row]


def _there(args: argparse.Namespace) -> list[dict[str, Any]]:
    with connect(args) as (client, chosen):
        return [chosen] if args.size else client.models()


def _lines(row: Mapping[str, Any]) -> Sequence[str]:
    default = ", default" if row.get("default") and "limits" in row else ""
    lines = [f"{named(str(row['size']), bool(row.get('untrained')))}{default}"]
    levels = " ".join(map(str, row["levels"]))
    facts = {
        "fingerprint": row["fingerprint"],
        "codebook": f"{row['codebook_size']} codes, levels {levels}",
        "width": row.get("width"),
        "type": row["dtype"],
        "device": row["device"],
        "head": row.get("head"),
        "weights": row.get("weights_root"),
        "limits": ", ".join(f"{name} {value}" for name, value in row.get("limits", {}).items()),
    }
    return [*lines, *(f"  {name:<12} {value}" for name, value in facts.items() if value)]
