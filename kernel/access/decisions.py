"""Policy decisions: whether the rules in force allow a caller an action on an object, and why.

Read from `check` down. A caller has several subjects (a user, a profile, the processes that it
descends from), and each of them must allow the call: the strictest result of the evaluator wins, so
an additional subject never adds permissions. A decision depends on the rules alone and is cached
until they change. New rules are parsed and checked separately and take effect by one assignment.
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

from ..abi import limits
from ..abi.errors import Denied, Errno, SyscallError
from ..abi.values import Effect
from ..yield_point import YieldPoint, release
from .evaluator import Evaluation, Evaluator
from .rules import Mistake, Rule, canonical, own_path, parse, pids_in, refuse
from .user_rules import UserRulesFile

CacheKey = tuple[tuple[str, ...], str, str]  # subjects, action, object
_STRICT = {Effect.DENY: 0, Effect.ASK: 1, Effect.ALLOW: 2}

# Separates the caller's subjects from those of a process that acts in the call. The process is an
# own process for the subjects after the separator, and may be another application's for the caller.
PROCESS_SEPARATOR = "|"


@dataclass(frozen=True, slots=True)
class Decision:
    effect: Effect
    rule: str  # "careful.csv:12: p, r:careful, ...", or "" when none matched
    subject: str  # the subject that the decision is about

    @property
    def allowed(self) -> bool:
        return self.effect is Effect.ALLOW

    def __bool__(self) -> bool:
        """Raises TypeError: `if policy.check(...)` would be true for a denied call as well."""
        raise TypeError("a decision has no truth value: use `decision.allowed`")


class Policy:
    """The rules in force. `epoch` counts their changes."""

    def __init__(
        self, actions: Collection[str], owner: str, user_rules: Path, copy: Path | None = None
    ) -> None:
        self.epoch = 0
        self.user_rules = UserRulesFile(user_rules, copy)
        self._actions = actions
        self._members = [Rule("g", (f"u:{owner}", "r:owner"), "socket", 0)]
        self._shipped = _shipped(actions)
        # By user: one user's calls do not clear the decisions of another.
        self._cache: dict[str, dict[CacheKey, Decision]] = {}
        self._cached = 0  # upper bound of the number of cached decisions
        self._of_process: dict[int, set[CacheKey]] = {}  # cached keys that name the process, by pid
        self.load()

    # --- decisions ------------------------------------------------------------------------------
    def check(self, subjects: tuple[str, ...], action: str, object_: str) -> Decision:
        """The decision for a caller with these subjects. Errors and unknown values are a deny."""
        of_user = self._cache.get(subjects[0]) if subjects else {}
        key = (subjects, action, object_)
        decision = of_user.get(key) if of_user else None
        if decision is None:
            decision = self.decide(self.evaluator, subjects, action, object_)
            self._store(key, decision)
        return decision

    def decide(
        self, evaluator: Evaluator, subjects: Sequence[str], action: str, object_: str
    ) -> Decision:
        """The strictest result of an evaluator, not cached. It need not be the one in force."""
        strictest: Decision | None = None
        for subject, _, result in self.evaluations(evaluator, subjects, action, object_):
            if isinstance(result, str):
                return Decision(Effect.DENY, result, subject)
            if strictest is None or _STRICT[result.effect] < _STRICT[strictest.effect]:
                strictest = Decision(result.effect, str(result.rule or ""), subject)
        if strictest is None:
            return Decision(Effect.DENY, "no subject has an applicable rule", "")
        return strictest

    def evaluations(
        self, evaluator: Evaluator, subjects: Sequence[str], action: str, object_: str
    ) -> Iterator[tuple[str, str, Evaluation | str]]:
        """Each subject that does not abstain, with its object and its result (see `evaluate`)."""
        for subject, path in subject_objects(subjects, object_):
            result = self.evaluate(evaluator, subject, action, path)
            if isinstance(result, str) or result.rule or not evaluator.may_abstain(subject):
                yield subject, path, result

    def evaluate(
        self, evaluator: Evaluator, subject: str, action: str, object_: str
    ) -> Evaluation | str:
        """The evaluation for one subject, or the reason why it failed."""
        if not canonical(object_):
            return f"{object_!a:.100} is not a canonical path"
        if action not in self._actions:
            return f"{action!r:.40} is not a syscall"
        try:
            return evaluator.evaluate(subject, action, object_)
        except Exception as error:  # any failure of the evaluator is a deny
            return f"the rules could not be evaluated: {error}"

    def refusal(self, subjects: tuple[str, ...], action: str, object_: str, call: int) -> Denied:
        """An EACCES error that names the rule and the command that explains it.

        `call`: the number of the call's row in the journal; 0: it has none.
        """
        decision = self.check(subjects, action, object_)
        asks = decision.effect is Effect.ASK
        why = decision.rule or f"no rule allows it for {decision.subject}"
        shown = object_ if canonical(object_) else f"{object_!a:.100}"  # it may hold any characters
        verb = action
        if action == "hello":
            verb, shown = "connect as", shown.rpartition("/")[2]
        what = "needs a person's approval to" if asks else "may not"
        who = " as ".join(one for one in subjects if one != PROCESS_SEPARATOR)
        arguments = str(call) if call else shlex.join((*subjects, action, object_))
        return Denied(
            f"{who} {what} {verb} {shown}: {why}",
            f"`llmasos policy explain {arguments}` shows the rules and how to change them",
            needs_approval=asks,
        )

    # --- cached decisions -----------------------------------------------------------------------
    @property
    def cache_sizes(self) -> tuple[int, int]:
        """The number of cached decisions, and of cached keys that name a process."""
        return sum(map(len, self._cache.values())), sum(map(len, self._of_process.values()))

    def _store(self, key: CacheKey, decision: Decision) -> None:
        """Cache a decision.

        At USER_DECISIONS all decisions of the user are dropped. Above DECISIONS those of the user
        with the most are dropped.
        """
        of_user = self._cache.setdefault(key[0][0] if key[0] else "", {})
        if len(of_user) >= limits.USER_DECISIONS:
            of_user.clear()
        of_user[key] = decision
        for pid in pids_in(key[0], key[2]):
            self._of_process.setdefault(pid, set()).add(key)
        self._cached += 1
        if self._cached > limits.DECISIONS:  # recount: `clear` and `forget` do not subtract
            self._cached = sum(map(len, self._cache.values()))
            if self._cached > limits.DECISIONS:
                most = max(self._cache, key=lambda user: len(self._cache[user]))
                self._cached -= len(self._cache.pop(most))

    def forget(self, pid: int) -> None:
        """Drop the cached decisions of a removed process; pids are not reused."""
        for key in self._of_process.pop(pid, ()):
            for other in pids_in(key[0], key[2]) - {pid}:
                self._of_process.get(other, set()).discard(key)
            self._cache.get(key[0][0] if key[0] else "", {}).pop(key, None)

    # --- the rules in force ---------------------------------------------------------------------
    def load(self) -> None:
        """Load the user rules from their file. EINVAL with file and line; then nothing changes."""
        text = self.user_rules.read()
        build = self._start_build(text)
        for _ in build:
            pass
        refuse(build.mistakes)
        self._install(build.evaluator, text)
        self.user_rules.save_copy(text)

    async def reload(self, text: str) -> None:
        """Replace the user rules, yielding to other tasks. EINVAL as `load`."""
        await self.put_into_force(await self.evaluator_for(text), text)

    async def put_into_force(self, evaluator: Evaluator, text: str) -> None:
        """Replace the rules by an evaluator of this text, built since the last `set_members`."""
        old = self._swap(evaluator, text)
        await release(old)
        await anyio.to_thread.run_sync(self.user_rules.save_copy, text)

    async def mistakes(self, text: str, file: str = "") -> list[Mistake]:
        """The mistakes in a text of user rules. `file`: its path; empty: it is the user rules'."""
        build = self._start_build(text, file)
        await _run(build)
        await release(build.evaluator.take_apart())
        return build.mistakes

    async def evaluator_for(self, text: str, file: str = "") -> Evaluator:
        """An evaluator for a text of user rules, not in force. EINVAL with file and line."""
        build = self._start_build(text, file)
        await _run(build)
        if build.mistakes:
            await release(build.evaluator.take_apart())
        refuse(build.mistakes, file)
        return build.evaluator

    def _start_build(self, text: str, file: str = "") -> "EvaluatorBuild":
        fixed = [*self._members, *self._shipped]
        return EvaluatorBuild(self._actions, fixed, text, file or self.user_rules.name)

    def _swap(self, evaluator: Evaluator, text: str) -> list[Any]:
        """Install an evaluator. Returns the objects of the previous one and of the cache."""
        old = self.evaluator.take_apart()
        old += self._of_process.values()
        for of_user in self._cache.values():
            old += (*of_user, *of_user.values())
        self._install(evaluator, text)
        return old

    def _install(self, evaluator: Evaluator, text: str) -> None:
        self.evaluator, self.text = evaluator, text
        self._cache, self._cached, self._of_process = {}, 0, {}
        self.epoch += 1

    def set_members(self, roles: Iterable[tuple[str, str]]) -> None:
        """Set the users and their roles, as (name, role); in force with the next load."""
        rules = [Rule("g", (f"u:{name}", f"r:{role}"), "users", 0) for name, role in roles]
        self._members = [self._members[0], *rules]


