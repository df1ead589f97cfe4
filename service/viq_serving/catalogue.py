"""The sizes that are loaded, as replies describe them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from viq.codes import Codes
from viq.config import VARIANTS
from viq_serving.errors import FingerprintMismatch, NotReady, UnknownModel
from viq_serving.types import ModelInfo

if TYPE_CHECKING:
    from viq_serving.engine.child import Model


class Catalogue:
    """Loaded sizes by name, the default first; none until `fill` has run."""

    def __init__(self) -> None:
        self._models: dict[str, ModelInfo] = {}

    def fill(self, replicas: Sequence[Mapping[str, Model]]) -> list[ModelInfo]:
        """Take over what is loaded, of replicas that are alike in all but the device."""
        self._models = {size: _describe([replica[size] for replica in replicas]) for size in replicas[0]}
        return self.models()

    def models(self) -> list[ModelInfo]:
        """All of them."""
        return list(self._models.values())

    def model(self, size: str | None = None, expect: str | None = None) -> ModelInfo:
        """The size of that name, the default for none; `expect` is a family or a whole fingerprint.

        Raises `NotReady`, `UnknownModel`, or `FingerprintMismatch` if the expectation does not hold.
        """
        if not self._models:
            raise NotReady("the service is still loading")
        if size and size not in self._models:
            known = "is not loaded" if size in VARIANTS else "does not exist"
            raise UnknownModel(f"size {size!r} {known}; loaded: {', '.join(one.label for one in self.models())}")
        info = self._models[size] if size else next(iter(self._models.values()))
        if expect is not None and expect not in (info.fingerprint, info.family):
            raise FingerprintMismatch(f"expected fingerprint {expect}, size {info.label} has {info.fingerprint}")
        return info


def check_family(inputs: Sequence[object], model: ModelInfo) -> None:
    """Raise `FingerprintMismatch` if there are codes of other weights among `inputs`."""
    foreign = {one.family for one in inputs if isinstance(one, Codes)} - {"", model.family}
    if foreign:
        raise FingerprintMismatch(
            f"codes are of family {', '.join(sorted(foreign))}, size {model.label} here is {model.family}"
        )


def _describe(models: Sequence[Model]) -> ModelInfo:
    model = models[0]
    return ModelInfo(
        size=model.size,
        fingerprint=model.fingerprint,
        family=model.family,
        levels=tuple(model.levels),
        codebook_size=model.codebook_size,
        width=model.width,
        dtype=model.dtype,
        device=",".join(dict.fromkeys(one.device for one in models)),
        untrained=model.untrained,
        replicas=len(models),
    )
