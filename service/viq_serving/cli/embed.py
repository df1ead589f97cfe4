"""`viq embed`: codes or images to features."""

from __future__ import annotations

import argparse
import io

import numpy as np
import numpy.typing as npt

from viq.code_file import MAGIC
from viq.codes import MAX_NPZ_BYTES, Codes
from viq_serving.cli import options
from viq_serving.cli.backends import LIMITS, Pixels, backend
from viq_serving.cli.batches import Batches
from viq_serving.cli.files import Job, head, jobs_for, read

HELP = "codes or images to features: one .npy of (h*w, C) per file"

_CODES = (b"PK\x03\x04", MAGIC)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("inputs", nargs="+", metavar="CODES|IMAGE", help="file of codes or image")
    options.add_output(parser)
    options.add_pixels(parser)
    options.add_any_fingerprint(parser)
    options.add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Write `<stem>.npy`, float32 `(h*w, C)`, for each input; returns the exit code."""
    options.check_model(args)
    jobs = jobs_for(args.inputs, args.output, ".npy")
    images = any(head(job.source) not in _CODES for job in jobs)
    with backend(args, ["encoder", "embedder"] if images else ["embedder"]) as there:

        def input_of(job: Job) -> tuple[Codes | Pixels | bytes, int]:
            if head(job.source) not in _CODES:
                return there.image(read(job.source, LIMITS.max_bytes))
            codes = Codes.from_file(read(job.source, MAX_NPZ_BYTES))
            return codes, codes.grid[0] * codes.grid[1]

        return Batches("embed", input_of, there.embed, _npy).run(jobs)


def _npy(features: npt.NDArray[np.float32]) -> bytes:
    file = io.BytesIO()
    np.save(file, features, allow_pickle=False)
    return file.getvalue()
