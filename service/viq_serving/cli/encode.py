"""`viq encode`: images to codes."""

from __future__ import annotations

import argparse

from viq_serving.cli import options
from viq_serving.cli.backends import LIMITS, backend
from viq_serving.cli.batches import Batches
from viq_serving.cli.files import jobs_for, read

HELP = "images to codes: one .npz, or compact .viq, per image"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file")
    options.add_output(parser)
    parser.add_argument(
        "--format", choices=("npz", "viq"), default="npz", help="npz for numpy (default), or the compact viq"
    )
    options.add_pixels(parser)
    options.add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Write `<stem>.npz` or `<stem>.viq` for each image; returns the exit code."""
    options.check_model(args)
    jobs = jobs_for(args.images, args.output, f".{args.format}")
    with backend(args, ["encoder"]) as there:
        work = Batches(
            "encode",
            lambda job: there.image(read(job.source, LIMITS.max_bytes)),
            there.encode,
            lambda codes: codes.npz_bytes() if args.format == "npz" else codes.viq_bytes(),
        )
        return work.run(jobs)
