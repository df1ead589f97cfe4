"""`viq encode`: images to codes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from viq.codes import Codes
from viq.errors import ViQError
from viq_serving.cli import options
from viq_serving.cli.backends import LIMITS, Backend, Pixels, backend
from viq_serving.cli.batches import Batches
from viq_serving.cli.files import jobs_for, read
from viq_serving.extract.quality import QualityGate
from viq_serving.images import decode

HELP = "images to codes: one .npz, or compact .viq, per image"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file")
    options.add_output(parser)
    parser.add_argument(
        "--format", choices=("npz", "viq"), default="npz", help="npz for numpy (default), or the compact viq"
    )
    parser.add_argument(
        "--min-psnr",
        type=options.decibels,
        metavar="DB",
        help="decode each image's codes again, and fail those that give back less than so many dB of PSNR",
    )
    parser.set_defaults(any_fingerprint=False)
    options.add_pixels(parser)
    options.add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Write `<stem>.npz` or `<stem>.viq` for each image; returns the exit code."""
    options.check_model(args)
    jobs = jobs_for(args.images, args.output, f".{args.format}")
    with backend(args, ["encoder"] if args.min_psnr is None else ["encoder", "decoder"]) as there:
        work = Batches(
            "encode",
            lambda job: there.image(read(job.source, LIMITS.max_bytes)),
            lambda images: _encoded(args, there, images),
            lambda codes: codes.npz_bytes() if args.format == "npz" else codes.viq_bytes(),
        )
        return work.run(jobs)


def _encoded(args: argparse.Namespace, there: Backend, images: Sequence[Pixels | bytes]) -> Sequence[Codes | ViQError]:
    """Codes of each image, or why they are not worth keeping."""
    codes = there.encode(images)
    if args.min_psnr is None:
        return codes
    gate = QualityGate(args.min_psnr)
    return [
        gate.judged(_pixels(args, image), one, there.decode([one])[0]) for image, one in zip(images, codes, strict=True)
    ]


def _pixels(args: argparse.Namespace, image: Pixels | bytes) -> Pixels:
    return image if isinstance(image, np.ndarray) else decode(image, LIMITS, exif=args.exif, alpha=args.alpha)
