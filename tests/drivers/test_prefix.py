"""Saved contexts: found by their tokens and by number; who is gone is forgotten."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from llmasos.drivers.local.prefix import ContextStore, Saved
from llmasos.drivers.local.prefix_tree import PrefixTree, common
from llmasos.kernel.abi import limits

LONG = limits.SHARE_TOKENS


@dataclass
class State:
    """A saved state, and how often it was freed."""

    nbytes: int = 10
    freed: int = 0

    def pieces(self) -> Iterator[memoryview]:
        return iter([memoryview(bytes(self.nbytes))])

    def free(self) -> None:
        self.freed += 1


def saved(tokens: list[int], domain: str = "a", history: int | None = 1) -> Saved:
    return Saved(State(), tokens, 0, domain, history)


def slow_common(one: list[int], other: list[int]) -> int:
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def test_the_common_beginning_is_what_a_slow_count_says() -> None:
    chance = random.Random(4)
    for _ in range(500):
        one = chance.choices([1, 2], k=chance.randrange(40))
        other = one[: chance.randrange(len(one) + 1)] + chance.choices([1, 2], k=5)
        assert common(one, other) == slow_common(one, other)


@pytest.mark.parametrize("seed", range(20))
def test_the_tree_finds_what_a_comparison_with_all_finds(seed: int) -> None:
    chance = random.Random(seed)
    tree = PrefixTree[int]()
    known: dict[int, list[int]] = {}
    for value in range(400):
        begin = chance.choice([*known.values(), []])
        tokens = begin[: chance.randint(0, len(begin))] + chance.choices([1, 2], k=8)
        if chance.random() < 0.1:
            tokens = list(begin)
        expected = [n for n, one in known.items() if tokens[: len(one)] == one]
        assert sorted(tree.add(tokens, value)) == expected
        known[value] = tokens
        while len(known) > 40 or (known and chance.random() < 0.4):
            gone = chance.choice(list(known))
            tree.remove(known.pop(gone), gone)
        prompt = chance.choice([*known.values(), []]) + chance.choices([1, 2], k=3)
        found, same = tree.find(prompt)
        assert same == max((slow_common(one, prompt) for one in known.values()), default=0)
        assert found is None if not known else slow_common(known[found or 0], prompt) == same
        assert tree.empty == (not known)


def test_a_deterministic_engine_finds_what_was_computed_in_pieces() -> None:
    store = ContextStore(exact=True)
    tokens = list(range(LONG + 5))
    one = saved(tokens)
    one.exact = LONG
    store.put(1, one)
    assert store.find("a", tokens) == (one, LONG)
    store.drop(1)
    assert store.find("a", tokens) == (None, 0)


def test_only_the_same_domain_finds_a_context() -> None:
    store = ContextStore()
    tokens = list(range(LONG + 5))
    one = saved(tokens)
    store.put(1, one)
    assert store.find("a", tokens) == (one, LONG + 5)
    assert store.find("b", tokens) == (None, 0)
    assert store.find("a", [7, *tokens]) == (one, 0)


def test_what_is_dropped_is_not_found() -> None:
    store = ContextStore()
    tokens = list(range(LONG + 5))
    first, second = saved(tokens), saved(tokens)
    store.put(1, first)
    store.put(2, second)
    store.drop(1)
    store.drop(1)
    assert (first.state, second.state) == (State(freed=1), State())
    assert store.find("a", tokens) == (second, LONG + 5)
    store.drop(2)
    assert store.find("a", tokens) == (None, 0)


def test_the_beginnings_of_a_context_are_reported_and_stay() -> None:
    store = ContextStore()
    tokens = list(range(LONG + 20))
    assert store.put(1, saved(tokens[:-10])) == []
    assert store.put(2, saved([*tokens[:-10], 7, 8])) == [1]
    assert store.put(3, saved(tokens, history=None)) == [1]
    assert store.put(4, saved(tokens, domain="b")) == []
    for number in (3, 2):
        found, _ = store.find("a", [*tokens[:-10], 7] if number == 2 else tokens)
        assert found is not None
        assert found.number == number


def test_what_was_a_process_s_alone_goes_with_it() -> None:
    store = ContextStore()
    tokens = list(range(LONG + 20))
    kept = saved(tokens[:LONG], history=None)
    store.put(1, saved(tokens, history=7))
    store.put(2, kept)
    store.forget(7)
    assert store.find("a", tokens) == (kept, LONG)
    store.purge("b")
    assert store.find("a", tokens) == (kept, LONG)
    store.purge("a")
    assert store.find("a", tokens) == (None, 0)
