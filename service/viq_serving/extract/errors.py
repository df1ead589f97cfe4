"""What ends an extraction; what is wrong with one image does not."""

from __future__ import annotations

from viq.errors import ViQError


class PlaceError(ViQError):
    """A source or the output that cannot be read or written now. Run again to go on."""

    code = "place_unusable"


class OutputMismatch(ViQError):
    """The output folder holds, or the source gives, something else than what was begun there."""

    code = "output_mismatch"


class DeviceLost(ViQError):
    """The device, or the server, that computes is of no more use. Run again to go on."""

    code = "device_lost"
