"""What becomes of an item, wherever it is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from viq.codes import Codes
from viq.errors import ViQError
from viq_serving.extract.sources import Item


@dataclass(frozen=True)
class Result:
    """What became of an item: its codes or its error, and what travels along."""

    item: Item
    codes: Codes | ViQError
    fields: Mapping[str, Any]


class Unforeseen(ViQError):
    """Something nobody foresaw, with one image; the message is what it said."""

    code = "internal"


def read_fields(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Fields with what had to be read first; those that there are not are left out."""
    if not any(callable(value) for value in fields.values()):
        return fields
    values = {name: value() if callable(value) else value for name, value in fields.items()}
    return {name: value for name, value in values.items() if value is not None}