def subject_objects(subjects: Sequence[str], object_: str) -> Iterator[tuple[str, str]]:
    """Each subject with the path that the object has for it."""
    for subject in subjects:
        if subject == PROCESS_SEPARATOR:
            object_ = own_path(object_)
        else:
            yield subject, object_


class EvaluatorBuild:
    """Builds an evaluator in steps: iterate to the end, then read `mistakes` and `evaluator`."""

    def __init__(
        self, actions: Collection[str], fixed: Sequence[Rule], text: str, name: str
    ) -> None:
        self.mistakes: list[Mistake] = []
        self._actions, self._fixed, self._text, self._name = actions, fixed, text, name

    def __iter__(self) -> Generator[None]:
        user_rules = yield from parse(self._text, self._name, self._actions, self.mistakes)
        # Rules on line 0 come from the user table, not from a file.
        rows = len(user_rules) + sum(rule.line > 0 for rule in self._fixed)
        if rows > limits.RULES:
            message = f"{rows} rules; at most {limits.RULES} are allowed"
            raise SyscallError(Errno.EINVAL, message, "combine rules with roles and /*")
        self.evaluator = Evaluator(model(), [*self._fixed, *user_rules])
        yield from self.evaluator.build()
        yield from self.evaluator.roles.mistakes(self.mistakes)


async def _run(build: EvaluatorBuild) -> None:
    """Run a build to its end, yielding to other tasks."""
    yield_point = YieldPoint()
    for _ in build:
        await yield_point()


def _folder() -> Traversable:
    return files("llmasos.policies")


@cache
def model() -> str:
    """The Casbin model."""
    return (_folder() / "model.conf").read_text(encoding="utf-8")


def _shipped(actions: Collection[str]) -> list[Rule]:
    """The shipped rules, one file for each profile or role."""
    found: list[Rule] = []
    mistakes: list[Mistake] = []
    for file in sorted(_folder().iterdir(), key=lambda file: file.name):
        if file.name.endswith(".csv"):
            steps = parse(file.read_text(encoding="utf-8"), file.name, actions, mistakes)
            found += _result(steps)
    refuse(mistakes)
    return found


def _result(steps: Generator[None, None, list[Rule]]) -> list[Rule]:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            rules: list[Rule] = end.value
            return rules
