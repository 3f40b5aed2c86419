"""Ranks candidate pages for a question and selects pages for a budget of tokens.

The text score (BM25 of the page and of the page with its neighbours) and the vector score (cosine)
are measured in standard deviations from their means. Author, time, session and form of a page add
to them. A score is the sum of its named parts, which are shown to users. README.md explains the
parts; all weights are in the table below.

Pure; owns nothing; must not know how the indexes and vectors are stored.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log, sqrt

from . import dates, lexical

# Weights. The text and vector scores are in standard deviations.
_OWN = 0.5  # BM25 of the page, relative to BM25 of the page with its neighbours
_WORDS, _MEANING = 1.0, 1.0
_AUTHOR, _TIME, _SESSION, _WHEN, _ASKS = 2.0, 2.0, 0.5, 1.0, -0.4
_LENGTH = 0.75  # for a page e times as long as the geometric mean of the candidates
# The text score has full weight when the best page reaches this share of the largest possible BM25.
_SHARE = 0.3
# The score from which a page is recalled without a request for it (`relevance_threshold`).
_THRESHOLD, _TEXT_THRESHOLD = 4.0, 2.0  # with vectors and without

_BEST = 3  # pages that make a session's score
_POPULATION = 600  # the text scores' mean is taken over at most so many pages
# Few pages give no useful standard deviation: the text scores are taken over at least so many pages
# (the missing ones score 0), and the cosines deviate at least so much.
_MIN_POPULATION, _MIN_DEVIATION = 40, 0.08
_FEW = 20  # among fewer pages BM25 does not tell how much of a question was found

_ROLES = frozenset(
    re.findall(r"\w+", "user assistant system tool human agent model bot ai function")
)
_ENDS_ASKING = re.compile(r"[?\uff1f][\s\"'\u201d\u2019)*]*$|[吗呢][\s。.!~]*$")
_TIMED = re.compile(
    r"\b(?:yesterday|today|tonight|tomorrow|(?:last|next|this|past|previous|coming) "
    r"(?:night|week|weekend|month|year|summer|winter|spring|fall|autumn|mon|tue|wed|thu|fri|sat|sun)"
    r"|ago|(?:mon|tues|wednes|thurs|fri|satur|sun)day|since|(?:19|20)\d\d"
    r"|january|february|april|june|july|august|september|october|november|december"
    r"|(?:\d\d?|a few|two|three|four|five|six) (?:day|week|month|year)s)"
    r"|\d\d?(?::\d\d| ?[ap]m\b)"
    r"|[今昨明前后]天|[去今明前]年|[上下这本]个?(?:周|月|星期)|星期[一二三四五六日天]|周[一二三四五六日末]"
    r"|[\d一二三四五六七八九十]+(?:月|[日号天](?!常)|点|年|周|个月)",
    re.IGNORECASE,
)
_WHEN_ASKED = re.compile(
    r"\bwhen\b|\b(?:what|which) (?:day|date|month|year|week|time)\b|\bhow long\b|\bsince\b"
    r"|什么时候|何时|几月|几号|几点|多久|哪[一]?(?:天|年|月|周|个月)|多长时间|什么时间",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Signs:
    """Properties of a page's form, derived from its text and stored with the page."""

    asks: bool  # it ends with a question: the answer is on another page
    timed: bool  # it names a time


@dataclass(frozen=True, slots=True)
class Candidate:
    """A page found by the text indexes or the vectors."""

    page: int  # space << 32 | place
    turn: float = 0.0  # BM25 of its own text; 0: no word of the question
    near: float = 0.0  # BM25 of the page with its neighbours
    dense: float | None = None  # cosine similarity, smoothed over its neighbours; None: no vector
    author: str = ""
    time: float | None = None  # Unix seconds
    session: str = ""
    tokens: int = 1
    signs: Signs = Signs(False, False)


@dataclass(frozen=True, slots=True)
class Query:
    """The question and what is needed to interpret it."""

    text: str
    authors: frozenset[str] = frozenset()  # names of the authors of the candidates
    now: float | None = None  # Unix seconds, for "last week"


@dataclass(frozen=True, slots=True)
class Population:
    """The pages that were searched."""

    pages: int  # number of pages
    mean: float = 0.0  # mean of all their cosines
    spread: float = 0.0  # standard deviation of these


@dataclass(frozen=True, slots=True)
class Ranked:
    """A page with its score and the parts of the score."""

    page: int
    score: float  # the sum of the parts
    tokens: int
    parts: Mapping[str, float] = field(default_factory=dict[str, float])


def signs(text: str) -> Signs:
    """Derive the signs of a page from its text."""
    return Signs(_ENDS_ASKING.search(text[-40:]) is not None, _TIMED.search(text) is not None)


