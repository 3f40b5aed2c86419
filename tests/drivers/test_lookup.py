"""Prompt lookup: the index against a slow search, and drafts only where they pay."""

import random
from itertools import islice

import pytest

from llmasos.drivers.local.lookup import Lookup, StepTimes, draft_lengths


def history(seed: int) -> list[int]:
    """Tokens of a small vocabulary that repeat earlier parts now and then."""
    dice = random.Random(seed)
    tokens = [dice.randrange(9) for _ in range(4)]
    while len(tokens) < 200:
        if dice.random() < 0.5:
            begin = dice.randrange(len(tokens))
            tokens += tokens[begin : begin + dice.randrange(1, 30)]
        else:
            tokens += [dice.randrange(9) for _ in range(dice.randrange(1, 8))]
    return tokens


def longest(tokens: list[int], place: int) -> int:
    """How many tokens up to the position `place` are the same as the last ones, at most 12."""
    last = len(tokens) - 1
    sizes = range(1, min(place + 1, 12) + 1)
    same = [n for n in sizes if tokens[place - n + 1 : place + 1] == tokens[last - n + 1 :]]
    return max(same, default=0)


class SlowLookup:
    """The same predictions by a search of the whole history at each token."""

    def __init__(self) -> None:
        self.next: int | None = None

    def add(self, tokens: list[int]) -> None:
        """The last one is new."""
        if self.next is not None and tokens[self.next] == tokens[-1]:
            self.next += 1
            return
        ends = [n for n in range(2, len(tokens) - 1) if tokens[n - 2 : n + 1] == tokens[-3:]]
        newest = ends[:-9:-1]  # eight of them
        best = max(newest, key=lambda place: longest(tokens, place), default=None)
        self.next = None if best is None else best + 1

    def draft(self, tokens: list[int], most: int) -> list[int]:
        whole = list(tokens)
        for at in range(most if self.next is not None else 0):
            whole.append(whole[(self.next or 0) + at])
        return whole[len(tokens) :]


@pytest.mark.parametrize("seed", range(30))
def test_drafts_are_what_a_search_of_the_history_finds(seed: int) -> None:
    tokens = history(seed)
    prompt = random.Random(seed).randrange(1, 100)
    lookup, slow = Lookup(tokens[:prompt], requested=False), SlowLookup()
    slow.add(tokens[:prompt])
    found = 0
    for end in range(prompt, len(tokens)):
        most = random.Random(end).randrange(1, 20)
        assert list(lookup.draft(most)) == slow.draft(tokens[:end], most)
        found += bool(lookup.draft(1))
        lookup.add(tokens[end])
        slow.add(tokens[: end + 1])
    assert found


def test_drafts_do_not_depend_on_how_often_they_are_asked_for() -> None:
    tokens = history(1)
    asked, once = Lookup(tokens[:50], requested=True), Lookup(tokens[:50], requested=True)
    for token in tokens[50:]:
        asked.draft(3)
        asked.add(token)
        once.add(token)
    assert asked.draft(15) == once.draft(15)
    assert list(islice(asked.chances(), 15)) == list(islice(once.chances(), 15))


def test_a_repetition_that_goes_on_is_drafted_beyond_its_end() -> None:
    assert list(Lookup([7, 1, 2, 1, 2, 1, 2], requested=False).draft(5)) == [1, 2, 1, 2, 1]


def test_nothing_is_drafted_without_a_repetition() -> None:
    lookup = Lookup(range(100), requested=True)
    assert list(lookup.draft(9)) == []
    assert draft_lengths([lookup], 1, 16, StepTimes()) == [0]


def quoting(length: int, *, right: bool, requested: bool = False) -> Lookup:
    """A call whose last `length` predictions were all right, or all wrong."""
    text = list(range(1000))
    lookup = Lookup([*text, 0, 1, 2], requested=requested)
    for at in range(length):
        lookup.add(3 + at if right else 2000 + 3 * at)
        for token in () if right else (0, 1, 2):
            lookup.add(token)
    return lookup


def measured(first_ms: float, row_ms: float) -> StepTimes:
    times = StepTimes()
    for rows in (1, 2, 16, 4) * 10:
        times.learn(rows, (first_ms + row_ms * (rows - 1)) / 1000)
    return times


@pytest.mark.parametrize(("first", "row"), [(7.2, 0.3), (6.0, 1.5), (100.0, 0.0)])
def test_the_measured_time_of_steps_is_found(first: float, row: float) -> None:
    times = measured(first, row)
    for rows in (1, 8, 16):
        assert times.step_s(rows) == pytest.approx((first + row * (rows - 1)) / 1000, rel=0.02)


def test_one_slow_step_is_forgotten() -> None:
    times = measured(7, 0.3)
    times.learn(16, 0.5)
    for rows in (1, 2, 16, 4) * 40:
        times.learn(rows, (7 + 0.3 * (rows - 1)) / 1000)
    assert times.step_s(16) == pytest.approx(0.0115, rel=0.02)


def test_a_call_that_quotes_fills_the_step() -> None:
    assert draft_lengths([quoting(60, right=True)], 1, 16, measured(7, 0.3)) == [15]


def test_a_call_whose_predictions_are_wrong_drafts_nothing() -> None:
    for requested in (False, True):
        lookup = quoting(60, right=False, requested=requested)
        assert lookup.draft(1)
        assert draft_lengths([lookup], 1, 16, measured(7, 0.3)) == [0]


def test_drafts_stop_where_rows_are_expensive() -> None:
    lookup = quoting(6, right=True)
    lengths = [draft_lengths([lookup], 1, 16, measured(6, row))[0] for row in (0.3, 2, 6)]
    assert lengths[0] > lengths[1] > lengths[2] == 0


def test_drafts_lengthen_the_steps_of_other_calls_by_little() -> None:
    times = measured(7, 0.3)
    [alone] = draft_lengths([quoting(60, right=True)], 1, 16, times)
    [beside] = draft_lengths([quoting(60, right=True)], 2, 16, times)
    assert alone > beside > 0
    assert times.step_s(2 + beside) <= 1.15 * times.step_s(2)


def test_the_call_that_quotes_best_gets_most_rows() -> None:
    calls = [quoting(12, right=True), quoting(60, right=True), quoting(60, right=False)]
    some, most, none = draft_lengths(calls, 3, 16, measured(50, 0.1))
    assert most > some >= none == 0
    assert some + most == 13


def test_a_requested_lookup_drafts_earlier() -> None:
    lengths = [
        draft_lengths([quoting(1, right=True, requested=requested)], 1, 16, measured(7, 0.3))[0]
        for requested in (False, True)
    ]
    assert lengths[1] > lengths[0]
