"""What can go wrong, in the domain's words.

No transport is known here: every front end owns one table from `code` to its own status.
"""


class ViQError(Exception):
    """Base of every error this project raises on purpose; `code` is the public snake_case name."""

    code = "internal"


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
