"""What is needed of the past: ranking against a slow model, its properties, and what is taken."""

import random
import statistics
from collections.abc import Callable
from dataclasses import replace
from math import inf, isfinite, log

import pytest

from llmasos.kernel.recall import dates, lexical
from llmasos.kernel.recall.ranking import (
    Candidate,
    Population,
    Query,
    Ranked,
    Signs,
    fill,
    rank,
    relevance_threshold,
    signs,
)

ASKED = Query("When did Anna go to the pottery class in May?", frozenset({"Anna", "Ben"}), 1.7e9)


def candidates(dice: random.Random, count: int, *, dense: bool = True) -> list[Candidate]:
    return [
        Candidate(
            number,
            dice.choice((0.0, dice.uniform(0, 12))),
            dice.uniform(0, 15),
            dice.gauss(0.25, 0.1) if dense else None,
            dice.choice(("Anna", "Ben", "read_file")),
            dice.choice((None, 1.7e9 + dice.uniform(0, 3e7))),
            dice.choice(("", "a", "b", "c")),
            dice.randrange(1, 257),
            Signs(dice.random() < 0.2, dice.random() < 0.3),
        )
        for number in dice.sample(range(10_000), count)
    ]


def slow(question: Query, pages: list[Candidate], reach: Population) -> dict[int, float]:
    """The same as obviously as possible, for a question that names Anna and asks for when."""
    words = {one.page: 0.5 * one.turn + one.near for one in pages}
    others = [0.0] * (max(len(pages), min(reach.pages, 600), 40) - len(pages))
    mean = statistics.fmean([*words.values(), *others])
    spread = statistics.pstdev([*words.values(), *others])
    whole = 1.5 * lexical.terms(question.text) * log((max(reach.pages, 20) - 0.5) / 1.5)
    share = min(1, max(words.values()) / (0.3 * whole)) if reach.pages >= 20 else 1
    usual = statistics.fmean(log(one.tokens) for one in pages)
    score = dict[int, float]()
    for one in pages:
        meaning = 0.0 if one.dense is None else (one.dense - reach.mean) / max(reach.spread, 0.08)
        score[one.page] = share * (words[one.page] - mean) / spread + meaning
    sessions = {name: [score[o.page] for o in pages if o.session == name] for name in "abc"}
    for one in pages:
        total = 0.75 * max(-1.5, min(1, log(one.tokens) - usual))
        if one.session:
            total += 0.5 * sum(sorted(sessions[one.session])[-3:]) / 6
        score[one.page] += total
    for one in pages:
        score[one.page] += 2 * (one.author == "Anna") + one.signs.timed - 0.4 * one.signs.asks
        if one.time is not None:
            score[one.page] += 2 * dates.named(question.text, question.now).near(one.time)
    return score


@pytest.mark.parametrize("dense", [True, False])
def test_scores_are_what_a_slow_model_says(dense: bool) -> None:
    for seed in range(40):
        dice = random.Random(seed)
        pages = candidates(dice, dice.randrange(1, 60), dense=dense)
        reach = Population(
            dice.choice((5, 30, 3_000)), 0.2, dice.choice((0.05, 0.1)) if dense else 0.0
        )
        expected = slow(ASKED, pages, reach)
        ranked = rank(ASKED, pages, reach)
        for one in ranked:
            assert one.score == pytest.approx(expected[one.page])
            assert one.score == pytest.approx(sum(one.parts.values()))
        assert [one.score for one in ranked] == sorted((o.score for o in ranked), reverse=True)


def test_the_order_of_the_candidates_does_not_matter() -> None:
    dice = random.Random(1)
    pages = candidates(dice, 80)
    pages += [replace(one, page=one.page + 20_000) for one in pages]  # equals
    orders = [
        rank(ASKED, dice.sample(pages, len(pages)), Population(900, 0.2, 0.1)) for _ in range(5)
    ]
    places = [[one.page for one in order] for order in orders]
    assert all(one == places[0] for one in places)


def test_of_equals_the_newer_page_comes_first() -> None:
    pages = [Candidate(number, 1.0, 1.0) for number in range(5)]
    assert [one.page for one in rank(Query("rain"), pages, Population(5))] == [4, 3, 2, 1, 0]


