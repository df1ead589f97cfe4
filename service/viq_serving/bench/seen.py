"""The codes that came back for each picture."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from viq_serving.bench.doors.door import Answer, Door

_LONGEST = 200


class Seen:
    """The first codes of each picture, as their SHA-256; of every answer if `all_of_them`.

    `sizes` are the bytes that the codes of each picture have, where they are known: other bytes are no codes.
    """

    def __init__(self, *, wanted: bool, all_of_them: bool = False, sizes: Sequence[int] | None = None) -> None:
        self.digests: dict[int, str] = {}
        self.unstable: set[int] = set()
        self.unreadable = ""
        self._wanted, self._all, self._sizes = wanted, all_of_them, sizes

    def take(self, picture: int, answer: Answer, door: Door) -> None:
        """Note the codes of an answer."""
        if answer.kind or not self._wanted or (picture in self.digests and not self._all):
            return
        try:
            codes = door.codes_of(answer)
        except Exception as error:  # noqa: BLE001  # an answer may be anything, and must not end the run
            self.unreadable = f"{type(error).__name__}: {error}"[:_LONGEST]
            return
        if self._sizes is not None and len(codes) != self._sizes[picture]:
            self.unreadable = f"{len(codes)} bytes of codes for picture {picture}, expected {self._sizes[picture]}"
            return
        found = hashlib.sha256(codes).hexdigest()
        if self.digests.setdefault(picture, found) != found:
            self.unstable.add(picture)

    def add(self, digests: Mapping[int, str], unstable: set[int], unreadable: str) -> None:
        """Take in what another generator saw."""
        for picture, found in digests.items():
            if self.digests.setdefault(picture, found) != found:
                self.unstable.add(picture)
        self.unstable |= unstable
        self.unreadable = self.unreadable or unreadable

    def summary(self) -> dict[str, object]:
        """How many pictures were seen, and one digest over all of them in the order of their numbers."""
        whole = hashlib.sha256(b"".join(bytes.fromhex(self.digests[index]) for index in sorted(self.digests)))
        told: dict[str, object] = {
            "pictures": len(self.digests),
            "digest": whole.hexdigest() if self.digests else None,
            "unstable": len(self.unstable),
        }
        return told | ({"unreadable": self.unreadable} if self.unreadable else {})
