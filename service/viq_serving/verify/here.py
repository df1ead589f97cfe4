"""The promise held in this process: one model, its pictures in any company."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from viq.codes import Codes
from viq_serving.verify.pictures import Picture, Pixels, shuffled
from viq_serving.verify.report import Check, compare

Encode = Callable[[Sequence[Pixels]], list[Codes]]
Order = Sequence[Sequence[int]]
"""Which pictures, by index, are encoded together, group by group."""

_GROUPS = (3, 1, 5, 2, 7, 4)


def passes(count: int) -> dict[str, Order]:
    """Ways to encode `count` pictures in company, by name."""
    everyone = range(count)
    return {
        "packed together": [everyone],
        "packed in reverse order": [everyone[::-1]],
        "packed in a shuffled order": [shuffled(count, 1)],
        "packed in random groups": _grouped(shuffled(count, 2)),
    }


def alone(encode: Encode, pictures: Sequence[Picture], advance: Callable[[int], None]) -> list[Codes]:
    """Codes of each picture encoded by itself."""
    codes = []
    for picture in pictures:
        codes += encode([picture.pixels])
        advance(1)
    return codes


def checks(
    encode: Encode, pictures: Sequence[Picture], expected: Sequence[Codes], advance: Callable[[int], None]
) -> Iterator[Check]:
    """Each way of packing `pictures`, held against the codes `expected` of each alone."""
    for name, order in passes(len(pictures)).items():
        found: dict[int, Codes] = {}
        for group in order:
            made = encode([pictures[index].pixels for index in group])
            found.update(zip(group, made, strict=True))
            advance(len(group))
        yield compare(name, [one.name for one in pictures], expected, [found[i] for i in range(len(pictures))])


def _grouped(order: Sequence[int]) -> Order:
    groups, begin = list[Sequence[int]](), 0
    while begin < len(order):
        end = begin + _GROUPS[len(groups) % len(_GROUPS)]
        groups.append(order[begin:end])
        begin = end
    return groups
