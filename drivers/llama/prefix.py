"""Contexts outside their slots: kept when a slot goes to another, copied to who begins the same.

A prompt may go on from whatever was computed for its domain (one owner, one set of labels): what
lies in a slot, or a context that was saved. Both are found by their first SHARE_TOKENS tokens, so
that of thousands only those that agree at all are compared; exact tokens decide, never hashes.
A saved context is whole: it is loaded into a slot, and what the prompt does not share is cut off
there. When the limit of bytes is reached, the least recently used of the domain that holds most are
dropped, so nobody drops another's.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmasos.kernel import limits


@dataclass(slots=True, eq=False)
class Saved:
    """A context in memory."""

    state: bytearray
    tokens: list[int]
    exact: int  # of its first tokens: computed in the fixed pieces of a deterministic engine
    domain: str = ""
    history: int | None = None  # whose it is alone; None: a beginning that several share
    tainted: bool = False  # its domain was purged since: for the call that it belongs to alone


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with alike. Halving: slices compare at the speed of C."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Kept:
    """Saved contexts, within a limit of bytes."""

    def __init__(self, most_bytes: int = limits.KEPT_BYTES) -> None:
        self._most = most_bytes
        self._saved: dict[int, Saved] = {}  # by id, the least recently used first
        self._begins: dict[tuple[str, tuple[int, ...]], list[Saved]] = {}
        self._domains: Counter[str] = Counter()  # bytes by domain
        self.bytes = 0

    def put(self, saved: Saved) -> None:
        """Keep it, if it is long enough to be worth it. A longer one of the same kind replaces."""
        if len(saved.tokens) < limits.SHARE_TOKENS or len(saved.state) > self._most:
            return
        for other in list(self._begins.get(_key(saved.domain, saved.tokens), ())):
            same_kind = other.history == saved.history
            if same_kind and common(other.tokens, saved.tokens) == len(other.tokens):
                self._drop(other)
        while self.bytes + len(saved.state) > self._most:
            most = max(self._domains, key=lambda domain: self._domains[domain])
            self._drop(next(one for one in self._saved.values() if one.domain == most))
        self._saved[id(saved)] = saved
        self._begins.setdefault(_key(saved.domain, saved.tokens), []).append(saved)
        self.bytes += len(saved.state)
        self._domains[saved.domain] += len(saved.state)

    def find(self, domain: str, tokens: Sequence[int]) -> Iterable[Saved]:
        """Those that may be shared: same domain, same first tokens."""
        return tuple(self._begins.get(_key(domain, tokens), ()))

    def touch(self, saved: Saved) -> None:
        """It was used."""
        if self._saved.pop(id(saved), None) is not None:
            self._saved[id(saved)] = saved

    def forget(self, history: int) -> None:
        """A process is gone, and with it what was its alone."""
        for saved in [one for one in self._saved.values() if one.history == history]:
            self._drop(saved)

    def purge(self, domain: str) -> None:
        """Drop all of a domain."""
        for saved in [one for one in self._saved.values() if one.domain == domain]:
            self._drop(saved)

    def _drop(self, saved: Saved) -> None:
        del self._saved[id(saved)]
        self.bytes -= len(saved.state)
        self._domains[saved.domain] -= len(saved.state)
        if not self._domains[saved.domain]:
            del self._domains[saved.domain]
        key = _key(saved.domain, saved.tokens)
        self._begins[key].remove(saved)
        if not self._begins[key]:
            del self._begins[key]


def _key(domain: str, tokens: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    return domain, tuple(tokens[: limits.SHARE_TOKENS])
