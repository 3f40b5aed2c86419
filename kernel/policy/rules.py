"""Rows of the policy language, checked before Casbin sees them: it lets mistakes pass as rights.

    p, subject, syscall, object, allow|ask|deny      subject: u:NAME, r:NAME, app:NAME or pid:NUMBER
    g, member, r:NAME                                the member has the role's rules too

An effect spelled `Deny` would be ignored, an inner wildcard would swallow the rest of a path, a
user named like a role would get it, a chain of roles that is too long would lose a deny at its end,
and a line break that only some programs see would make a row of a comment.
"""

import re
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO

from ..errors import Errno, SyscallError
from ..values import SUBJECT, Effect

_MEMBER = re.compile(SUBJECT)
_ROLE = re.compile(r"r:[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_OBJECT = re.compile(r"(/[A-Za-z0-9._:+-]+)+")
_PATTERN = re.compile(r"((/[A-Za-z0-9._:+-]+)+(/\*)?)|/\*")
_PROCESS = re.compile(r"(?:/proc/(?:own/)?|pid:)([0-9]+)(?:/|$)")
_WANT_MEMBER = "want u:NAME, r:NAME, app:NAME or pid:NUMBER in plain letters"
_OWN = ("/proc/own", "/journal/own")  # what the caller's application started, and its events
ROLE_DEPTH = 8  # above a role; Casbin follows nine in all, then forgets denies
_EFFECTS = frozenset(Effect)
SLICE = 32  # rows between two breaths of whoever drives a reading


@dataclass(frozen=True, slots=True)
class Rule:
    kind: str  # p or g
    fields: tuple[str, ...]
    file: str
    line: int

    @property
    def text(self) -> str:
        return f"{self.kind}, {', '.join(self.fields)}"

    @property
    def effect(self) -> Effect:
        return Effect(self.fields[3])

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


@dataclass(frozen=True, slots=True)
class Mistake:
    """A row that may not be loaded."""

    file: str
    line: int
    why: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.why}"


def canonical(object_: str) -> bool:
    """Whether a path has one spelling: no `..`, no `//`, no end in a slash, plain letters."""
    plain = _OBJECT.fullmatch(object_) is not None
    return plain and {".", ".."}.isdisjoint(object_.split("/"))


def names(object_: str) -> tuple[str, ...]:
    """The object, and for an own process its name without `own`.

    /proc/own/7/mem is /proc/7/mem too, so that a rule about process 7, or about all processes,
    holds for the application that started it as for every other one.
    """
    for own in _OWN:
        if object_ == own or object_.startswith(f"{own}/"):
            return object_, own.removesuffix("/own") + object_.removeprefix(own)
    return (object_,)


def own(object_: str) -> str:
    """A process by the name that it has for the application that started it."""
    if object_.startswith("/proc/") and not object_.startswith("/proc/own/"):
        return object_.replace("/proc/", "/proc/own/", 1)
    return object_


def processes(subjects: Iterable[str], object_: str) -> set[int]:
    """The processes that a question names, as its object or among who asks."""
    names = [object_, *subjects]
    return {int(found[1]) for name in names if (found := _PROCESS.match(name)) is not None}


def under(object_: str, pattern: str) -> bool:
    """Equal, or below a pattern that ends in /*, by any name of the object."""
    if pattern.endswith("/*"):
        return any(name.startswith(pattern[:-1]) for name in names(object_))
    return pattern in names(object_)


def patterns(object_: str) -> list[str]:
    """Every pattern that the object is under, each once."""
    found = list[str]()
    for name in names(object_):
        parts = name.split("/")
        found += [name, *("/".join([*parts[:end], "*"]) for end in range(1, len(parts)))]
    return list(dict.fromkeys(found))


def read(
    text: str, file: str, actions: Collection[str], mistakes: list[Mistake]
) -> Generator[None, None, list[Rule]]:
    """The rows of a file; what is wrong is added to `mistakes`. Breathes every SLICE rows."""
    found: list[Rule] = []
    for number, line in enumerate(StringIO(text, newline="\n"), 1):
        if number % SLICE == 0:
            yield
        row = line.split("#", 1)[0].strip()
        kind, *fields = (field.strip() for field in row.split(","))
        rule = Rule(kind, tuple(fields), file, number)
        why = _hidden(line.rstrip("\r\n")) or (_wrong(rule, actions) if row else "")
        if why:
            mistakes.append(Mistake(file, number, why))
        elif row:
            found.append(rule)
    return found


def _hidden(line: str) -> str:
    """What a person would not see, in comments too: to others it may be a line's end."""
    plain = line.replace("\t", " ")
    if plain.isprintable():
        return ""
    odd = next(char for char in plain if not char.isprintable())
    return f"the character {odd!a} shows as nothing, or as something else"


