"""The codes that came back for each picture."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from viq_serving.bench.doors.door import Answer, Door


class Seen:
    """The first codes of each picture, as their SHA-256; of every answer if `all_of_them`."""

    def __init__(self, *, wanted: bool, all_of_them: bool = False) -> None:
        self.digests: dict[int, str] = {}
        self.unstable: set[int] = set()
        self.unreadable = ""
        self._wanted, self._all = wanted, all_of_them

    def take(self, picture: int, answer: Answer, door: Door) -> None:
        """Note the codes of an answer."""
        if answer.kind or not self._wanted or (picture in self.digests and not self._all):
            return
        try:
            codes = door.codes_of(answer)
        except ValueError as error:
            self.unreadable = str(error)
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
