"""`viq convert`: a training checkpoint to the files that are loaded."""

from __future__ import annotations

import argparse
from pathlib import Path

from viq.config import VARIANTS
from viq.errors import InvalidInput, WeightsError
from viq_serving.cli.failures import DONE, Unusable, UsageError, require
from viq_serving.cli.progress import Progress

HELP = "a training checkpoint to a weights root"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("checkpoint", type=Path, metavar="VISION_TOWER.pth", help="checkpoint of a training run")
    parser.add_argument("--size", required=True, choices=VARIANTS, metavar="S", help=f"one of {', '.join(VARIANTS)}")
    parser.add_argument(
        "--num-heads", type=_heads, default=16, metavar="N", help="attention heads of the trunk; default: 16"
    )
    parser.add_argument("--format", choices=("pth", "safetensors"), default="pth", help="of the files; default: pth")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="WEIGHTS_ROOT", help="folder to make converted_<size>/ in"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare encode, embed and decode through the written files with the checkpoint, byte for byte",
    )


def run(args: argparse.Namespace) -> int:
    """Write `converted_<size>/` and print where; returns the exit code."""
    require("torch", "safetensors")
    with Progress("convert") as progress:
        from viq.convert import convert

        try:
            folder = convert(
                args.checkpoint,
                args.size,
                args.output,
                num_heads=args.num_heads,
                file_format=args.format,
                verify=args.verify,
                progress=progress.tell,
            )
        except InvalidInput as error:
            raise UsageError(str(error)) from None
        except (WeightsError, OSError) as error:
            raise Unusable(str(error)) from None
    print(f"{folder} (verified)" if args.verify else folder)
    return DONE


def _heads(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of heads")
    return int(text)
