"""Rules of a grammar, of which some can never end and are left out."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Way:
    """An alternative of a rule, as Lark writes it."""

    text: str
    needs: frozenset[str] = frozenset()  # rules without which it cannot be
    condition: str = ""


def settled(waits: dict[tuple[str, int], set[str]]) -> set[str]:
    """Names that wait for nothing, or in one of their ways only for such names."""
    waiting: dict[str, list[tuple[str, int]]] = {}
    for key, names in waits.items():
        for name in names:
            waiting.setdefault(name, []).append(key)
    ready = [name for (name, _), names in waits.items() if not names]
    found = set[str]()
    while ready:
        name = ready.pop()
        if name not in found:
            found.add(name)
            for key in waiting.get(name, ()):
                waits[key].discard(name)
                if not waits[key]:
                    ready.append(key[0])
    return found


def ending(rules: Mapping[str, list[Way]]) -> dict[str, list[Way]]:
    """The rules that can end, with the alternatives that can."""
    waits = {
        (name, number): set(way.needs)
        for name, ways in rules.items() for number, way in enumerate(ways)
    }  # fmt: skip
    good = settled(waits)
    return {
        name: [way for way in ways if way.needs <= good]
        for name, ways in rules.items() if name in good
    }  # fmt: skip
