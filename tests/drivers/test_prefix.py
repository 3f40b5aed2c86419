"""Saved contexts: the longest beginning is found, bytes are bounded, who is gone is forgotten."""

import random

from llmasos.drivers.llama.prefix import PrefixCache, Saved, common
from llmasos.kernel.abi import limits

LONG = limits.SHARE_TOKENS


def saved(tokens: list[int], domain: str = "a", history: int | None = 1, size: int = 10) -> Saved:
    return Saved(bytearray(size), tokens, 0, domain, history)


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
    kept = PrefixCache()
    tokens = list(range(LONG + 5))
    kept.put(saved(tokens))
    assert [one.tokens for one in kept.find("a", tokens)] == [tokens]
    assert list(kept.find("b", tokens)) == []
    assert list(kept.find("a", [7, *tokens])) == []


def test_a_context_too_short_to_share_is_not_kept() -> None:
    kept = PrefixCache()
    kept.put(saved(list(range(LONG - 1))))
    assert kept.bytes == 0


def test_the_least_recently_used_goes_when_bytes_run_out() -> None:
    kept = PrefixCache(most_bytes=25)
    texts = [[n, *range(LONG)] for n in range(3)]
    first, second, third = (saved(text, history=n) for n, text in enumerate(texts))
    kept.put(first)
    kept.put(second)
    kept.touch(first)
    kept.put(third)
    assert kept.bytes == 20
    assert [bool(list(kept.find("a", text))) for text in texts] == [True, False, True]


def test_a_longer_context_of_the_same_process_replaces_the_shorter() -> None:
    kept = PrefixCache()
    tokens = list(range(LONG + 20))
    kept.put(saved(tokens[:-10]))
    kept.put(saved(tokens))
    kept.put(saved(tokens[:-10], history=None))
    assert sorted(len(one.tokens) for one in kept.find("a", tokens)) == [LONG + 10, LONG + 20]


def test_what_was_a_process_s_alone_goes_with_it() -> None:
    kept = PrefixCache()
    tokens = list(range(LONG + 20))
    kept.put(saved(tokens, history=7))
    kept.put(saved(tokens[:LONG], history=None))
    kept.forget(7)
    assert [len(one.tokens) for one in kept.find("a", tokens)] == [LONG]
    assert kept.bytes == 10
