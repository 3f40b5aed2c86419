"""Counts hits, faults and evictions of windows, and detects thrashing.

A page of the old window is a hit when the engine still had its KV, and a hard fault when it had to
be computed again. A recalled page is a soft fault when the engine still had its KV, and a hard
fault otherwise. New pages are neither.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..abi import limits
from .paging import PagingPlan


@dataclass(slots=True)
class Counts:
    """Since boot."""

    hits: int = 0
    soft: int = 0
    hard: int = 0
    evicted: int = 0
    thrashes: int = 0  # calls during which the process thrashed


@dataclass(frozen=True, slots=True)
class Account:
    """The counts of one call."""

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
    _recent: dict[int, deque[float]] = field(default_factory=dict[int, deque[float]])

    def of(self, pid: int) -> Counts:
        return self._by_pid.setdefault(pid, Counts())

    def forget(self, pid: int) -> None:
        self._by_pid.pop(pid, None)
        self._recent.pop(pid, None)

    def charge(self, pid: int, plan: PagingPlan, cached: int, window: int) -> tuple[Account, str]:
        """Count a call; also returns a notice when its process thrashes."""
        done = account(plan, cached)
        recent = self._recent.setdefault(pid, deque(maxlen=limits.THRASH_CALLS))
        recent.append(done.computed / window)
        thrashes = sum(recent) > limits.THRASH_WINDOWS
        for counts in (self.total, self.of(pid)):
            counts.hits += done.hits
            counts.soft += done.soft
            counts.hard += done.hard
            counts.evicted += len(plan.evicted)
            counts.thrashes += thrashes
        if not thrashes:
            return done, ""
        return done, (
            f"process {pid} thrashes: its last {len(recent)} calls computed {sum(recent):.1f} "
            f"windows of {window} tokens again; use a larger window"
        )


def account(plan: PagingPlan, cached: int) -> Account:
    """Count the pages of a call that were still in the engine, by their end in the prompt."""
    recalled = {hit.page.number for hit in plan.recalled}
    order = [*(n for p in plan.window for n in p.numbers()), *sorted(recalled)]
    known = sum(plan.sizes.values()) + sum(_sizes(plan))
    pages = len(order) + sum(1 for kept in plan.kept for _ in kept)
    template_tokens = max(0.0, plan.prompt.size - known) / max(1, pages)  # per page
    hits = soft = computed = 0
    hard: set[int] = set()
    end = 0.0
    for number in order:
        end += plan.sizes[number] + template_tokens
        if end > cached + template_tokens:
            hard.add(number)
            computed += plan.sizes[number]
        elif number in recalled:
            soft += 1
        else:
            hits += 1
    return Account(hits, soft, len(hard), computed, frozenset(hard))


def _sizes(plan: PagingPlan) -> Sequence[int]:
    return [plan.cuts[i][j].tokens for i, kept in enumerate(plan.kept) for j in kept]
