"""Conversations to measure recall with: the same for a seed, of the right form, and varied."""

import json
from collections import Counter
from datetime import datetime
from functools import cache

import pytest

from llmasos.userland.bench.talks import KINDS, SEEDS, Talk, idle, talk, talks, tokens
from llmasos.userland.bench.talks.pairs import POOL, pairs, pool

CATEGORIES = {"single", "multi", "temporal", "update"}


@cache
def shipped() -> list[Talk]:
    return [*talks()]


def test_a_seed_makes_the_same_conversation_again() -> None:
    for kind in KINDS:
        assert talk(kind, 7) == talk(kind, 7)
        assert talk(kind, 7).turns != talk(kind, 8).turns
    assert [*talks([4, 5])] == [talk(KINDS[0], 4), talk(KINDS[1], 5)]


def test_there_are_enough_questions_of_each_kind() -> None:
    assert len(shipped()) == len(SEEDS)
    questions = [one for each in shipped() for one in each.questions]
    assert len(questions) >= 1_500
    assert sum(len(one.evidence) >= 2 for one in questions) >= len(questions) / 4
    shares = Counter(one.category for one in questions)
    assert set(shares) == CATEGORIES
    assert all(many >= len(questions) / 10 for many in shares.values())
    assert len({one.text for one in questions}) > len(questions) / 2


def test_conversations_are_long_and_seldom_repeat_themselves() -> None:
    for one in shipped():
        assert 19_000 < sum(tokens(f"{turn.author}: {turn.text}") for turn in one.turns) < 26_000
        assert max(tokens(turn.text) for turn in one.turns) <= 300  # each is one page
        assert len({turn.text for turn in one.turns}) > 0.7 * len(one.turns)
        assert len({turn.session for turn in one.turns}) >= 20


def test_the_form_is_that_of_the_benchmark() -> None:
    one = shipped()[0]
    line = json.loads(json.dumps(one.form()))
    assert set(line) == {"id", "turns", "questions"}
    assert set(line["turns"][0]) == {"id", "author", "time", "session", "text"}
    assert set(line["questions"][0]) == {"text", "evidence", "category"}
    assert len(line["turns"]) == len(one.turns)
    assert len({turn["id"] for turn in line["turns"]}) == len(one.turns)


def test_time_goes_forward() -> None:
    for one in shipped():
        times = [datetime.fromisoformat(turn.time) for turn in one.turns if turn.time]
        assert times == sorted(times)
        assert (times[-1] - times[0]).days > 60


def test_evidence_says_what_is_asked_for() -> None:
    for one in shipped():
        texts = {turn.id: turn.text.lower() for turn in one.turns}
        for question in one.questions:
            assert len(question.evidence) == len(question.answers) == len(set(question.evidence))
            for turn, answer in zip(question.evidence, question.answers, strict=True):
                assert answer.lower() in texts[turn]


def test_a_changed_thing_is_answered_by_the_turn_that_changed_it() -> None:
    for one in shipped():
        order = {turn.id: place for place, turn in enumerate(one.turns)}
        for question in one.questions:
            if question.category == "update":
                places = [order[turn] for turn in question.evidence]
                assert places == sorted(places)


def test_nothing_is_left_to_fill_in() -> None:
    for one in shipped():
        said = [*(turn.text for turn in one.turns if "def " not in turn.text)]
        asked = [question.text for question in one.questions]
        assert not [text for text in asked if any(mark in text for mark in "{}|")]
        assert not [text for text in said if "{P}" in text or "{k}" in text or "{e}" in text]


def test_a_conversation_is_in_its_language_and_of_its_kind() -> None:
    for one, kind in zip(shipped(), KINDS * (len(SEEDS) // len(KINDS)), strict=True):
        chinese = sum(any("\u4e00" <= c <= "\u9fff" for c in turn.text) for turn in one.turns)
        assert (chinese > len(one.turns) / 2) == kind.endswith("zh") == (one.language == "zh")
        assert any(turn.author == "run_tests" for turn in one.turns) == kind.startswith("work")
        assert len({turn.author for turn in one.turns}) >= 2


def test_idle_requests_are_in_both_languages() -> None:
    assert len(set(idle("en"))) >= 40
    assert len(set(idle("zh"))) >= 40


# --- Chinese pages ------------------------------------------------------------------------------
def test_there_are_enough_pairs_and_none_is_there_twice() -> None:
    assert len(pairs()) >= 200
    for name in ("page", "query_zh", "query_en"):
        assert len({getattr(pair, name) for pair in pairs()}) == len(pairs())
    assert min(Counter(pair.topic for pair in pairs()).values()) >= 9


@pytest.mark.parametrize("topic", sorted({pair.topic for pair in pairs()}))
def test_a_pool_holds_the_topic_and_is_always_the_same(topic: str) -> None:
    assert len(set(pool(topic))) == POOL
    assert {pair for pair in pairs() if pair.topic == topic} <= set(pool(topic))
    pool.cache_clear()
    assert pool(topic) == pool(topic)


def test_a_question_uses_other_words_than_its_page() -> None:
    shares = [_shared(pair.query_zh, pair.page) for pair in pairs()]
    assert sum(shares) / len(shares) < 0.2
    assert max(shares) <= 0.5


def _shared(query: str, page: str) -> float:
    """Share of the query's pairs of characters that stand in the page."""
    grams = {query[place : place + 2] for place in range(len(query) - 1)}
    return sum(gram in page for gram in grams) / len(grams)
