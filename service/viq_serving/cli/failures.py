"""What ends a command before its inputs are worked through, and the exit codes."""

from __future__ import annotations

from importlib.util import find_spec

DONE, SOME_FAILED, USAGE, UNUSABLE = 0, 1, 2, 3
"""Exit codes: all done; some inputs failed; wrong usage; weights or server cannot be used."""


class UsageError(Exception):
    """The command line asks for something that cannot be meant."""


class Unusable(Exception):
    """Weights, a server or an installation that cannot be used."""


def require(*packages: str) -> None:
    """Raise `Unusable` naming the remedy if one of `packages` is not installed; imports none of them."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise Unusable(f"this needs {', '.join(missing)}: pip install 'viq-serving[server]'")
