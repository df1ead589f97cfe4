"""`viq verify`: proves that codes do not depend on company, order, threads or the door."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from viq.errors import InvalidInput, ViQError
from viq_serving.cli import options
from viq_serving.cli.backends import LIMITS, load, named
from viq_serving.cli.failures import DONE, SOME_FAILED, Unusable, UsageError, require
from viq_serving.cli.files import read
from viq_serving.cli.progress import Progress
from viq_serving.images import decode
from viq_serving.verify import here
from viq_serving.verify.pictures import Picture, synthetic
from viq_serving.verify.report import Check, Proof, compare, digest

if TYPE_CHECKING:
    from viq.codes import Codes
    from viq.model import ViQ

Tell: TypeAlias = Callable[[str], None]

HELP = "prove the code promise: alone = packed = reordered = through every door, with a digest to compare"

_TIMEOUT_S = 600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image file to verify with beside the built-in ones")
    parser.add_argument(
        "--expect", metavar="DIGEST", type=_digest, help="digest that must come out, as printed elsewhere; else exit 1"
    )
    parser.add_argument(
        "--max-side",
        type=_positive,
        default=768,
        metavar="PIXELS",
        help="leave out built-in pictures that are longer or wider, which changes the digest; default: 768, all",
    )
    parser.add_argument(
        "--threads",
        type=_positive,
        action="append",
        default=[],
        metavar="N",
        help="compute once more with so many threads, repeatable; not with --server",
    )
    parser.add_argument("--grpc", metavar="HOST:PORT", help="the gRPC port of the same server")
    parser.add_argument("--callers", type=_positive, default=16, metavar="N", help="requests at once; default: 16")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="file that holds the server's key")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Print a line for each check and the digest; returns the exit code."""
    options.check_model(args)
    for name, given in (("grpc", args.grpc), ("api-key-file", args.api_key_file)):
        if given is not None and args.server is None:
            raise UsageError(f"--{name} needs --server")
    if args.threads and args.server is not None:
        raise UsageError("--threads is for computing here, it has no meaning with --server")
    pictures = [*synthetic(args.max_side), *(_picture(path) for path in args.images)]
    if not pictures:
        raise UsageError(f"no built-in picture has sides of at most {args.max_side} pixels, and no IMAGE is given")
    tell: Tell = (lambda line: None) if args.json else print
    try:
        proof = _here(args, pictures, tell) if args.server is None else _there(args, pictures, tell)
    except ViQError as error:
        raise Unusable(str(error)) from None
    proof.expected = args.expect
    if args.json:
        print(json.dumps({**asdict(proof), "holds": proof.holds}, indent=2))
    else:
        _conclude(proof)
    return DONE if proof.holds else SOME_FAILED


def _here(args: argparse.Namespace, pictures: Sequence[Picture], tell: Tell) -> Proof:
    model = load(args, ("encoder",))
    proof = _begun(model.size, model.untrained, model.fingerprint, pictures, tell)
    with Progress("verifying", len(pictures) * (5 + 2 * len(args.threads))) as progress:
        codes = here.alone(model.encode_pixels, pictures, progress.advance)
        proof.digest = digest(codes)
        _add(proof, here.checks(model.encode_pixels, pictures, codes, progress.advance), tell)
        for count in args.threads:
            _add(proof, _threaded(model, pictures, codes, count, progress), tell)
    if not args.threads:
        proof.not_checked.append("other thread counts: give --threads N")
    proof.not_checked.append("the doors of a server: give --server URL")
    return proof


def _threaded(
    model: ViQ, pictures: Sequence[Picture], codes: Sequence[Codes], count: int, progress: Progress
) -> Iterator[Check]:
    """The pictures alone and together, computed with `count` threads."""
    import torch

    names, before = [picture.name for picture in pictures], torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        found = here.alone(model.encode_pixels, pictures, progress.advance)
        yield compare(f"alone, --threads {count}", names, codes, found)
        found = model.encode_pixels([picture.pixels for picture in pictures])
        progress.advance(len(pictures))
        yield compare(f"packed together, --threads {count}", names, codes, found)
    finally:
        torch.set_num_threads(before)


