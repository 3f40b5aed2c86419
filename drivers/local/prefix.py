"""The store of saved contexts: by number, found by the tokens of a prompt.

A prompt may reuse any context that was computed for its domain (one owner, one set of labels): one
in a slot, or a saved one. Each domain has a tree of the tokens of its saved contexts, so a search
among thousands takes as long as one comparison. A saved context is loaded into a slot as a whole
and truncated there to the common prefix. The kernel decides which contexts are saved, under which
number, and which are dropped. What is in slots is not in the tree: it grows with each token, and
there are few slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .context import SavedState
from .prefix_tree import PrefixTree


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


class ContextStore:
    """Saved contexts, by number and by prefix."""

    def __init__(self, *, exact: bool = False) -> None:
        """`exact`: of a deterministic engine, which reuses only what it computed in pieces."""
        self._exact = exact
        self._saved: dict[int, Saved] = {}  # by number
        self._trees: dict[str, PrefixTree[Saved]] = {}  # by domain

    def put(self, number: int, saved: Saved) -> Sequence[int]:
        """Add a context; the numbers of those that are beginnings of it."""
        saved.number = number
        self._saved[number] = saved
        tree = self._trees.setdefault(saved.domain, PrefixTree())
        return sorted(one.number for one in tree.add(self._shared(saved), saved))

    def find(self, domain: str, tokens: Sequence[int]) -> tuple[Saved | None, int]:
        """A context of the domain with the longest common prefix, and the length of that."""
        tree = self._trees.get(domain)
        return tree.find(tokens) if tree is not None else (None, 0)

    def _shared(self, saved: Saved) -> Sequence[int]:
        """The tokens that others may reuse."""
        return saved.tokens[: saved.exact] if self._exact else saved.tokens

    def drop(self, number: int) -> None:
        """Drop a context, if there is one of this number."""
        saved = self._saved.pop(number, None)
        if saved is None:
            return
        saved.free()
        tree = self._trees[saved.domain]
        tree.remove(self._shared(saved), saved)
        if tree.empty:
            del self._trees[saved.domain]

    def forget(self, history: int) -> None:
        """Drop the contexts of a process that ended."""
        for saved in [one for one in self._saved.values() if one.history == history]:
            self.drop(saved.number)

    def purge(self, domain: str) -> None:
        """Drop all contexts of a domain."""
        for saved in [one for one in self._saved.values() if one.domain == domain]:
            self.drop(saved.number)
