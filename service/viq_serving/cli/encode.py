"""`viq encode`: images to codes."""

from __future__ import annotations

import argparse

from viq_serving.cli import options
from viq_serving.cli.backends import LIMITS, backend
from viq_serving.cli.batches import Batches
from viq_serving.cli.files import jobs_for, read

HELP = "images to codes: one .npz per image"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file")
    options.add_output(parser)
    options.add_pixels(parser)
    options.add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Write `<stem>.npz` for each image; returns the exit code."""
    options.check_model(args)
    jobs = jobs_for(args.images, args.output, ".npz")
    with backend(args, ["encoder"]) as there:
        work = Batches(
            "encode",
            lambda job: there.image(read(job.source, LIMITS.max_bytes)),
            there.encode,
            lambda codes: codes.npz_bytes(),
        )
        return work.run(jobs)
