"""The options of `viq bench`."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

_EPILOG = """
viq bench --serve "" --door rest,grpc --rates 25%,50%,75%,90% -o load.json --plot load.png
viq bench --url http://host:8000 --grpc host:8001 --door grpc-stream --mix photos --in-flight 4,16,64
viq bench --door http --url http://host:9000/encode --reply json      anything that takes an image by POST
viq bench @loadtest/scenarios/sizes.args                              options from a file
viq bench compare A.json B.json | plot A.json -o A.png | pictures --mix photos -o DIR

--mix: photos, documents, thumbnails, uniform (64 to 1024), a list 512x512,1024x768*3, or a histogram file of lines
WIDTHxHEIGHT COUNT. Latency counts from when a request was due (open loop) or sent (closed loop; beside it the same
corrected for coordinated omission).
"""
_DOORS = ("rest", "grpc", "grpc-stream", "oip-http", "oip-grpc", "http")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.epilog, parser.formatter_class = _EPILOG, argparse.RawDescriptionHelpFormatter
    parser.fromfile_prefix_chars = "@"
    parser.convert_arg_line_to_args = _words  # type: ignore[method-assign]
    parser.add_argument("words", nargs="*", metavar="WORD", help="compare A B, plot A, or pictures; none: measure")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="where the result goes, as JSON")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="where charts of the result go")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--name", default="", help="what to call what is measured")
    _add_target(parser.add_argument_group("server"))
    _add_pictures(parser.add_argument_group("pictures"))
    _add_load(parser.add_argument_group("load"))
    oip = parser.add_argument_group("Open Inference Protocol, for other servers")
    oip.add_argument("--model", default="", metavar="NAME", help="default: viq-encode, viq-embed or viq-decode")
    oip.add_argument("--model-version", default="", metavar="V", help="default: as --size")
    oip.add_argument("--oip-input", default="image", metavar="NAME", help="tensor that takes the file; default: image")
    oip.add_argument("--oip-shape", type=_shape, default=(1,), metavar="N,…", help="its shape; default: 1")


def _add_target(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--door",
        type=_doors,
        default=("grpc",),
        metavar="D,…",
        help=f"one or more of {', '.join(_DOORS)}; default: grpc",
    )
    group.add_argument("--method", choices=("encode", "embed", "decode"), default="encode", help="default: encode")
    group.add_argument("--url", help="of the HTTP port, for door http the whole address")
    group.add_argument("--grpc", metavar="HOST:PORT", help="the gRPC port")
    group.add_argument("--serve", metavar="FLAGS", help="start viq serve with these flags, and measure that")
    group.add_argument(
        "--server-pid", type=positive, metavar="PID", help="watch this process and all that came from it"
    )
    group.add_argument("--size", default="", metavar="S", help="of the model; default: the server's")
    group.add_argument("--tls", action="store_true", help="speak TLS with the gRPC port; an https --url says so itself")
    group.add_argument("--tls-ca", metavar="FILE", help="PEM file of whom to believe; default: the system's roots")
    group.add_argument("--tls-cert", metavar="FILE", help="PEM file of our own certificate, if the server asks for one")
    group.add_argument("--tls-key", metavar="FILE", help="PEM file of its private key")
    group.add_argument("--priority", choices=("interactive", "bulk"), help="default: the door's")
    group.add_argument("--api-key-file", type=Path, metavar="FILE", help="file that holds the server's key")
    group.add_argument(
        "--reply", choices=("octet", "json"), default="octet", help="form of codes by HTTP; default: octet"
    )
    group.add_argument("--timeout", type=seconds, default=60.0, metavar="S", help="of a request; default: 60")
    group.add_argument("--connections", type=positive, default=1024, metavar="N", help="most by HTTP; default: 1024")


def _add_pictures(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--mix", default="thumbnails", help="sizes, see below; default: thumbnails")
    group.add_argument("--scale", type=seconds, default=1.0, metavar="F", help="times all sides; default: 1")
    group.add_argument("--each-size", action="store_true", help="one size of the mix after another")
    group.add_argument("--pictures", type=positive, default=32, metavar="N", help="different ones; default: 32")
    group.add_argument("--content", choices=("photo", "document", "mixed"), help="default: by the mix")
    group.add_argument("--format", choices=("jpeg", "png"), default="jpeg", help="default: jpeg, of quality 90")
    group.add_argument(
        "--seed", type=_whole, default=0, metavar="N", help="of pictures, order and arrivals; default: 0"
    )


def _add_load(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--in-flight",
        type=counts,
        metavar="N,…",
        help="callers that wait for their answers; default: 16, without --rate",
    )
    group.add_argument(
        "--rate", "--rates", dest="rates", type=_rates, default=((), ()), metavar="R,…",
        help="requests a second at random times; with %% a share of what the first --in-flight achieve",
    )  # fmt: skip
    group.add_argument("--duration", type=seconds, metavar="S", help="of each run; default: 10")
    group.add_argument("--requests", type=positive, metavar="N", help="of each run, in place of --duration")
    group.add_argument("--warm-up", type=_not_negative, default=2.0, metavar="S", help="before each run; default: 2")
    group.add_argument("--rounds", type=positive, default=1, metavar="N", help="all runs so many times; default: 1")
    group.add_argument(
        "--arrival-seed", type=_whole, metavar="N", help="of order and arrivals, one more each round; default: --seed"
    )
    group.add_argument("--processes", type=positive, default=1, metavar="N", help="of the generator; default: 1")
    group.add_argument(
        "--check-all", action="store_true", help="read the codes of every answer, not of each picture once"
    )


def _words(arg_line: str) -> list[str]:
    """The arguments in a line of a file, as a shell reads them."""
    return shlex.split(arg_line, comments=True)


def _doors(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in _DOORS:
            raise argparse.ArgumentTypeError(f"{name!r} is no door, there are {', '.join(_DOORS)}")
    return names


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers from 1 on."""
    return tuple(positive(part) for part in text.split(","))


def _shape(text: str) -> tuple[int, ...]:
    return counts(text)


def _rates(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Rates, and shares of the capacity."""
    plain, shares = list[float](), list[float]()
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(%?)", part.strip())
        value = float(match[1]) if match else 0.0
        if match is None or value <= 0:
            raise argparse.ArgumentTypeError(f"{part!r} is no rate, expected requests a second like 12.5, or 50%")
        if match[2]:
            shares.append(value / 100)
        else:
            plain.append(value)
    return tuple(plain), tuple(shares)


def fraction(text: str) -> tuple[float, ...]:
    """Shares of the capacity, in per cent."""
    plain, shares = _rates(text)
    if plain:
        raise argparse.ArgumentTypeError(f"{text!r}: expected shares of the capacity like 50%,90%")
    return shares


def positive(text: str) -> int:
    """A whole number from 1 on."""
    number = _whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return number


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def seconds(text: str) -> float:
    """A number above 0."""
    number = _not_negative(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return number


def _not_negative(text: str) -> float:
    if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return float(text)
