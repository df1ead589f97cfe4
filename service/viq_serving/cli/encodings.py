"""Where `viq extract` computes: on devices of this machine, or at a service."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from viq_serving.cli import options
from viq_serving.cli.backends import LIMITS, load, named
from viq_serving.cli.failures import Unusable, require
from viq_serving.images import ImageLimits
from viq_serving.openmp import spin_briefly, take_short_turns

if TYPE_CHECKING:
    from viq_serving.extract.extraction import Encoding

_RETRIES = 30  # of an image at a service: some two minutes in which no replica is there


@dataclass(frozen=True)
class EncodingModel:
    """What computes, wherever that is."""

    fingerprint: str
    size: str
    limits: ImageLimits


@contextmanager
def encoding_of(args: argparse.Namespace, expected: str | None) -> Iterator[tuple[EncodingModel, Encoding]]:
    """The model and what computes with it; a service must be of the `expected` fingerprint to the end."""
    with ExitStack() as stack:
        if args.server is not None:
            yield stack.enter_context(_there(args, expected))
            return
        require("torch", "safetensors")
        spin_briefly()
        take_short_turns()
        from viq_serving.extract.here import Here

        devices = (args.device or "auto").split(",")
        parts = ("encoder",) if args.min_psnr is None else ("encoder", "decoder")
        models = [load(argparse.Namespace(**{**vars(args), "device": one.strip()}), parts) for one in devices]
        model = models[0]
        for other in models[1:]:
            if other.fingerprint != model.fingerprint:
                devices_differ = f"{model.device} gives {model.fingerprint}, {other.device} {other.fingerprint}"
                raise Unusable(f"the devices would give different codes: {devices_differ}")
        for one in models:
            one.script_small_packs()
        note(model.size, model.untrained)
        here = stack.enter_context(Here(models, LIMITS, exif=args.exif, alpha=args.alpha, min_psnr=args.min_psnr))
        yield EncodingModel(model.fingerprint, model.size, LIMITS), here


@contextmanager
def _there(args: argparse.Namespace, expected: str | None) -> Iterator[tuple[EncodingModel, Encoding]]:
    from viq_serving.client import Client
    from viq_serving.extract.there import There

    key = None if args.api_key_file is None else options.key(args.api_key_file)
    with Client(args.server, api_key=key, retries=args.server.count(",") + 2) as asked:
        rows = asked.models()
    wanted = [row for row in rows if (row["size"] == args.size if args.size else row.get("default"))]
    if not wanted:
        held = ", ".join(str(row["size"]) for row in rows)
        raise Unusable(f"{args.server} does not serve size {args.size}; it has {held}")
    row, limits = wanted[0], wanted[0]["limits"]
    note(str(row["size"]), bool(row.get("untrained")))
    fingerprint = str(row["fingerprint"])
    # Of several replicas each must give these codes, also those that come later.
    with Client(
        args.server, api_key=key, retries=_RETRIES, expect_fingerprint=expected or fingerprint, priority="bulk"
    ) as client:
        names = ("max_body_bytes", "max_pixels", "max_patches")
        model = EncodingModel(fingerprint, str(row["size"]), ImageLimits(*(int(limits[name]) for name in names)))
        yield (
            model,
            There(client, model.limits, size=model.size, exif=args.exif, alpha=args.alpha, min_psnr=args.min_psnr),
        )


def note(size: str, untrained: bool) -> None:
    """Say it where the weights are random."""
    if untrained:
        name = named(size, untrained)
        print(f"viq: {name}: random weights, the results carry no meaning; see --weights-root", file=sys.stderr)