def _there(args: argparse.Namespace, pictures: Sequence[Picture], tell: Tell) -> Proof:
    from viq_serving.verify.http_doors import Http
    from viq_serving.verify.there import Room, There, steps

    headers = {} if args.api_key_file is None else {"Authorization": f"Bearer {options.key(args.api_key_file)}"}
    with ExitStack() as opened:
        try:
            http = Http(args.server, headers, _TIMEOUT_S)
        except InvalidInput as error:
            raise UsageError(str(error)) from None
        opened.callback(http.close)
        row = http.choose(args.size)
        size, limits, stated = str(row["size"]), row["limits"], str(row["fingerprint"])
        single, several = dict(http.single), dict(http.several)
        if args.grpc is not None:
            require("grpc")
            from viq_serving.verify.grpc_doors import Grpc

            grpc = Grpc(args.grpc, size, headers, _TIMEOUT_S)
            opened.callback(grpc.close)
            single, several = {**single, **grpc.doors}, {**several, **grpc.doors}
        proof = _begun(size, bool(row.get("untrained")), stated, pictures, tell)
        if args.grpc is None:
            proof.not_checked.append("the gRPC port, native and Open Inference Protocol: give --grpc HOST:PORT")
        total = steps(len(pictures), len(single), len(several))
        progress = opened.enter_context(Progress("verifying", total))
        most_bytes = min(limits["max_body_bytes"], limits["max_message_bytes"]) // 2  # base64 takes a third more
        room = Room(limits["max_images"], most_bytes, limits["max_queue_patches"])
        there = There(pictures, single, several, room, progress.advance)
        codes = there.alone(stated)
        proof.digest = digest(codes)
        _add(proof, there.one_by_one(codes), tell)
        _add(proof, there.together(codes), tell)
        before = http.batches()
        _add(proof, there.at_once(codes, args.callers), tell)
        after = http.batches()
        if before is None or after is None or after[1] == before[1]:
            proof.not_checked.append("whether callers at once shared batches: the server does not show its metrics")
        else:
            proof.images_a_batch = (after[0] - before[0]) / (after[1] - before[1])
    return proof


def _begun(size: str, untrained: bool, fingerprint: str, pictures: Sequence[Picture], tell: Tell) -> Proof:
    names = [picture.name for picture in pictures]
    tell(f"{named(size, untrained)}, {len(names)} pictures, each by itself against:")
    return Proof(size, fingerprint, names)


def _add(proof: Proof, checks: Iterable[Check], tell: Tell) -> None:
    for check in checks:
        proof.checks.append(check)
        tell(f"{check.name}: {check.pictures} pictures, {check.codes} codes compared, {check.different} different")
        for line in check.wrong:
            tell(f"  {line}")


def _conclude(proof: Proof) -> None:
    if proof.images_a_batch is not None:
        print(f"callers at once shared batches of {proof.images_a_batch:.1f} images on average")
    for left_out in proof.not_checked:
        print(f"not checked: {left_out}")
    print(f"fingerprint {proof.fingerprint}")
    print(f"digest {proof.digest}")
    if proof.expected not in (None, proof.digest):
        print(f"expected digest {proof.expected}")
    print("the promise holds" if proof.holds else "THE PROMISE DOES NOT HOLD")


def _picture(path: str) -> Picture:
    """The pixels of an image file; raises `UsageError` if there are none to be had."""
    try:
        return Picture(path, decode(read(Path(path), LIMITS.max_bytes), LIMITS))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except ViQError as error:
        raise UsageError(f"{path}: {error}") from None


def _positive(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return number


def _digest(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text.lower()):
        raise argparse.ArgumentTypeError(f"{text!r} is no digest: 64 hexadecimal digits")
    return text.lower()