BETTER: dict[str, Callable[[Candidate], Candidate]] = {
    "turn": lambda one: replace(one, turn=one.turn + 3),
    "near": lambda one: replace(one, near=one.near + 3),
    "dense": lambda one: replace(one, dense=(one.dense or 0) + 0.1),
    "author": lambda one: replace(one, author="Anna"),
    "time": lambda one: replace(one, time=1683504000.0),
    "signs": lambda one: replace(one, signs=Signs(False, True)),
    "tokens": lambda one: replace(one, tokens=one.tokens * 3),
}


@pytest.mark.parametrize("better", BETTER.values(), ids=BETTER)
def test_a_page_that_fits_better_does_not_fall(
    better: Callable[[Candidate], Candidate],
) -> None:
    for seed in range(60):
        dice = random.Random(seed)
        pages = candidates(dice, 40)
        number = dice.randrange(40)
        reach = Population(500, 0.2, 0.1)

        def place(
            pages: list[Candidate], page: int = pages[number].page, at: Population = reach
        ) -> int:
            return [one.page for one in rank(ASKED, pages, at)].index(page)

        before = place(pages)
        pages[number] = better(pages[number])
        assert place(pages) <= before


@pytest.mark.parametrize(
    "pages",
    [
        [],
        [Candidate(1)],
        [Candidate(1, tokens=0), Candidate(2, dense=0.0)],
        [Candidate(number, 2.0, 2.0, 0.5, session="a") for number in range(700)],
        [Candidate(1, dense=0.3), Candidate(2, turn=4.0, near=4.0)],
    ],
)
@pytest.mark.parametrize(
    "reach", [Population(0), Population(700, 0.5, 0.0), Population(2, 0.1, 1e-300)]
)
@pytest.mark.parametrize("text", ["", "rain", "什么"])
def test_scores_are_numbers_where_nothing_differs(
    pages: list[Candidate], reach: Population, text: str
) -> None:
    ranked = rank(Query(text), pages, reach)
    assert len(ranked) == len(pages)
    assert all(isfinite(one.score) for one in ranked)


def parts(text: str, author: str, known: frozenset[str]) -> bool:
    page = Candidate(1, author=author)
    return "author" in rank(Query(text, known), [page], Population(1))[0].parts


@pytest.mark.parametrize(
    ("text", "author", "counts"),
    [
        ("What did Anna say?", "Anna", True),
        ("What did Anna say?", "Ben", False),
        ("What did Anna say to Ben?", "Anna", False),  # of whom is it?
        ("What did Annabel say?", "Anna", False),
        ("若溪去哪儿了？", "若溪", True),
        ("What did read_file show?", "read_file", True),
        ("search the log for search", "search", False),  # any word
        ("What did the user want? User said", "User", False),  # a role is nobody
        ("anything", "", False),
    ],
)
def test_an_author_counts_where_one_is_named(text: str, author: str, counts: bool) -> None:
    known = frozenset({"Anna", "Ben", "若溪", "read_file", "search", "User", ""})
    assert parts(text, author, known) is counts


@pytest.mark.parametrize(
    ("text", "asks", "timed"),
    [
        ("How was it?", True, False),
        ("How was it?  ”", True, False),
        ("你去吗", True, False),
        ("真的？", True, False),
        ("It was fine.", False, False),
        ("We met last week, remember?", True, True),
        ("I left at 7:30.", False, True),
        ("上周三去的", False, True),
        ("2019年就开始了。", False, True),
        ("a" * 100_000, False, False),
    ],
)
def test_signs_of_a_text(text: str, asks: bool, timed: bool) -> None:
    assert signs(text) == Signs(asks, timed)


def test_the_best_that_fit_are_taken() -> None:
    ranked = [
        Ranked(number, 10.0 - number, size) for number, size in enumerate((50, 80, 30, 10, 9))
    ]
    assert [one.page for one in fill(ranked, 100)] == [0, 2, 3, 4]
    assert [one.page for one in fill(ranked, 100, overhead=5)] == [0, 2]
    assert [one.page for one in fill(ranked, 100, floor=8.0)] == [0, 2]
    assert fill(ranked, 0) == fill([], 100) == fill(ranked, 100, floor=inf) == []


def test_what_is_clearly_called_for_scores_more_where_meaning_counts_too() -> None:
    assert relevance_threshold([Candidate(1, dense=0.1), Candidate(2)]) == relevance_threshold(
        [Candidate(1, dense=0.6)]
    )
    assert relevance_threshold([Candidate(1, 3.0)]) < relevance_threshold(
        [Candidate(1, 3.0, dense=0.6)]
    )
