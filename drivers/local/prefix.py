"""The store of saved contexts: by number, found by the first tokens of a prompt.

A prompt may reuse any context that was computed for its domain (one owner, one set of labels): one
in a slot, or a saved one. The key of a saved context is its domain and its first SHARE_TOKENS
tokens, so only few of thousands are compared; the comparison is of exact tokens, never of hashes.
A saved context is loaded into a slot as a whole and truncated there to the common prefix. The
kernel decides which contexts are saved, under which number, and which are dropped.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmasos.kernel.abi import limits

from .context import SavedState


@dataclass(slots=True, eq=False)
class Saved:
    """A context in memory."""

    state: SavedState | None  # None: it has no tokens
    tokens: list[int]
    exact: int  # so many first tokens were computed in the pieces of a deterministic engine
    domain: str = ""
    history: int | None = None  # the process it belongs to; None: a shared prefix
    tainted: bool = False  # its domain was purged since: only its own call may load it
    number: int = 0  # in the store

    @property
    def nbytes(self) -> int:
        return self.state.nbytes if self.state is not None else 0

    def free(self) -> None:
        if self.state is not None:
            self.state.free()


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


class ContextStore:
    """Saved contexts of at least SHARE_TOKENS tokens."""

    def __init__(self) -> None:
        self._saved: dict[int, Saved] = {}  # by number
        self._by_prefix: dict[tuple[str, tuple[int, ...]], list[Saved]] = {}

    def put(self, number: int, saved: Saved) -> Sequence[int]:
        """Add a context; the numbers of those that are beginnings of it."""
        key = _key(saved.domain, saved.tokens)
        others = self._by_prefix.setdefault(key, [])
        beginnings = [
            one.number for one in others if common(one.tokens, saved.tokens) == len(one.tokens)
        ]
        saved.number = number
        self._saved[number] = saved
        others.append(saved)
        return beginnings

    def find(self, domain: str, tokens: Sequence[int]) -> Iterable[Saved]:
        """The contexts of the same domain with the same first SHARE_TOKENS tokens."""
        return tuple(self._by_prefix.get(_key(domain, tokens), ()))

    def drop(self, number: int) -> None:
        """Drop a context, if there is one of this number."""
        saved = self._saved.pop(number, None)
        if saved is None:
            return
        saved.free()
        key = _key(saved.domain, saved.tokens)
        self._by_prefix[key].remove(saved)
        if not self._by_prefix[key]:
            del self._by_prefix[key]

    def forget(self, history: int) -> None:
        """Drop the contexts of a process that ended."""
        for saved in [one for one in self._saved.values() if one.history == history]:
            self.drop(saved.number)

    def purge(self, domain: str) -> None:
        """Drop all contexts of a domain."""
        for saved in [one for one in self._saved.values() if one.domain == domain]:
            self.drop(saved.number)


def _key(domain: str, tokens: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    return domain, tuple(tokens[: limits.SHARE_TOKENS])
