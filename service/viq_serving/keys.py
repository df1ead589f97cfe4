"""Who may ask: the keys that callers show as Bearer tokens."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import os
import stat
import sys
from collections.abc import Callable, Mapping
from time import monotonic, time

from viq_serving.allowance import Allowance
from viq_serving.errors import SettingsError, Unauthenticated
from viq_serving.rights import Rights, digest_of, digest_of_shown, rights_of
from viq_serving.settings import Settings
from viq_serving.types import ANYBODY, Caller

log = logging.getLogger("viq.keys")

_LOOK_EVERY_S = 1.0
_NAME_DIGITS = 16
_MAX_FILE_BYTES = 2**20
_RACY_S = 2.0  # a file changed so lately may change again without its time or size showing it


class Keys:
    """The known keys, of the settings and of a file that is read again when it changes. With none, everybody may ask.

    Only digests are kept, and they are compared in constant time. Keys of the settings may do everything; a key that
    is in the file, too, may do what it may there. Raises `SettingsError` for keys that cannot be.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = monotonic) -> None:
        self._clock, self._path = clock, settings.api_keys_file
        self._fixed: dict[bytes, Rights] = {}
        for number, key in enumerate(settings.api_keys, 1):
            try:
                self._fixed[digest_of(key.get_secret_value())] = Rights()
            except ValueError as error:
                raise SettingsError(f"api_keys (VIQ_API_KEYS): key {number}: {error}") from None
        self._of_file: Mapping[bytes, Rights] = {}
        self._allowances: dict[tuple[bytes, str], Allowance] = {}
        self._callers = self._known()
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

    def check(self, authorization: str | None) -> Caller:
        """Who shows this `Authorization`; raises `Unauthenticated` unless it is `Bearer` and a known key.

        While no key is needed, that is `ANYBODY`.
        """
        if not self.on:
            return ANYBODY
        scheme, _, token = (authorization or "").strip().partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthenticated("a key is needed: Authorization: Bearer KEY")
        self._look()
        shown, found = digest_of_shown(token.strip()), None
        for digest, caller in self._callers.items():  # all of them, so that the time it takes tells nothing
            if hmac.compare_digest(shown, digest):
                found = caller
        if found is None:
            raise Unauthenticated("the key is not known")
        return found

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
        rights = rights_of(data.decode("utf-8-sig"))
        if not rights:
            raise ValueError("it holds no key")
        changed, first = rights != self._of_file, not self._of_file
        self._of_file = rights
        if changed:
            self._callers = self._known()
        if changed and not first:
            log.info("%d keys read from %s", len(rights), path)
        settled = time() - about.st_mtime > _RACY_S or not stat.S_ISREG(about.st_mode)  # a pipe can be read but once
        self._seen = _signature(about) if settled else None

    def _known(self) -> dict[bytes, Caller]:
        """The callers there are now. What a key holds it goes on holding, whatever its limits were and are."""
        rights = {**self._fixed, **self._of_file}
        held = {place: one for place, one in self._allowances.items() if place[0] in rights or one.held_now}
        self._allowances = held

        def allowance(digest: bytes, what: str, limit: int | None) -> Allowance | None:
            known = held.get((digest, what))
            if known is not None:
                known.resize(sys.maxsize if limit is None else limit)
            elif limit is not None:
                known = held[digest, what] = Allowance(limit, f"{what} of this key")
            return None if limit is None else known

        return {
            digest: Caller(
                digest.hex()[:_NAME_DIGITS],
                may.lanes,
                allowance(digest, "patches", may.max_patches),
                allowance(digest, "requests", may.max_requests),
            )
            for digest, may in rights.items()
        }


def warn_if_plaintext(keys: Keys, host: str, encrypted: bool = False) -> None:
    """Say in the log, at start, that keys will cross a network that others may read."""
    if keys.on and not encrypted and not _is_loopback(host):
        log.warning("keys are on, but %s is no loopback address and nothing is encrypted: use TLS", host)


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


def _reason(error: Exception) -> str:
    """What is wrong, and nothing of what the file holds."""
    if isinstance(error, UnicodeDecodeError):
        return "it is no UTF-8"
    return str(error.strerror) if isinstance(error, OSError) else str(error)
