"""Codes in every form a body can have: the JSON reply of encode, raw with headers, npz."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import Headers

from viq.codes import Codes
from viq_serving.errors import InvalidInput, TooLarge, ViQError
from viq_serving.rest.body import Item, parse_json

_REPLY = frozenset({"model", "results", "timings_ms"})
_MODEL = frozenset({"size", "fingerprint", "codebook_size", "levels", "untrained"})
_RESULT = frozenset({"name", "image_size", "grid", "codes", "codes_b64"})
_MAX_SIDE = 2**31


def codes_of_json(body: bytes, default_size: str, max_items: int) -> list[Item[Codes | ViQError]]:
    """The items of an encode reply, either form of codes; or of one `Codes.to_dict()` by itself.

    `default_size` stands in where the body names none. What is wrong with one item becomes that item's value.
    """
    reply = parse_json(body)
    if "results" not in reply:
        return [_item({"size": default_size, **reply}, _RESULT | {"size", "fingerprint"})]
    _only(reply, _REPLY, "body")
    model, results = reply.get("model", {}), reply["results"]
    if not isinstance(model, dict) or not isinstance(results, list):
        raise InvalidInput("model must be an object and results a list")
    _only(model, _MODEL, "model")
    if len(results) > max_items:
        raise TooLarge(f"{len(results)} results in one request, the limit is {max_items}")
    known = {"size": model.get("size", default_size), "fingerprint": model.get("fingerprint", "")}
    return [_item(result, _RESULT, known) for result in results]


def codes_of_raw(body: bytes, headers: Headers, default_size: str) -> Codes:
    """Codes from raw little-endian uint16 and the `ViQ-*` headers that go with them."""
    grid = headers.get("viq-grid")
    if grid is None:
        raise InvalidInput("raw codes need the header ViQ-Grid: h,w")
    image_size = headers.get("viq-image-size")
    return Codes.from_bytes(
        body,
        _pair("ViQ-Grid", grid),
        headers.get("viq-size", default_size),
        None if image_size is None else _pair("ViQ-Image-Size", image_size),
        headers.get("viq-fingerprint", ""),
    )


def _item(result: object, allowed: frozenset[str], known: Mapping[str, object] | None = None) -> Item[Codes | ViQError]:
    if not isinstance(result, dict):
        return Item(InvalidInput(f"a result is a JSON {type(result).__name__}, expected an object"))
    name = result.get("name")
    try:
        return Item(_codes(result, allowed, known or {}), name if isinstance(name, str) else None)
    except ViQError as error:
        return Item(error.bare(), name if isinstance(name, str) else None)


def _codes(result: Mapping[str, object], allowed: frozenset[str], known: Mapping[str, object]) -> Codes:
    if "error" in result:
        raise InvalidInput("this result holds an error in place of codes")
    _only(result, allowed, "result")
    _bounded(result.get("grid"), "grid")
    _bounded(result.get("image_size"), "image_size")
    return Codes.from_dict({**known, **result})


def _bounded(pair: object, name: str) -> None:
    """Refuse numbers of thousands of digits: Python parses them but will not write their product into a message."""
    if isinstance(pair, list) and any(isinstance(side, int) and abs(side) >= _MAX_SIDE for side in pair):
        raise InvalidInput(f"{name} holds a number of {_MAX_SIDE} or more")


def _only(given: Mapping[str, object], allowed: frozenset[str], where: str) -> None:
    unknown = sorted(set(given) - allowed)
    if unknown:
        raise InvalidInput(f"unknown field {', '.join(map(repr, unknown))} in {where}; there are {sorted(allowed)}")


def _pair(header: str, text: str) -> tuple[int, int]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise InvalidInput(f"{header} is {text!r}, expected two whole numbers as h,w")
    return int(parts[0]), int(parts[1])
