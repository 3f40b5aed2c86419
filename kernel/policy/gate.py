"""What the trap asks: a decision for a caller, from the rules in force.

A caller is several subjects at once (a user, a profile, the processes that it descends from), and
each of them has to consent: the strictest answer counts, so nobody gains by being somebody else as
well. A decision depends on the rules alone and is cached until they change. A change is read and
judged apart and comes into force by one assignment.
"""

import shlex
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import anyio.to_thread

from .. import limits
from ..breath import Breath, release
from ..errors import Denied, Errno, SyscallError
from ..values import Effect
from .judge import Judge, Ruling
from .own import OwnFile
from .rules import Mistake, Rule, canonical, own, processes, read, refuse

Question = tuple[tuple[str, ...], str, str]  # subjects, action, object
_STRICT = {Effect.DENY: 0, Effect.ASK: 1, Effect.ALLOW: 2}


# Among the subjects of a call: those behind it are of a process that acts itself, whoever made it
# act. It is its own for them, and may be another application's for the caller.
ITSELF = "|"


@dataclass(frozen=True, slots=True)
class Decision:
    effect: Effect
    rule: str  # "careful.csv:12: p, r:careful, ...", or "" when none matched
    subject: str  # whose answer it is

    @property
    def allowed(self) -> bool:
        return self.effect is Effect.ALLOW

    def __bool__(self) -> bool:
        """Never: `if policy.check(...)` would be true of a refusal too."""
        raise TypeError("ask a decision whether it is `allowed`")


class Policy:
    """The rules in force. `epoch` counts how often they changed."""

    def __init__(
        self, actions: Collection[str], owner: str, own: Path, memory: Path | None = None
    ) -> None:
        self.epoch = 0
        self.own = OwnFile(own, memory)
        self._actions = actions
        self._members = [Rule("g", (f"u:{owner}", "r:owner"), "socket", 0)]
        self._shipped = _shipped(actions)
        self._cache: dict[str, dict[Question, Decision]] = {}  # by user: nobody can clear another's
        self._cached = 0  # decisions in it, or fewer
        self._of_process: dict[int, set[Question]] = {}  # cached, by whose process is named in it
        self.load()

    # --- rules come into force ------------------------------------------------------------------
    def load(self) -> None:
        """Read the owner's file at once. EINVAL with file and line changes nothing."""
        text = self.own.read()
        building = self._building(text)
        for _ in building:
            pass
        refuse(building.mistakes)
        self._adopt(building.judge, text)
        self.own.loaded(text)

    async def reload(self, text: str) -> None:
        """Bring these own rules into force, and let traffic pass meanwhile. EINVAL as `load`."""
        old = self._swap(await self.judged(text), text)
        await release(old)
        await anyio.to_thread.run_sync(self.own.loaded, text)

    async def mistakes(self, text: str) -> list[str]:
        """What is wrong with these own rules, row by row."""
        building = self._building(text)
        await _breathe(building)
        return [str(one) for one in building.mistakes]

    async def judged(self, text: str) -> Judge:
        """What would be in force with these own rules. EINVAL with file and line."""
        building = self._building(text)
        await _breathe(building)
        refuse(building.mistakes)
        return building.judge

    def _building(self, text: str) -> "Building":
        return Building(self._actions, [*self._members, *self._shipped], text, self.own.name)

    def _swap(self, judge: Judge, text: str) -> list[Any]:
        """From now on this judge decides. What the one before and the cache were made of."""
        old = [*self.judge.parts(), *self._of_process.values()]
        for mine in self._cache.values():
            old += (*mine, *mine.values())
        self._adopt(judge, text)
        return old

    def _adopt(self, judge: Judge, text: str) -> None:
        self.judge, self.text = judge, text
        self._cache, self._cached, self._of_process = {}, 0, {}
        self.epoch += 1

    def members(self, roles: Iterable[tuple[str, str]]) -> None:
        """Users and their roles, as (name, role); in force with the next load."""
        told = [Rule("g", (f"u:{name}", f"r:{role}"), "users", 0) for name, role in roles]
        self._members = [self._members[0], *told]

    # --- decisions ------------------------------------------------------------------------------
    def check(self, subjects: tuple[str, ...], action: str, object_: str) -> Decision:
        """The decision for a caller who is all of `subjects`. Anything unclear is a deny."""
        mine = self._cache.get(subjects[0]) if subjects else {}
        key = (subjects, action, object_)
        decision = mine.get(key) if mine else None
        if decision is None:
            decision = self.decide(self.judge, subjects, action, object_)
            self._keep(key, decision)
        return decision

    @property
    def kept(self) -> tuple[int, int]:
        """Decisions that are cached, and questions that name a process."""
        return sum(map(len, self._cache.values())), sum(map(len, self._of_process.values()))

    def _keep(self, key: "Question", decision: Decision) -> None:
        """Cache a decision. Of a user who has too many, all go; so they do of who has most."""
        mine = self._cache.setdefault(key[0][0] if key[0] else "", {})
        if len(mine) >= limits.USER_DECISIONS:
            mine.clear()
        mine[key] = decision
        for pid in processes(key[0], key[2]):
            self._of_process.setdefault(pid, set()).add(key)
        self._cached += 1
        if self._cached > limits.DECISIONS:  # counted anew: some were cleared meanwhile
            self._cached = sum(map(len, self._cache.values()))
            if self._cached > limits.DECISIONS:
                most = max(self._cache, key=lambda user: len(self._cache[user]))
                self._cached -= len(self._cache.pop(most))

    def forget(self, pid: int) -> None:
        """A process is gone, and its number is never given again."""
        for key in self._of_process.pop(pid, ()):
            for other in processes(key[0], key[2]) - {pid}:
                self._of_process.get(other, set()).discard(key)
            self._cache.get(key[0][0] if key[0] else "", {}).pop(key, None)

    def decide(self, judge: Judge, subjects: Sequence[str], action: str, object_: str) -> Decision:
        """The strictest answer; not cached, by any rules."""
        strictest: Decision | None = None
        for subject, _, ruling in self.voices(judge, subjects, action, object_):
            if isinstance(ruling, str):
                return Decision(Effect.DENY, ruling, subject)
            if strictest is None or _STRICT[ruling.effect] < _STRICT[strictest.effect]:
                strictest = Decision(ruling.effect, str(ruling.rule or ""), subject)
        if strictest is None:
            return Decision(Effect.DENY, "nobody asks", "")
        return strictest

    def voices(
        self, judge: Judge, subjects: Sequence[str], action: str, object_: str
    ) -> Iterator[tuple[str, str, Ruling | str]]:
        """Each subject that has something to say, of which object, and what, or why it cannot be
        told."""
        for subject, asked in about(subjects, object_):
            ruling = self.rule(judge, subject, action, asked)
            if isinstance(ruling, str) or ruling.rule is not None or not judge.silent(subject):
                yield subject, asked, ruling

    def rule(self, judge: Judge, subject: str, action: str, object_: str) -> Ruling | str:
        """One subject's answer, or why there is none."""
        if not canonical(object_):
            return f"{object_!a:.100} is not a canonical path"
        if action not in self._actions:
            return f"{action!r:.40} is no syscall"
        try:
            return judge.rule(subject, action, object_)
        except Exception as error:  # the judge itself failed: a deny, whatever it is
            return f"the rules could not be judged: {error}"

    def refusal(self, subjects: tuple[str, ...], action: str, object_: str, call: int) -> Denied:
        """A refusal that names the rule, and the command that explains it.

        `call`: the number of its row in the journal; 0: it has none.
        """
        decision = self.check(subjects, action, object_)
        asks = decision.effect is Effect.ASK
        why = decision.rule or f"no rule allows it to {decision.subject}"
        named = object_ if canonical(object_) else f"{object_!a:.100}"  # it may hold anything
        asked = action
        if action == "hello":
            action, named = "come as", named.rpartition("/")[2]
        what = "has to ask a person before it may" if asks else "may not"
        who = " as ".join(one for one in subjects if one != ITSELF)
        question = str(call) if call else shlex.join((*subjects, asked, object_))
        return Denied(
            f"{who} {what} {action} {named}: {why}",
            f"`llmasos policy explain {question}` tells more, and how to change it",
            asks=asks,
        )


