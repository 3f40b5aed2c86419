"""How well a window serves its process: hits, faults, evictions, and the alarm when it thrashes.

A page that a call sees and that was there before is a hit when the engine still had it, and a hard
fault when it had to be computed again; one that came back is a soft fault when the engine still had
it, and a hard fault otherwise. New pages are neither.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from .. import limits
from .paging import Plan


@dataclass(slots=True)
class Counts:
    """Since boot."""

    hits: int = 0
    soft: int = 0
    hard: int = 0
    evicted: int = 0
    thrashes: int = 0  # calls at which the alarm was on


@dataclass(frozen=True, slots=True)
class Account:
    """What one call did."""

    hits: int
    soft: int
    hard: int
    computed: int  # tokens of hard faults
    hard_pages: frozenset[int]


@dataclass(slots=True)
class Faults:
    """The counts of the machine, and of each process."""

    total: Counts = field(default_factory=Counts)
    _by_pid: dict[int, Counts] = field(default_factory=dict[int, Counts])
    _lately: dict[int, deque[float]] = field(default_factory=dict[int, deque[float]])

    def of(self, pid: int) -> Counts:
        return self._by_pid.setdefault(pid, Counts())

    def forget(self, pid: int) -> None:
        self._by_pid.pop(pid, None)
        self._lately.pop(pid, None)

    def charge(self, pid: int, plan: Plan, cached: int, window: int) -> tuple[Account, str]:
        """Count a call; a notice when its process thrashes."""
        done = account(plan, cached)
        lately = self._lately.setdefault(pid, deque(maxlen=limits.THRASH_CALLS))
        lately.append(done.computed / window)
        thrashes = sum(lately) > limits.THRASH_WINDOWS
        for counts in (self.total, self.of(pid)):
            counts.hits += done.hits
            counts.soft += done.soft
            counts.hard += done.hard
            counts.evicted += len(plan.evicted)
            counts.thrashes += thrashes
        if not thrashes:
            return done, ""
        return done, (
            f"process {pid} thrashes: in its last {len(lately)} calls {sum(lately):.1f} windows of "
            f"{window} tokens were computed again; a larger window would help"
        )


def account(plan: Plan, cached: int) -> Account:
    """Which pages of a call were still in the engine, by where they end in the prompt."""
    back = {hit.page.number for hit in plan.back}
    order = [*(n for p in plan.window for n in p.numbers()), *sorted(back)]
    known = sum(plan.sizes.values()) + sum(_sizes(plan))
    pieces = len(order) + sum(1 for kept in plan.kept for _ in kept)
    beside = max(0.0, plan.prompt.size - known) / max(1, pieces)  # a template's tokens, spread
    hits = soft = computed = 0
    hard: set[int] = set()
    end = 0.0
    for number in order:
        end += plan.sizes[number] + beside
        if end > cached + beside:
            hard.add(number)
            computed += plan.sizes[number]
        elif number in back:
            soft += 1
        else:
            hits += 1
    return Account(hits, soft, len(hard), computed, frozenset(hard))


def _sizes(plan: Plan) -> Sequence[int]:
    return [plan.cuts[i][j].tokens for i, kept in enumerate(plan.kept) for j in kept]
