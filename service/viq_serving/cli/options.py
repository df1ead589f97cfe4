"""Options that several subcommands share, spelled and read the same everywhere."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from viq.config import VARIANTS
from viq.pixels import ALPHA_RULES
from viq_serving.cli.failures import UsageError

DTYPES = ("auto", "bfloat16", "float32", "float16", "fp8")
HEADS = ("eager", "compile", "torchscript", "aoti", "onnx", "tensorrt")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Options that say which model computes, and where."""
    group = add_weights(parser)
    group.add_argument(
        "--head",
        choices=HEADS,
        help="what computes the quantization head; default: eager. All but eager and compile need --head-file",
    )
    group.add_argument(
        "--head-file",
        action="append",
        metavar="FILE",
        help="a head made by viq build-head; it is code, which runs as this process. Repeatable: that for the weights "
        "is taken",
    )
    group.add_argument("--server", metavar="URL", help="compute at this server, http://host:port, and not here")


def add_weights(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Options that say which weights are loaded, and where."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--weights-root",
        metavar="DIR|hf:…",
        help="folder holding converted_<size>/, or hf:ORG/REPO[/SUBDIR][@REV]; "
        "default: VIQ_WEIGHTS_ROOT, else the packaged nano",
    )
    group.add_argument("--size", choices=VARIANTS, metavar="S", help=f"one of {', '.join(VARIANTS)}")
    group.add_argument("--device", metavar="D", help="auto, cpu, cuda or cuda:N; default: auto")
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        help="compute type; default: auto, bfloat16 on CUDA, float32 on CPU; fp8: bfloat16 with the trunk's products "
        "in 8 bits, on a CPU emulated and slower",
    )
    return group


def check_model(options: argparse.Namespace) -> None:
    """Raise `UsageError` for options that `--server` takes the meaning from."""
    if options.server is None:
        return
    for name in ("weights_root", "device", "dtype", "head", "head_file"):
        if getattr(options, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} is for computing here, it has no meaning with --server")


def weights_root(options: argparse.Namespace) -> str | None:
    """The weights root of `options`, else of the environment, else None: nano."""
    return options.weights_root or os.environ.get("VIQ_WEIGHTS_ROOT") or None


def add_pixels(parser: argparse.ArgumentParser) -> None:
    """Options that say how an image file becomes pixels."""
    group = parser.add_argument_group("pixels")
    group.add_argument("--no-exif", dest="exif", action="store_false", help="leave the stored orientation")
    group.add_argument(
        "--alpha", choices=ALPHA_RULES, default="white", help="lay transparency over white (default), or drop it"
    )


def add_any_fingerprint(parser: argparse.ArgumentParser) -> None:
    """The option to take codes of other weights."""
    parser.add_argument("--any-fingerprint", action="store_true", help="also take codes that other weights made")


def add_output(parser: argparse.ArgumentParser) -> None:
    """The option that says where results go."""
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="folder for the results, made if missing; default: the current one",
    )


def decibels(text: str) -> float:
    """The value of `--min-psnr`."""
    try:
        least = float(text)
    except ValueError:
        least = 0.0
    if not 0 < least < 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of dB between 0 and 100")
    return least


def key(path: Path) -> str:
    """The one key that a file holds; raises `UsageError` if it holds none or several."""
    try:
        words = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from None
    if len(words) != 1:
        raise UsageError(f"{path} holds {len(words)} words, expected one key")
    return words[0]
