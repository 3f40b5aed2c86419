"""The prefix cache: saved contexts, found by the first tokens of a prompt.

A prompt may reuse any context that was computed for its domain (one owner, one set of labels): one
in a slot, or a saved one. The key of a saved context is its domain and its first SHARE_TOKENS
tokens, so only few of thousands are compared; the comparison is of exact tokens, never of hashes.
A saved context is loaded into a slot as a whole and truncated there to the common prefix. At the
limit of bytes, the least recently used contexts of the largest domain are dropped, so one domain
cannot evict another's.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmasos.kernel.abi import limits


@dataclass(slots=True, eq=False)
class Saved:
    """A context in memory."""

    state: bytearray
    tokens: list[int]
    exact: int  # so many first tokens were computed in the pieces of a deterministic engine
    domain: str = ""
    history: int | None = None  # the process it belongs to; None: a shared prefix
    tainted: bool = False  # its domain was purged since: only its own call may load it


def common(one: Sequence[object], other: Sequence[object]) -> int:
    """The length of the common prefix. A binary search, since slices compare at C speed."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class PrefixCache:
    """Saved contexts, up to a limit of bytes."""

    def __init__(self, most_bytes: int = limits.KEPT_BYTES) -> None:
        self._limit = most_bytes
        self._saved: dict[int, Saved] = {}  # by id, the least recently used first
        self._by_prefix: dict[tuple[str, tuple[int, ...]], list[Saved]] = {}
        self._domains: Counter[str] = Counter()  # bytes by domain
        self.bytes = 0

    def put(self, saved: Saved) -> None:
        """Add a context of at least SHARE_TOKENS tokens. It replaces its own prefixes."""
        if len(saved.tokens) < limits.SHARE_TOKENS or len(saved.state) > self._limit:
            return
        for other in list(self._by_prefix.get(_key(saved.domain, saved.tokens), ())):
            same_history = other.history == saved.history
            if same_history and common(other.tokens, saved.tokens) == len(other.tokens):
                self._drop(other)
        while self.bytes + len(saved.state) > self._limit:
            largest = max(self._domains, key=lambda domain: self._domains[domain])
            self._drop(next(one for one in self._saved.values() if one.domain == largest))
        self._saved[id(saved)] = saved
        self._by_prefix.setdefault(_key(saved.domain, saved.tokens), []).append(saved)
        self.bytes += len(saved.state)
        self._domains[saved.domain] += len(saved.state)

    def find(self, domain: str, tokens: Sequence[int]) -> Iterable[Saved]:
        """The contexts of the same domain with the same first SHARE_TOKENS tokens."""
        return tuple(self._by_prefix.get(_key(domain, tokens), ()))

    def touch(self, saved: Saved) -> None:
        """Mark a context as the most recently used."""
        if self._saved.pop(id(saved), None) is not None:
            self._saved[id(saved)] = saved

    def forget(self, history: int) -> None:
        """Drop the contexts of a process that ended."""
        for saved in [one for one in self._saved.values() if one.history == history]:
            self._drop(saved)

    def purge(self, domain: str) -> None:
        """Drop all contexts of a domain."""
        for saved in [one for one in self._saved.values() if one.domain == domain]:
            self._drop(saved)

    def _drop(self, saved: Saved) -> None:
        del self._saved[id(saved)]
        self.bytes -= len(saved.state)
        self._domains[saved.domain] -= len(saved.state)
        if not self._domains[saved.domain]:
            del self._domains[saved.domain]
        key = _key(saved.domain, saved.tokens)
        self._by_prefix[key].remove(saved)
        if not self._by_prefix[key]:
            del self._by_prefix[key]


def _key(domain: str, tokens: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    return domain, tuple(tokens[: limits.SHARE_TOKENS])
