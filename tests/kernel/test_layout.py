"""What leaves the window, what of a large request stays, and how what came back is read."""

import random
from dataclasses import replace

import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.values import Message, Role
from llmasos.kernel.driver import Cut
from llmasos.kernel.memory.layout import (
    GAP,
    Stored,
    Use,
    joined,
    kept_cuts,
    messages,
    questions_of,
    recalled,
    relevance,
    value,
    victims,
)
from llmasos.kernel.memory.table import Piece, without


def stored(number: int, text: str, *, author: str = "ann", time: float = 0.0) -> Stored:
    return Stored(number, number, 0, "user", author, time, "", "", 10, text, [])


def window(count: int) -> list[Piece]:
    return [Piece(i, (Role.USER, Role.ASSISTANT)[i % 2], [i]) for i in range(count)]


# --- compaction -----------------------------------------------------------------------------------
def test_the_oldest_leave_first() -> None:
    sizes, uses = dict.fromkeys(range(10), 100), {n: Use(10 - n, 0) for n in range(10)}
    assert victims(window(10), sizes, uses, set(), 350) == [0, 1, 2, 3]


def test_what_is_used_again_and_again_stays_longer() -> None:
    sizes, uses = dict.fromkeys(range(10), 100), {n: Use(10 - n, 0) for n in range(10)}
    uses[0] = Use(10, 9)
    assert 0 not in victims(window(10), sizes, uses, set(), 350)


def test_pinned_pages_stay_even_when_it_is_not_enough() -> None:
    sizes, uses = dict.fromkeys(range(4), 100), {n: Use(4 - n, 0) for n in range(4)}
    assert victims(window(4), sizes, uses, {0, 2}, 1000) == [1, 3]


def test_the_newest_message_leaves_last() -> None:
    sizes = {0: 10, 1: 10, 2: 500}
    uses = {0: Use(3, 99), 1: Use(2, 99), 2: Use(1, 0)}
    assert victims(window(3), sizes, uses, set(), 25)[-1] == 2


@pytest.mark.parametrize("seed", range(20))
def test_enough_is_freed_or_all_that_may_go_and_nothing_for_nothing(seed: int) -> None:
    dice = random.Random(seed)
    count = dice.randrange(1, 40)
    sizes = {n: dice.randrange(1, limits.PAGE_TOKENS) for n in range(count)}
    uses = {n: Use(count - n, dice.randrange(3)) for n in range(count)}
    kept = {n for n in range(count) if dice.random() < 0.2}
    least = dice.randrange(0, 3000)
    chosen = victims(window(count), sizes, uses, kept, least)
    freed = sum(sizes[n] for n in chosen)
    assert not kept & set(chosen)
    assert len(set(chosen)) == len(chosen)
    assert freed >= least or set(chosen) == set(range(count)) - kept
    assert not chosen or freed - sizes[chosen[-1]] < least


def test_value_falls_with_age_and_rises_with_use() -> None:
    assert value(100, Use(1, 0)) > value(100, Use(5, 0))
    assert value(100, Use(5, 3)) > value(100, Use(5, 0))
    assert value(10, Use(1, 0)) == value(limits.FAULT_TOKENS, Use(1, 0))  # small ones are alike


# --- a request that is larger than the window -----------------------------------------------------
def cuts(*texts: str) -> list[Cut]:
    return [Cut(text, 100) for text in texts]


def test_the_end_and_the_beginning_of_a_large_request_stay() -> None:
    filler = [f"page {n} of nothing much" for n in range(20)]
    large = [cuts("Summarise this for me.", *filler, "So what is the point?")]
    (kept,) = kept_cuts(large, set(), 330)
    assert kept[0] == 0
    assert kept[-1] == 21
    assert len(kept) == 3


def test_pieces_that_share_the_words_of_the_question_stay() -> None:
    filler = [f"page {n} of nothing much" for n in range(20)]
    filler[13] = "the password of the vault is tangerine"
    large = [cuts("Read this.", *filler), cuts("Which password opens the vault?")]
    assert 14 in kept_cuts(large, set(), 450)[0]


def test_a_system_prompt_stays_whole() -> None:
    large = [cuts("be kind", "and brief"), cuts(*(f"page {n}" for n in range(30)))]
    assert kept_cuts(large, {0}, 500)[0] == [0, 1]


def test_relevance_counts_rare_words_for_more() -> None:
    texts = ["the engine room", "the engine and the anchor", "the engine", "the engine"]
    scores = relevance("Where is the anchor of the engine?", texts)
    assert max(scores) == scores[1]
    assert relevance("", texts) == [0.0] * 4
    assert relevance("anchor", []) == []


# --- messages -------------------------------------------------------------------------------------
def test_a_window_is_read_as_a_conversation() -> None:
    held = {n: stored(n, f"text {n}") for n in range(4)}
    pieces = [Piece(0, Role.USER, [0, 1]), Piece(1, Role.ASSISTANT, [3], recalled=[2])]
    first, second = messages(pieces, held)
    assert first == Message(Role.USER, "text 0text 1")
    assert second.content.endswith("\ntext 3")
    assert "ann: text 2" in second.content


def test_a_gap_is_marked() -> None:
    assert joined([(1, "a"), (2, "b"), (5, "c")]) == f"ab{GAP}c"
    assert joined([]) == ""


def test_what_came_back_stands_in_order_with_days_and_authors() -> None:
    day = 24 * 3600.0
    pages = [stored(7, "later", time=3 * day), stored(2, "sooner", author="bob", time=day)]
    assert recalled([*pages, stored(1, "who knows when")]).splitlines() == [
        "From earlier:", "ann: who knows when", "Then, on 1970-01-02:", "bob: sooner",
        "Then, on 1970-01-04:", "ann: later",
    ]  # fmt: skip
    assert recalled(pages[1:]) == "From earlier, on 1970-01-02:\nbob: sooner\n"
    assert recalled([]) == ""
    summary = replace(stored(3, "of much"), kind="summary")
    assert recalled([summary]) == "From earlier:\nann (summary): of much\n"


def test_a_message_goes_with_the_last_of_its_pages() -> None:
    pieces = [Piece(0, Role.USER, [0, 1]), Piece(1, Role.USER, [2], recalled=[9])]
    assert without(pieces, {0}) == [Piece(0, Role.USER, [1]), pieces[1]]
    assert without(pieces, {0, 1, 9}) == [Piece(1, Role.USER, [2])]
    assert without(pieces, {0, 1, 2, 9}) == []


# --- what is looked for ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Where is it?", ["Where is it?"]),
        ("It is 3.5 long. Where is it? Thanks.", ["Where is it?"]),
        ("你好。我在哪里工作？谢谢。", ["我在哪里工作？"]),
        ("First.\nThen mend it", ["Then mend it"]),
    ],
)
def test_a_question_stands_alone_before_all_that_is_said(text: str, wanted: list[str]) -> None:
    found = questions_of([Message(Role.SYSTEM, "be"), Message(Role.USER, text)])
    assert found == list(dict.fromkeys([*wanted, text]))


def test_a_long_request_is_looked_for_by_its_two_ends() -> None:
    text = f"Begin. {'x' * 100_000} So what?"
    *_, whole = questions_of([Message(Role.USER, text)])
    assert len(whole) <= limits.QUESTION_CHARS + 1
    assert whole.startswith("Begin.")
    assert whole.endswith("So what?")