def rank(question: Query, candidates: Iterable[Candidate], population: Population) -> list[Ranked]:
    """The candidates, best first; of equal scores the newer page first."""
    pages = list(candidates)
    if not pages:
        return []
    similarity = _similarity(question.text, pages, population)
    lengths = _lengths(pages)
    sessions = _sessions(pages, similarity)
    bonuses = _Bonuses(question)
    found = list[Ranked]()
    for page, (words, meaning), length in zip(pages, similarity, lengths, strict=True):
        parts = {"words": words, "meaning": meaning, "length": _LENGTH * length}
        if page.session:
            parts["session"] = _SESSION * sessions[page.session]
        bonuses.add(page, parts)
        found.append(Ranked(page.page, sum(parts.values()), page.tokens, parts))
    found.sort(key=lambda one: (-one.score, -one.page))
    return found


def relevance_threshold(candidates: Iterable[Candidate]) -> float:
    """The score from which a page is recalled without a request for it.

    There is no minimum cosine: a fact mentioned in passing is a small part of its page's vector,
    and the text score finds it.
    """
    has_vectors = any(one.dense is not None for one in candidates)
    return _THRESHOLD if has_vectors else _TEXT_THRESHOLD


def fill(
    ranked: Sequence[Ranked], tokens: int, overhead: int = 0, floor: float | None = None
) -> list[Ranked]:
    """Take the best pages that fit, greedily. A page costs its tokens and `overhead`.

    `floor`: the minimum score.
    """
    chosen = list[Ranked]()
    for one in ranked:
        if floor is not None and one.score < floor:
            break
        cost = one.tokens + overhead
        if cost <= tokens:
            chosen.append(one)
            tokens -= cost
    return chosen


def _similarity(
    text: str, pages: Sequence[Candidate], population: Population
) -> list[tuple[float, float]]:
    """Weighted text and vector score of each page. Pages that are no candidates count as 0."""
    words = [_OWN * one.turn + one.near for one in pages]
    count = max(len(pages), min(population.pages, _POPULATION), _MIN_POPULATION)
    mean = sum(words) / count
    spread = sqrt(max(0.0, sum(one * one for one in words) / count - mean * mean))
    weight = _WORDS * _text_weight(text, max(words), population) / spread if spread > 1e-9 else 0.0
    scale = _MEANING / max(population.spread, _MIN_DEVIATION) if population.spread > 0 else 0.0
    return [
        (
            weight * (own - mean),
            scale * (one.dense - population.mean) if one.dense is not None else 0.0,
        )
        for one, own in zip(pages, words, strict=True)
    ]


def _text_weight(text: str, best: float, population: Population) -> float:
    """Weight of the text scores, 0 to 1: how much of the question the best page contains.

    Standard deviations do not tell: if no page fits, the best one still is far from the mean.
    Among few pages no word is rare, so BM25 does not tell how much of a question was found.
    """
    if population.pages < _FEW:
        return 1.0
    rarest = log((population.pages - 0.5) / 1.5)  # BM25's weight of a word that one page has
    whole = (1 + _OWN) * lexical.terms(text) * rarest
    return min(1.0, best / (_SHARE * whole)) if whole > 0 else 1.0


class _Bonuses:
    """The parts of a score from author, date and form."""

    def __init__(self, question: Query) -> None:
        self._author = _author(question)
        self._days = dates.named(question.text, question.now)
        self._when = _WHEN_ASKED.search(question.text) is not None
        self._date_scores = dict[float, float]()  # cache by day

    def add(self, page: Candidate, parts: dict[str, float]) -> None:
        if self._author is not None and page.author == self._author:
            parts["author"] = _AUTHOR
        if self._days and page.time is not None:
            day = page.time // dates.DAY_S
            if day not in self._date_scores:
                self._date_scores[day] = _TIME * self._days.near(page.time)
            parts["time"] = self._date_scores[day]
        if self._when and page.signs.timed:
            parts["when"] = _WHEN
        if page.signs.asks:
            parts["asks"] = _ASKS


def _author(question: Query) -> str | None:
    """The only author named in the question; None if there are several. Role names do not count."""
    text = question.text
    names = {
        name for name in question.authors if name.lower() not in _ROLES and _has_name(text, name)
    }
    return names.pop() if len(names) == 1 else None


def _has_name(text: str, name: str) -> bool:
    """Whether the text has the name as written. Lower-case ASCII words do not count as names."""
    if not name or name not in text or (name.isascii() and name.isalpha() and name.islower()):
        return False
    if not name.isascii():
        return True
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def _lengths(pages: Sequence[Candidate]) -> list[float]:
    """Length of each page relative to the mean: difference of logarithms, bounded."""
    logs = [log(max(1, one.tokens)) for one in pages]
    mean = sum(logs) / len(logs)
    return [min(1.0, max(-1.5, one - mean)) for one in logs]


def _sessions(
    pages: Sequence[Candidate], similarity: Sequence[tuple[float, float]]
) -> dict[str, float]:
    """Mean text and vector score of the best pages of each session."""
    found = dict[str, list[float]]()
    for page, (words, meaning) in zip(pages, similarity, strict=True):
        found.setdefault(page.session, []).append((words + meaning) / 2)
    return {
        name: sum(sorted(all_of, reverse=True)[:_BEST]) / _BEST for name, all_of in found.items()
    }
