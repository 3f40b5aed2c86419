"""A radix tree of token sequences: the longest beginning of a prompt that any of them has.

An edge has one or more tokens, and the edges of a node begin with different ones, so a search is
linear in the length of the prompt, however many sequences there are. Exact tokens are compared,
never hashes. All sequences below a place in the tree have the tokens on the way to it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Value = TypeVar("Value")


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


@dataclass(slots=True)
class _Node(Generic[Value]):
    """A place in the tree. Each node but the root has values or at least two edges."""

    edge: list[int]  # from its parent
    values: list[Value] = field(default_factory=list[Value])  # of the sequences that end here
    nodes: "dict[int, _Node[Value]]" = field(default_factory=dict[int, "_Node[Value]"])

    def split(self, at: int) -> "_Node[Value]":
        """A node in the middle of its edge, between it and its parent."""
        middle = _Node[Value](self.edge[:at], nodes={self.edge[at]: self})
        self.edge = self.edge[at:]
        return middle


class PrefixTree(Generic[Value]):
    """Values by sequences of tokens."""

    def __init__(self) -> None:
        self._root = _Node[Value]([])

    @property
    def empty(self) -> bool:
        return not self._root.nodes and not self._root.values

    def add(self, tokens: Sequence[int], value: Value) -> Iterable[Value]:
        """Add a value; those of the sequences that are beginnings of this one, or equal to it."""
        node, at, beginnings = self._root, 0, list(self._root.values)
        while at < len(tokens):
            child = node.nodes.get(tokens[at])
            if child is None:
                child = node.nodes[tokens[at]] = _Node(list(tokens[at:]))
            same = common(child.edge, tokens[at : at + len(child.edge)])
            if same < len(child.edge):
                child = node.nodes[tokens[at]] = child.split(same)
            node, at = child, at + same
            beginnings += node.values
        node.values.append(value)
        return beginnings

    def remove(self, tokens: Sequence[int], value: Value) -> None:
        """Remove a value, which was added with these tokens."""
        way, at = [self._root], 0
        while at < len(tokens):
            way.append(way[-1].nodes[tokens[at]])
            at += len(way[-1].edge)
        way[-1].values.remove(value)
        if len(way) > 1:
            _tidy(way[-2], way[-1])
        if len(way) > 2:
            _tidy(way[-3], way[-2])

    def find(self, tokens: Sequence[int]) -> tuple[Value | None, int]:
        """A value whose sequence has the longest common prefix with these tokens; its length."""
        node, at = self._root, 0
        while at < len(tokens) and (child := node.nodes.get(tokens[at])) is not None:
            same = common(child.edge, tokens[at : at + len(child.edge)])
            node, at = child, at + same
            if same < len(child.edge):
                break
        while not node.values and node.nodes:  # any sequence below has these tokens
            node = next(iter(node.nodes.values()))
        return (node.values[0], at) if node.values else (None, 0)


def _tidy(parent: _Node[Value], node: _Node[Value]) -> None:
    """Remove a node without values that has fewer than two edges."""
    if node.values or len(node.nodes) > 1:
        return
    del parent.nodes[node.edge[0]]
    for child in node.nodes.values():
        child.edge = node.edge + child.edge
        parent.nodes[child.edge[0]] = child
