"""`viq build-head`: the quantization head as a file for `--head-file`."""

from __future__ import annotations

import argparse
from pathlib import Path

from viq.errors import InvalidInput, WeightsError
from viq_serving.cli import options
from viq_serving.cli.backends import load
from viq_serving.cli.failures import DONE, Unusable, UsageError
from viq_serving.cli.progress import Progress

HELP = "the quantization head compiled into a file for --head-file"

_SUFFIXES = {"torchscript": ".pt", "aoti": ".pt2", "onnx": ".onnx", "tensorrt": ".engine"}
_EPILOG = """
torchscript: a program that torch runs without this package; aoti: machine code made by torch's compiler (a C++ compiler
is needed here, not where it is loaded); onnx: needs onnx and onnxscript; tensorrt: needs TensorRT and a GPU.

The file serves these weights in this type on this kind of device, with this version of torch, and is refused elsewhere.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.epilog, parser.formatter_class = _EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--format", choices=tuple(_SUFFIXES), required=True, help="what kind of file")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="default: viq-head-SIZE with the format's suffix, here"
    )
    options.add_weights(parser)


def run(args: argparse.Namespace) -> int:
    """Write the file and print what it is for; returns the exit code."""
    args.head = args.head_file = None
    if args.output is not None and not args.output.absolute().parent.is_dir():
        raise UsageError(f"{args.output.parent}: no such folder")
    model = load(args, ("encoder",))
    path = args.output or Path(f"viq-head-{model.size}{_SUFFIXES[args.format]}")
    with Progress("building"):
        try:
            facts = model.build_head(args.format, path)
        except InvalidInput as error:
            raise UsageError(str(error)) from None
        except (WeightsError, OSError) as error:
            raise Unusable(str(error)) from None
    print(f"{path}: {facts.format} for {facts.family} (size {facts.size}), {facts.dtype}, {facts.device}")
    return DONE
