"""What requests carry: a picture's file, or the codes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from viq.codes import Codes
from viq_serving.bench.pictures import PictureFile


@dataclass(frozen=True)
class Payload:
    """The files in the order of their index; their codes where a method takes those."""

    files: Sequence[PictureFile]
    file_format: str
    codes: Sequence[Codes] = ()

    @property
    def media_type(self) -> str:
        """Of the files."""
        return f"image/{self.file_format}"