def about(subjects: Sequence[str], object_: str) -> Iterator[tuple[str, str]]:
    """Each subject with the name that the object has for it."""
    for subject in subjects:
        if subject == ITSELF:
            object_ = own(object_)
        else:
            yield subject, object_


class Building:
    """A judge that is being made; iterate, then take it. Breathes every few rows."""

    def __init__(
        self, actions: Collection[str], fixed: Sequence[Rule], text: str, name: str
    ) -> None:
        self.mistakes: list[Mistake] = []
        self._actions, self._fixed, self._text, self._name = actions, fixed, text, name

    def __iter__(self) -> Generator[None]:
        own = yield from read(self._text, self._name, self._actions, self.mistakes)
        rows = len(own) + sum(rule.line > 0 for rule in self._fixed)  # users are no rows of a file
        if rows > limits.RULES:
            words = f"{rows} rules, {limits.RULES} are allowed"
            raise SyscallError(Errno.EINVAL, words, "join rules by roles and /*")
        self.judge = Judge(model(), [*self._fixed, *own])
        yield from self.judge.build()
        yield from self.judge.roles.mistakes(self.mistakes)


async def _breathe(building: Building) -> None:
    breath = Breath()
    for _ in building:
        await breath()


def _folder() -> Traversable:
    return files("llmasos.policies")


@cache
def model() -> str:
    """The Casbin model."""
    return (_folder() / "model.conf").read_text(encoding="utf-8")


def _shipped(actions: Collection[str]) -> list[Rule]:
    """The rules of a fresh machine, one file a profile."""
    found: list[Rule] = []
    mistakes: list[Mistake] = []
    for file in sorted(_folder().iterdir(), key=lambda file: file.name):
        if file.name.endswith(".csv"):
            reading = read(file.read_text(encoding="utf-8"), file.name, actions, mistakes)
            found += _all(reading)
    refuse(mistakes)
    return found


def _all(reading: Generator[None, None, list[Rule]]) -> list[Rule]:
    while True:
        try:
            next(reading)
        except StopIteration as end:
            rules: list[Rule] = end.value
            return rules
