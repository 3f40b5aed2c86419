"""The rules of a grammar, and the removal of those that can never end."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RuleAlternative:
    """An alternative of a rule, in Lark."""

    text: str
    needs: frozenset[str] = frozenset()  # rules that it requires
    condition: str = ""


def resolvable(needs: dict[tuple[str, int], set[str]]) -> set[str]:
    """Names with an alternative that needs only resolvable names.

    `needs`: the names that each (name, alternative) needs; consumed.
    """
    dependents: dict[str, list[tuple[str, int]]] = {}
    for key, names in needs.items():
        for name in names:
            dependents.setdefault(name, []).append(key)
    ready = [name for (name, _), names in needs.items() if not names]
    found = set[str]()
    while ready:
        name = ready.pop()
        if name not in found:
            found.add(name)
            for key in dependents.get(name, ()):
                needs[key].discard(name)
                if not needs[key]:
                    ready.append(key[0])
    return found


def ending(rules: Mapping[str, list[RuleAlternative]]) -> dict[str, list[RuleAlternative]]:
    """The rules that can end, with those of their alternatives that can."""
    needs = {
        (name, number): set(alternative.needs)
        for name, alternatives in rules.items() for number, alternative in enumerate(alternatives)
    }  # fmt: skip
    good = resolvable(needs)
    return {
        name: [alternative for alternative in alternatives if alternative.needs <= good]
        for name, alternatives in rules.items() if name in good
    }  # fmt: skip
