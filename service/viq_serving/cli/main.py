"""The entry of the `viq` command: options first, then the one subcommand, then its exit code."""

from __future__ import annotations

import argparse
import gc
import io
import os
import sys
from collections.abc import Sequence

from viq import __version__
from viq_serving.cli import bench, build_head, convert, decode, embed, encode, extract, info, plan, serve, tune, verify
from viq_serving.cli.failures import UNUSABLE, USAGE, Unusable, UsageError

COMMANDS = {
    "serve": serve,
    "encode": encode,
    "decode": decode,
    "embed": embed,
    "convert": convert,
    "info": info,
    "plan": plan,
    "verify": verify,
    "extract": extract,
    "bench": bench,
    "tune": tune,
    "build-head": build_head,
}

_YOUNG = 100_000  # objects more than there were that begin a collection; Python's own number is 700
_INTERRUPTED, _NO_READER = 130, 141  # what a shell makes of SIGINT and SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run `viq` with `argv`, by default the arguments of the process; returns the exit code.

    0 done, 1 some inputs failed, 2 usage, 3 weights or server unusable.
    """
    # What is imported and loaded stays: to walk through it time and again as it grows is a tenth of every start.
    gc.set_threshold(_YOUNG)
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else ""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a name must not end the work in an ASCII locale
    try:
        code = _run(command, arguments)
        print(end="", flush=True)  # now, where a failure can still be told
        return code
    except BrokenPipeError:  # whoever reads has seen enough
        _drop_output()
        return _NO_READER
    except OSError as error:
        _drop_output()
        print(f"viq {command}: {error.strerror or error}", file=sys.stderr)
        return UNUSABLE
    except UsageError as error:
        print(f"viq {command}: {error}", file=sys.stderr)
        return USAGE
    except Unusable as error:
        print(f"viq {command}: {error}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        return _INTERRUPTED


def _drop_output() -> None:
    """Send what is still buffered nowhere: Python would fail on it once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _run(command: str, arguments: Sequence[str]) -> int:
    try:
        args = _parser(command).parse_args(arguments)
    except SystemExit as done:  # argparse has printed its help or its complaint
        return done.code if isinstance(done.code, int) else USAGE
    code: int = COMMANDS[args.command].run(args)
    return code


def _parser(command: str) -> argparse.ArgumentParser:
    """The parser. Only the arguments of `command` are filled in: those of serve need the service installed."""
    parser = argparse.ArgumentParser(
        prog="viq",
        description="Images of any resolution to discrete codes, codes to features, codes to pictures.",
        epilog="Exit codes: 0 done, 1 some inputs failed, 2 usage, 3 weights or server unusable.",
    )
    parser.add_argument("--version", action="version", version=f"viq {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        sub = commands.add_parser(name, help=module.HELP, description=f"{module.HELP[0].upper()}{module.HELP[1:]}.")
        if name == command:
            module.add_arguments(sub)
    return parser
