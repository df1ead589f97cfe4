"""What can go wrong, in the domain's words.

No transport is known here: every front end owns one table from `code` to its own status.
"""

from __future__ import annotations

from typing import Self


class ViQError(Exception):
    """Base of every error this project raises on purpose; `code` is the public snake_case name."""

    code = "internal"

    def bare(self) -> Self:
        """Itself, without the frames it went through and the error it came from, for those who keep or pass it on.

        Those frames hold what was worked on, a whole file perhaps, and often the error with it: a cycle, which only a
        collection of garbage ends.
        """
        self.__context__ = None
        return self.with_traceback(None)


class InvalidInput(ViQError, ValueError):
    """The caller's data cannot be used: an undecodable image, codes out of range, a wrong shape."""

    code = "invalid_input"


class TooLarge(ViQError, ValueError):
    """The caller's data is over a limit; the message names the value and the limit."""

    code = "too_large"


class UnknownModel(ViQError, LookupError):
    """No such size, or a size that is not loaded."""

    code = "unknown_model"


class FingerprintMismatch(ViQError, ValueError):
    """Codes of other weights, or an expectation about the fingerprint that does not hold."""

    code = "fingerprint_mismatch"


class WeightsError(ViQError):
    """A weights folder or checkpoint that cannot be used; the message names the file and the tensor."""

    code = "weights_unusable"
