"""What of the past a question needs: candidate pages ranked, and chosen for a budget of tokens.

Words (the page's own and those of its window) and meaning are compared as distances from the mean,
in standard deviations; to these come who wrote a page, when, in which session, and its form. Scores
are sums of parts that people can be shown. Each weight stands once, in the table below.

Pure; owns nothing; knows neither the index nor the vectors. A candidate is found by either.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log, sqrt

from . import dates, lexical

# Weights. Words and meaning count in standard deviations.
_OWN = 0.5  # a page's own words beside those of its window
_WORDS, _MEANING = 1.0, 1.0
_AUTHOR, _TIME, _SESSION, _WHEN, _ASKS = 2.0, 2.0, 0.5, 1.0, -0.4
_LENGTH = 0.75  # for a page that is e times as long as usual
_SHARE = 0.3  # of what a page with all words of a question could score: words count in full
# What is clearly called for, for a budget that nobody asked to be filled (`clear`).
_CLEAR, _CLEAR_BY_WORDS = 4.0, 2.0  # a page's score, with an embedder and without

_BEST = 3  # pages that speak for a session
_POPULATION = 600  # pages that scores of words are compared with: in a larger space, the best ones
# A few pages say nothing of how scores spread: as if so many others had no word of the question,
# and as if their cosines spread so far at least.
_OTHERS, _SPREAD = 40, 0.08
_FEW = 20  # pages among which BM25 is no measure of what was found

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
    """What a page's text shows about its form; worth keeping beside it."""

    asks: bool  # it ends with a question: the answer is another page
    timed: bool  # it says when something is


@dataclass(frozen=True, slots=True)
class Candidate:
    """A page that shares words or meaning with the question."""

    page: int  # space << 32 | place
    turn: float = 0.0  # BM25 of its own text, above 0; 0: no word of the question
    near: float = 0.0  # BM25 of its window
    dense: float | None = None  # cosine, smoothed over its neighbours; None: no vector
    author: str = ""
    time: float | None = None  # Unix seconds
    session: str = ""
    tokens: int = 1
    signs: Signs = Signs(False, False)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked."""

    text: str
    authors: frozenset[str] = frozenset()  # names of those who wrote pages in reach
    now: float | None = None  # Unix seconds, for "last week"


@dataclass(frozen=True, slots=True)
class Reach:
    """What the candidates were taken from."""

    pages: int  # how many there are
    mean: float = 0.0  # of their cosines, all of them
    spread: float = 0.0  # standard deviation of these


@dataclass(frozen=True, slots=True)
class Ranked:
    """A page's place in the answer, with the reasons."""

    page: int
    score: float  # the sum of the parts
    tokens: int
    parts: Mapping[str, float] = field(default_factory=dict[str, float])


def signs(text: str) -> Signs:
    """What a page's text shows."""
    return Signs(_ENDS_ASKING.search(text[-40:]) is not None, _TIMED.search(text) is not None)


def rank(question: Question, candidates: Iterable[Candidate], reach: Reach) -> list[Ranked]:
    """The candidates, the best first; of equals the newer page."""
    pages = list(candidates)
    if not pages:
        return []
    likeness = _likeness(question.text, pages, reach)
    lengths = _lengths(pages)
    sessions = _sessions(pages, likeness)
    extras = _Extras(question)
    found = list[Ranked]()
    for page, (words, meaning), length in zip(pages, likeness, lengths, strict=True):
        parts = {"words": words, "meaning": meaning, "length": _LENGTH * length}
        if page.session:
            parts["session"] = _SESSION * sessions[page.session]
        extras.add(page, parts)
        found.append(Ranked(page.page, sum(parts.values()), page.tokens, parts))
    found.sort(key=lambda one: (-one.score, -one.page))
    return found


def clear(candidates: Iterable[Candidate]) -> float:
    """The score from which a page is clearly called for.

    The score alone decides. Whether the best page is like the question at all tells less: a fact
    that is told in passing is a small part of what its page means, and its words find it.
    """
    meant = any(one.dense is not None for one in candidates)
    return _CLEAR if meant else _CLEAR_BY_WORDS


