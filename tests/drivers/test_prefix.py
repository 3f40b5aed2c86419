"""Saved contexts: found by their first tokens and by number; who is gone is forgotten."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from llmasos.drivers.local.prefix import ContextStore, Saved, common
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


def test_only_the_same_domain_finds_a_context() -> None:
    store = ContextStore()
    tokens = list(range(LONG + 5))
    store.put(1, saved(tokens))
    assert [one.number for one in store.find("a", tokens)] == [1]
    assert list(store.find("b", tokens)) == []
    assert list(store.find("a", [7, *tokens])) == []


def test_what_is_dropped_is_not_found() -> None:
    store = ContextStore()
    tokens = list(range(LONG + 5))
    first, second = saved(tokens), saved(tokens)
    store.put(1, first)
    store.put(2, second)
    store.drop(1)
    store.drop(1)
    assert (first.state, second.state) == (State(freed=1), State())
    assert [one.number for one in store.find("a", tokens)] == [2]
    store.drop(2)
    assert list(store.find("a", tokens)) == []


def test_the_beginnings_of_a_context_are_reported_and_stay() -> None:
    store = ContextStore()
    tokens = list(range(LONG + 20))
    assert store.put(1, saved(tokens[:-10])) == []
    assert store.put(2, saved([*tokens[:-10], 7, 8])) == [1]
    assert store.put(3, saved(tokens, history=None)) == [1]
    assert store.put(4, saved(tokens, domain="b")) == []
    assert sorted(one.number for one in store.find("a", tokens)) == [1, 2, 3]


def test_what_was_a_process_s_alone_goes_with_it() -> None:
    store = ContextStore()
    tokens = list(range(LONG + 20))
    store.put(1, saved(tokens, history=7))
    store.put(2, saved(tokens[:LONG], history=None))
    store.forget(7)
    assert [one.number for one in store.find("a", tokens)] == [2]
    store.purge("b")
    assert [one.number for one in store.find("a", tokens)] == [2]
    store.purge("a")
    assert list(store.find("a", tokens)) == []
