"""`viq decode`: codes to pictures."""

from __future__ import annotations

import argparse

from viq.codes import MAX_NPZ_BYTES, Codes
from viq_serving.cli import options
from viq_serving.cli.backends import backend
from viq_serving.cli.batches import Batches
from viq_serving.cli.files import Job, jobs_for, read
from viq_serving.images import encode_picture

HELP = "codes to pictures: one per file"

_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("codes", nargs="+", metavar="CODES", help=".npz or .viq file written by viq encode")
    options.add_output(parser)
    parser.add_argument("--format", choices=_SUFFIXES, default="png", help="of the pictures; default: png")
    # `viq encode cat.png && viq decode cat.npz` must not cost anyone the original picture.
    parser.add_argument("--overwrite", action="store_true", help="replace pictures that exist; otherwise refused")
    options.add_any_fingerprint(parser)
    options.add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Write `<stem>.png` (or `.jpg`, `.webp`) for each file of codes; returns the exit code."""
    options.check_model(args)
    jobs = jobs_for(args.codes, args.output, _SUFFIXES[args.format], keep=not args.overwrite)
    with backend(args, ["decoder"]) as there:
        return Batches("decode", _codes, there.decode, lambda pixels: encode_picture(pixels, args.format)).run(jobs)


def _codes(job: Job) -> tuple[Codes, int]:
    codes = Codes.from_file(read(job.source, MAX_NPZ_BYTES))
    return codes, codes.grid[0] * codes.grid[1]