def fill(
    ranked: Sequence[Ranked], tokens: int, overhead: int = 0, floor: float | None = None
) -> list[Ranked]:
    """Greedily the best that fit; a page costs `overhead` more. Below `floor` nothing is taken."""
    chosen = list[Ranked]()
    for one in ranked:
        if floor is not None and one.score < floor:
            break
        cost = one.tokens + overhead
        if cost <= tokens:
            chosen.append(one)
            tokens -= cost
    return chosen


def _likeness(text: str, pages: Sequence[Candidate], reach: Reach) -> list[tuple[float, float]]:
    """Words and meaning of each, weighted; pages that are no candidates count as without words."""
    words = [_OWN * one.turn + one.near for one in pages]
    population = max(len(pages), min(reach.pages, _POPULATION), _OTHERS)
    mean = sum(words) / population
    spread = sqrt(max(0.0, sum(one * one for one in words) / population - mean * mean))
    weight = _WORDS * _found(text, max(words), reach) / spread if spread > 1e-9 else 0.0
    scale = _MEANING / max(reach.spread, _SPREAD) if reach.spread > 0 else 0.0
    return [
        (
            weight * (own - mean),
            scale * (one.dense - reach.mean) if one.dense is not None else 0.0,
        )
        for one, own in zip(pages, words, strict=True)
    ]


def _found(text: str, best: float, reach: Reach) -> float:
    """0 to 1: whether the best page has the question's words, or shares some word of no account.

    Distances from the mean do not tell: where nothing fits, the least bad page is far from it too.
    Among few pages no word is rare, and BM25 says nothing of how much of a question was found.
    """
    if reach.pages < _FEW:
        return 1.0
    rarest = log((reach.pages - 0.5) / 1.5)  # what BM25 gives for a word of one page
    whole = (1 + _OWN) * lexical.terms(text) * rarest
    return min(1.0, best / (_SHARE * whole)) if whole > 0 else 1.0


class _Extras:
    """What a question says besides its subject: of whom, of when, and that it asks for when."""

    def __init__(self, question: Question) -> None:
        self._author = _author(question)
        self._days = dates.named(question.text, question.now)
        self._when = _WHEN_ASKED.search(question.text) is not None
        self._near = dict[float, float]()  # by day: pages share days

    def add(self, page: Candidate, parts: dict[str, float]) -> None:
        if self._author is not None and page.author == self._author:
            parts["author"] = _AUTHOR
        if self._days and page.time is not None:
            day = page.time // dates.DAY_S
            if day not in self._near:
                self._near[day] = _TIME * self._days.near(page.time)
            parts["time"] = self._near[day]
        if self._when and page.signs.timed:
            parts["when"] = _WHEN
        if page.signs.asks:
            parts["asks"] = _ASKS


def _author(question: Question) -> str | None:
    """The one known name in the question; with several, or with a mere role, there is none."""
    text = question.text
    said = {name for name in question.authors if name.lower() not in _ROLES and _says(text, name)}
    return said.pop() if len(said) == 1 else None


def _says(text: str, name: str) -> bool:
    """A name as it is written; a plain lower-case word may be any word and is no name."""
    if not name or name not in text or (name.isascii() and name.isalpha() and name.islower()):
        return False
    if not name.isascii():
        return True
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def _lengths(pages: Sequence[Candidate]) -> list[float]:
    """How much longer than usual each is: a logarithm, bounded."""
    logs = [log(max(1, one.tokens)) for one in pages]
    mean = sum(logs) / len(logs)
    return [min(1.0, max(-1.5, one - mean)) for one in logs]


def _sessions(
    pages: Sequence[Candidate], likeness: Sequence[tuple[float, float]]
) -> dict[str, float]:
    """What the best pages of each session have in words and meaning."""
    found = dict[str, list[float]]()
    for page, (words, meaning) in zip(pages, likeness, strict=True):
        found.setdefault(page.session, []).append((words + meaning) / 2)
    return {
        name: sum(sorted(all_of, reverse=True)[:_BEST]) / _BEST for name, all_of in found.items()
    }
