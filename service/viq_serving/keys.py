"""Who may ask: the keys that callers show as Bearer tokens."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import re
import stat
from collections.abc import Callable, Iterable
from time import monotonic, time

from viq_serving.errors import SettingsError, Unauthenticated
from viq_serving.settings import Settings

log = logging.getLogger("viq.keys")

_KEY = re.compile(r"[\x21-\x7e]+")  # what a header can carry, and no space
_LOOK_EVERY_S = 1.0
_MAX_FILE_BYTES = 2**20
_RACY_S = 2.0  # a file changed so lately may change again without its time or size showing it


class Keys:
    """The known keys, of the settings and of a file that is read again when it changes. With none, everybody may ask.

    Only digests are kept, and they are compared in constant time. Raises `SettingsError` for keys that cannot be.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = monotonic) -> None:
        self._clock, self._path = clock, settings.api_keys_file
        try:
            self._fixed = _digests(key.get_secret_value() for key in settings.api_keys)
        except ValueError as error:
            raise SettingsError(f"api_keys (VIQ_API_KEYS): {error}") from None
        self._of_file: frozenset[bytes] = frozenset()
        self._seen: object = None
        self._problem = ""
        self._next_look = clock() + _LOOK_EVERY_S
        if self._path is not None:
            try:
                self._read(self._path)
            except (OSError, ValueError) as error:
                raise SettingsError(f"api_keys_file {self._path} cannot be used: {_reason(error)}") from None

    @property
    def on(self) -> bool:
        """Whether a key is needed at all."""
        return bool(self._fixed) or self._path is not None

    def check(self, authorization: str | None) -> None:
        """Raise `Unauthenticated` unless `authorization` is `Bearer` and a known key, or none is needed."""
        if not self.on:
            return
        scheme, _, token = (authorization or "").strip().partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthenticated("a key is needed: Authorization: Bearer KEY")
        self._look()
        shown, known = _digest(token.strip()), False
        for digest in self._fixed | self._of_file:
            known |= hmac.compare_digest(shown, digest)
        if not known:
            raise Unauthenticated("the key is not known")

    def _look(self) -> None:
        """Read the file again if it may have changed; the last good keys stay if it cannot be used."""
        if self._path is None or self._clock() < self._next_look:
            return
        self._next_look = self._clock() + _LOOK_EVERY_S
        try:
            if self._seen is None or _signature(os.stat(self._path)) != self._seen:  # noqa: PTH116  # like fstat below
                self._read(self._path)
            problem = ""
        except (OSError, ValueError) as error:
            problem = _reason(error)
        if problem and problem != self._problem:
            log.error("keys in %s stay as they were, the file cannot be used: %s", self._path, problem)
        elif self._problem and not problem:
            log.info("keys in %s can be read again", self._path)
        self._problem = problem

    def _read(self, path: str) -> None:
        with open(path, "rb") as file:  # noqa: PTH123  # one with the stat of the descriptor
            about = os.fstat(file.fileno())
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise ValueError(f"it has more than {_MAX_FILE_BYTES} bytes")
        digests = _digests(_lines(data.decode("utf-8-sig")))
        if not digests:
            raise ValueError("it holds no key")
        if self._of_file and digests != self._of_file:
            log.info("%d keys read from %s", len(digests), path)
        self._of_file = digests
        settled = time() - about.st_mtime > _RACY_S or not stat.S_ISREG(about.st_mode)  # a pipe can be read but once
        self._seen = _signature(about) if settled else None


def warn_if_plaintext(keys: Keys, host: str) -> None:
    """Say in the log, at start, that keys will cross a network that others may read."""
    if keys.on and not _is_loopback(host):
        log.warning("keys are on, but %s is no loopback address and nothing is encrypted: put TLS in front", host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _signature(about: os.stat_result) -> tuple[int, ...]:
    """What differs when a file was written again, or another one put in its place."""
    if not stat.S_ISREG(about.st_mode):
        return (about.st_dev, about.st_ino)
    return (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


def _lines(text: str) -> Iterable[str]:
    """The keys in a file, whose `#` starts a comment where a word could start."""
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split(maxsplit=1)
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 1 and not words[1].startswith("#"):
            raise ValueError(f"line {number} holds more than one word")
        yield words[0]


def _digests(keys: Iterable[str]) -> frozenset[bytes]:
    digests = set()
    for index, key in enumerate(keys, 1):
        if not _KEY.fullmatch(key):
            raise ValueError(f"key {index} holds a character that no header can carry")
        digests.add(_digest(key))
    return frozenset(digests)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _reason(error: Exception) -> str:
    """What is wrong, and nothing of what the file holds."""
    if isinstance(error, UnicodeDecodeError):
        return "it is no UTF-8"
    return str(error.strerror) if isinstance(error, OSError) else str(error)
