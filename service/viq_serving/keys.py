"""Who may ask: the keys that callers show as Bearer tokens."""

from __future__ import annotations

from viq_serving.errors import Unauthenticated
from viq_serving.settings import Settings


class Keys:
    """The known keys. With none, everybody may ask."""

    def __init__(self, settings: Settings) -> None:
        self._keys = [key.get_secret_value() for key in settings.api_keys]

    @property
    def on(self) -> bool:
        """Whether a key is needed at all."""
        return bool(self._keys)

    def check(self, authorization: str | None) -> None:
        """Raise `Unauthenticated` unless `authorization` is `Bearer` and a known key, or none is needed."""
        if self.on:
            raise Unauthenticated("no key")