def _wrong(rule: Rule, actions: Collection[str]) -> str:
    """What is wrong with a row, or nothing."""
    checks: tuple[tuple[object, str], ...]
    match (rule.kind, rule.fields):
        case ("p", (subject, action, pattern, effect)):
            checks = (
                (_MEMBER.fullmatch(subject), f"subject {subject!r:.80}: {_WANT_MEMBER}"),
                (action == "*" or action in actions, f"no syscall {action!r:.80}"),
                (_fits(pattern), f"object {pattern!r:.80}: want /a/path or /a/*, no other *"),
                (effect in _EFFECTS, f"effect {effect!r:.80}: want allow, ask or deny"),
            )
        case ("g", (member, role)):
            checks = (
                (_MEMBER.fullmatch(member), f"subject {member!r:.80}: {_WANT_MEMBER}"),
                (_ROLE.fullmatch(role), f"role {role!r:.80}: want r:NAME"),
            )
        case _:
            want = "want `p, subject, syscall, object, effect` or `g, subject, role`"
            checks = ((False, f"{rule.kind!r:.40} with {len(rule.fields)} fields: {want}"),)
    return next((why for right, why in checks if not right), "")


def _fits(pattern: str) -> bool:
    return _PATTERN.fullmatch(pattern) is not None and {".", ".."}.isdisjoint(pattern.split("/"))


def refuse(mistakes: Sequence[Mistake]) -> None:
    """EINVAL with the first mistake, and how many more there are."""
    if mistakes:
        more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
        hint = "mend the line, or see all of them: `llmasos policy lint`"
        raise SyscallError(Errno.EINVAL, f"{mistakes[0]}{more}", hint)


class Roles:
    """Who has which roles, through other roles too."""

    def __init__(self) -> None:
        self._above: dict[str, list[Rule]] = {}
        self._known: dict[str, dict[str, tuple[Rule, ...]]] = {}

    def add(self, rule: Rule) -> None:
        """Before the first question."""
        self._above.setdefault(rule.fields[0], []).append(rule)

    def mistakes(self, found: list[Mistake]) -> Generator[None]:
        """Adds circles, and chains so long that Casbin would lose a deny at their end.

        Of roles alone: nobody has a user as a role, so who comes and goes makes no rule a mistake.
        """
        depths: dict[str, int] = {}
        for number, member in enumerate(self._above, 1):
            if number % SLICE == 0:
                yield
            if member.startswith("r:") and member not in depths:
                yield from self._climb(member, depths, found)

    def _climb(self, first: str, depths: dict[str, int], found: list[Mistake]) -> Generator[None]:
        """Depth-first without recursion: a chain of thousands of roles is a mistake, no crash."""
        path = {first}
        stack = [(first, self._rows(first))]
        while stack:
            member, rules = stack[-1]
            rule = next(rules, None)
            if rule is None:
                self._measure(member, depths, found)
                stack.pop()
                path.remove(member)
            elif rule.fields[1] in path:
                found.append(Mistake(rule.file, rule.line, f"{rule.fields[1]} goes in a circle"))
            elif rule.fields[1] not in depths:
                path.add(rule.fields[1])
                stack.append((rule.fields[1], self._rows(rule.fields[1])))
            if len(depths) % SLICE == 0 or len(stack) % SLICE == 0:
                yield

    def _measure(self, member: str, depths: dict[str, int], found: list[Mistake]) -> None:
        """How many rows are above a member, when that is known of all its roles."""
        above = (depths.get(rule.fields[1], 0) for rule in self._rows(member))
        depths[member] = 1 + max(above, default=-1)
        if depths[member] == ROLE_DEPTH + 1:
            rule = self._above[member][0]
            words = f"roles are nested deeper than {ROLE_DEPTH}"
            found.append(Mistake(rule.file, rule.line, words))

    def _rows(self, member: str) -> Iterator[Rule]:
        return iter(self._above.get(member, ()))

    def bind(self, subject: str) -> bool:
        """Whether it has any role."""
        return subject in self._above

    def of(self, subject: str) -> dict[str, tuple[Rule, ...]]:
        """The subject and all its roles, each with the rows on the way there."""
        if subject not in self._above:
            return {subject: ()}  # not remembered: processes come and go without end
        known: dict[str, tuple[Rule, ...]] | None = self._known.get(subject)
        if known is None:
            known = {subject: ()}
            queue = [subject]
            for member in queue:
                for rule in self._above.get(member, ()):
                    if rule.fields[1] not in known:
                        known[rule.fields[1]] = (*known[member], rule)
                        queue.append(rule.fields[1])
            self._known[subject] = known
        return known
