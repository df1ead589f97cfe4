"""`viq extract`: many images to shards of codes."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viq.errors import InvalidInput, ViQError
from viq_serving.cli import options
from viq_serving.cli.backends import LIMITS
from viq_serving.cli.encodings import EncodingModel, encoding_of, note
from viq_serving.cli.failures import DONE, SOME_FAILED, Unusable, UsageError
from viq_serving.cli.progress import Progress
from viq_serving.extract.errors import OutputMismatch
from viq_serving.extract.meter import Meter
from viq_serving.extract.output import FAILURES, MANIFEST, REJECTED, Output, Run, shard_name
from viq_serving.extract.sources import Pictures, Reading, Source, names_file, source_of

if TYPE_CHECKING:
    from viq_serving.extract.cluster import ClusterExtraction
    from viq_serving.extract.extraction import Extraction, Tally

HELP = "many images to shards of codes, resumable; or, after the word verify, proof of what was extracted"

_EPILOG = """
SOURCE: image files, folders, patterns ('photos/**/*.jpg'), tar shards in WebDataset form ('set-{000000..000127}.tar'),
or Parquet files with image bytes; local, or any address that fsspec knows (s3://, gs:// …).

Run the same command again to go on after an interruption of any kind: finished shards stay, and the result is the same.
--device may name several, cuda:0,cuda:1; they must give equal codes, that is be of one kind.
`viq extract verify OUT [SOURCE…]` checks all checksums and encodes a sample of the images again.
"""

_DRAW_EVERY_S = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.epilog, parser.formatter_class = _EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="where images come from, see below")
    parser.add_argument("-o", "--output", metavar="OUT", help="folder for the shards, made if missing; may be remote")
    parser.add_argument(
        "--format", choices=("webdataset", "parquet"), default="webdataset", help="form of shards; default: webdataset"
    )
    parser.add_argument(
        "--shard-items",
        type=_positive,
        default=10_000,
        metavar="N",
        help="images of the source a shard; default: 10000",
    )
    parser.add_argument(
        "--fields",
        metavar="A,B",
        help="what travels along: members of a tar, columns of Parquet, or suffixes of files beside the image, "
        "such as txt,json; 'none' for nothing; default: all, but none beside image files",
    )
    parser.add_argument("--image-field", metavar="NAME", help="member or column that holds the image, if not plain")
    parser.add_argument("--key-field", metavar="NAME", help="column that holds the key; default: key, __key__ or id")
    parser.add_argument(
        "--part", type=_part, default=(0, 1), metavar="I/N", help="do only every Nth shard, from the Ith on (0/N first)"
    )
    parser.add_argument(
        "--report-every",
        type=_seconds,
        default=60.0,
        metavar="S",
        help="seconds between lines where there is no terminal",
    )
    parser.add_argument(
        "--min-psnr",
        type=options.decibels,
        metavar="DB",
        help="decode each image's codes again, and leave out those that give back less than so many dB of PSNR: "
        "rejected.jsonl names them; takes as long again",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="compute on the Ray cluster at this address (host:6379, auto, local …), one actor a device; sources, OUT "
        "and weights must be where all nodes reach them",
    )
    parser.add_argument("--sample", type=_positive, default=256, metavar="N", help="images that verify encodes again")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, another sample")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="file that holds the server's key")
    options.add_pixels(parser)
    options.add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Extract, or verify; returns the exit code."""
    options.check_model(args)
    if args.api_key_file is not None and args.server is None:
        raise UsageError("--api-key-file needs --server")
    if args.ray is not None and (args.server is not None or args.part != (0, 1) or "," in (args.device or "")):
        raise UsageError("--ray takes the devices of its cluster: no --server, no --part, and no list of devices")
    try:
        if args.output is None:
            if args.sources[0] != "verify" or len(args.sources) < 2:
                raise UsageError("-o OUT is needed")
            if args.ray is not None:
                raise UsageError("verify reads here, not with --ray")
            return _verify(args, args.sources[1], args.sources[2:])
        shard = f"{args.output.rstrip('/')}/{shard_name(args.format, 0)}"
        if names_file(args.sources, shard):
            raise UsageError(f"the next run would take {shard} for a source: write to another folder")
        return _extract(args) if args.ray is None else _extract_on_ray(args)
    except OutputMismatch as error:
        raise Unusable(str(error)) from None
    except InvalidInput as error:
        raise UsageError(str(error)) from None
    except ViQError as error:
        raise Unusable(str(error)) from None


def _extract(args: argparse.Namespace) -> int:
    from viq_serving.extract.extraction import Extraction

    source = source_of(args.sources, _reading(args.fields, args.image_field, args.key_field))
    (part, parts), output = args.part, Output(args.output)
    begun = output.begun()
    expected = None if begun is None else begun.fingerprint
    with output.opened(f"{part}-{parts}"), encoding_of(args, expected) as (model, encoding):
        run_ = output.begin(_run_of(args, model))
        extraction = Extraction(source, output, run_, part=part, parts=parts)
        with _shown(extraction, source, args.report_every):
            manifest = extraction.run(encoding)
    return _conclude(args.output, extraction.tally, manifest)


def _extract_on_ray(args: argparse.Namespace) -> int:
    from viq_serving.extract import cluster

    reading = _reading(args.fields, args.image_field, args.key_field)
    sources, output = [_absolute(one) for one in args.sources], Output(_absolute(args.output))
    weights, lock = options.weights_root(args), "0-1"  # that of a run without --part
    job = cluster.Job(
        sources=sources,
        reading=reading,
        output=output.address,
        lock=lock,
        weights_root=None if weights is None else weights if weights.startswith("hf:") else _absolute(weights),
        size=args.size,
        device=args.device or "auto",
        dtype=args.dtype or "auto",
        exif=args.exif,
        alpha=args.alpha,
        min_psnr=args.min_psnr,
        limits=LIMITS,
        head=args.head or "eager",
        head_file=[_absolute(one) for one in args.head_file or ()],
    )
    source = source_of(sources, reading)
    with output.opened(lock), cluster.connected(args.ray):
        facts = cluster.facts(job)
        note(facts.size, facts.untrained)
        run_ = output.begin(_run_of(args, EncodingModel(facts.fingerprint, facts.size, LIMITS)))
        extraction = cluster.ClusterExtraction(source, output, run_)
        with _shown(extraction, extraction, args.report_every):
            manifest = extraction.run(job)
    return _conclude(args.output, extraction.tally, manifest)


def _run_of(args: argparse.Namespace, model: EncodingModel) -> Run:
    return Run(
        fingerprint=model.fingerprint,
        size=model.size,
        format=args.format,
        shard_items=args.shard_items,
        exif=args.exif,
        alpha=args.alpha,
        fields=_fields(args.fields),
        image_field=args.image_field,
        key_field=args.key_field,
        max_bytes=model.limits.max_bytes,
        max_pixels=model.limits.max_pixels,
        max_patches=model.limits.max_patches,
        min_psnr=args.min_psnr,
        sources=[_absolute(one) for one in args.sources],
    )


def _conclude(output: str, tally: Tally, manifest: dict[str, Any] | None) -> int:
    if manifest is None:
        print(f"{output}: this part is done, others are not: {tally.images} images now, {tally.failed} failed")
        return SOME_FAILED if tally.failed else DONE
    before = f", {tally.passed} of them before" if tally.passed else ""
    print(
        f"{output}: {manifest['images']} images in {manifest['shards']} shards{before}; {manifest['patches']} patches, "
        f"{manifest['failed']} failed; fingerprint {manifest['fingerprint']}"
    )
    if manifest["rejected"]:
        below = f"{manifest['rejected']} images have less than {manifest['min_psnr']:g} dB"
        print(f"viq extract: {below} and were left out, see {output}/{REJECTED}", file=sys.stderr)
    if manifest["failed"]:
        print(f"viq extract: {manifest['failed']} images failed, see {output}/{FAILURES}", file=sys.stderr)
    return SOME_FAILED if manifest["failed"] else DONE


def _verify(args: argparse.Namespace, address: str, sources: list[str]) -> int:
    from viq_serving.extract.check import check

    output = Output(address)
    begun = output.begun()
    if begun is None:
        raise Unusable(f"{address} holds nothing that viq extract made")
    args.size, args.exif, args.alpha = args.size or begun.size, begun.exif, begun.alpha
    args.min_psnr = begun.min_psnr
    fields = None if begun.fields is None else ",".join(begun.fields) or "none"
    made_of = (output.json(MANIFEST) or {}).get("sources") or begun.sources  # the last run may have named them anew
    source = source_of(sources or made_of, _reading(fields, begun.image_field, begun.key_field))
    with encoding_of(args, None) as (model, encoding), Progress("verifying") as progress:
        if model.fingerprint.partition(".")[0] != begun.fingerprint.partition(".")[0]:
            raise Unusable(f"{address} was made by {begun.fingerprint}, the weights here are {model.fingerprint}")
        found = check(output, begun, source, encoding, args.sample, args.seed, progress.advance)
    print(f"{found.shards} shards read, {found.images} images in them, {found.encoded} encoded again")
    for line in found.wrong:
        print(line)
    print(f"{address} is what it says" if not found.wrong else f"{address} IS NOT WHAT IT SAYS")
    return SOME_FAILED if found.wrong else DONE


@contextmanager
def _shown(
    extraction: Extraction | ClusterExtraction, source: Source | ClusterExtraction, report_every_s: float
) -> Iterator[None]:
    """Tell how far it is: a line that changes on a terminal, elsewhere a new one now and then."""
    terminal, meter, over = sys.stderr.isatty(), Meter(time.monotonic()), threading.Event()
    every_s = _DRAW_EVERY_S if terminal else report_every_s
    due = time.monotonic() + every_s
    with ExitStack() as stack:
        progress = stack.enter_context(Progress("extract"))
        if isinstance(source, Pictures):
            threading.Thread(target=_count, args=(source, over), name="viq-count", daemon=True).start()
        stack.callback(over.set)

        def tell(tally: Tally) -> None:
            nonlocal due
            if (now := time.monotonic()) < due:
                return
            due = now + every_s
            line = meter.line(tally, source.total, now)
            if terminal:
                progress.tell(line)
            else:
                progress.print(f"viq extract: {line}")

        extraction.told = tell
        yield


def _count(source: Pictures, over: threading.Event) -> None:
    try:
        source.count(over.is_set)
    except (ViQError, OSError):
        return  # the walk that matters meets the same, and says so


def _reading(fields: str | None, image_field: str | None, key_field: str | None) -> Reading:
    return Reading(LIMITS.max_bytes, _fields(fields), image_field, key_field)


def _fields(text: str | None) -> list[str] | None:
    if text is None:
        return None
    return [] if text == "none" else [one.strip() for one in text.split(",") if one.strip()]


def _absolute(source: str) -> str:
    return source if "://" in source else str(Path(source).absolute())


def _positive(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return number


def _part(text: str) -> tuple[int, int]:
    first, slash, second = text.partition("/")
    if not (slash and first.isdigit() and second.isdigit() and int(first) < int(second)):
        raise argparse.ArgumentTypeError(f"{text!r} is no part: 0/4, 1/4 …")
    return int(first), int(second)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds
