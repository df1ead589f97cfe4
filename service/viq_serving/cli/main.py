"""The entry of the `viq` command: options first, then the one subcommand, then its exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from viq import __version__
from viq_serving.cli import convert, decode, embed, encode, info, plan, serve
from viq_serving.cli.failures import UNUSABLE, USAGE, Unusable, UsageError

COMMANDS = {
    "serve": serve,
    "encode": encode,
    "decode": decode,
    "embed": embed,
    "convert": convert,
    "info": info,
    "plan": plan,
}

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run `viq` with `argv`, by default the arguments of the process; returns the exit code.

    0 done, 1 some inputs failed, 2 usage, 3 weights or server unusable.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else ""
    try:
        args = _parser(command).parse_args(arguments)
        code: int = COMMANDS[args.command].run(args)
        return code
    except SystemExit as done:  # argparse has printed its help or its complaint
        return done.code if isinstance(done.code, int) else USAGE
    except UsageError as error:
        print(f"viq {command}: {error}", file=sys.stderr)
        return USAGE
    except Unusable as error:
        print(f"viq {command}: {error}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        return _INTERRUPTED


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
