"""Finds the pages of a process that match a question.

Candidates come from the text indexes (a page's own words, and those of the page with its
neighbours) and from the recall device; kernel/recall/ranking.py ranks them. While the device is
down, recall is lexical only and the note says so. The pager and the syscall
`search_mem` both search here, so a call recalls the pages that a search shows.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from ..abi import limits
from ..recall import lexical, ranking
from ..recall_driver import SpaceRange, VectorScores
from ..storage.database import Row, Value
from . import schema
from .layout import Stored
from .memory import Memory
from .rows import stored
from .table import PageTable, Range
from .vector_index import VectorIndex

Score = Callable[[ranking.Candidate], float]
_MATCHES = """SELECT rowid, -rank FROM {0} WHERE {0} MATCH ? AND rowid BETWEEN ? AND ?
              ORDER BY rank LIMIT ?"""
_FILTERED = """SELECT {0}.rowid, -{0}.rank FROM {0} JOIN pages ON pages.id = {0}.rowid
               WHERE {0} MATCH ? AND {0}.rowid BETWEEN ? AND ? AND {1} ORDER BY {0}.rank LIMIT ?"""
_REBUILDING = "the text indexes are being rebuilt: some pages are not found by their text yet"
_TEXTS = """SELECT count(DISTINCT hash) FROM pages
            WHERE id IN (SELECT value FROM json_each(?))"""
_EACH_TEXT = """WITH found AS MATERIALIZED (SELECT rowid AS id, -rank AS score FROM {0}
                  WHERE {0} MATCH ? AND rowid BETWEEN ? AND ?)
                SELECT max(id), max(score) FROM found JOIN pages USING(id) GROUP BY hash
                ORDER BY 2 DESC LIMIT ?"""
_NEWEST = "SELECT id FROM pages WHERE id BETWEEN ? AND ? AND {0} ORDER BY id DESC LIMIT ?"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to search for."""

    question: str
    count: int = limits.HITS
    tokens: int = 0  # of all pages together; 0: no limit
    overhead: int = 0  # tokens that each page takes in addition to its own
    skip: frozenset[int] = frozenset()  # numbers of pages to leave out
    filters: Mapping[str, Value] = field(default_factory=dict[str, Value])  # SQL: its value
    way: str = "both"


@dataclass(frozen=True, slots=True)
class RecallHit:
    """A page, with its score and the parts of it."""

    page: Stored
    ranked: ranking.Ranked
    same: Sequence[int] = ()  # numbers of other pages with the same text


@dataclass(frozen=True, slots=True)
class RecallResult:
    hits: Sequence[RecallHit]  # best first
    threshold: float = 0.0  # minimum score of a page that is recalled without a request for it
    note: str = ""  # limitations of this result


async def find(
    memory: Memory, vectors: VectorIndex, table: PageTable, wanted: Wanted
) -> RecallResult:
    """The best pages of a process for a question. Works without vectors."""
    ranges = table.parts()
    if not ranges:
        return RecallResult([])
    if wanted.way in ("both", "meaning"):
        vectors.device.prefetch(wanted.question)
    lexically = wanted.way in ("both", "words")
    expression = lexical.match(wanted.question) if lexically else ""
    search_text = partial(_text_scores, memory, ranges, expression, wanted)
    turns, nears, newest = await memory.in_thread(search_text)
    similar = VectorScores((), (), 0, 0)
    if wanted.way in ("both", "meaning"):
        searched = [SpaceRange(one.space, one.place, one.place + one.count - 1) for one in ranges]
        also = list(dict.fromkeys((*turns, *nears, *newest)))
        similar = await vectors.search(wanted.question, searched, also)
    dense = dict(zip(similar.pages, similar.scores, strict=True))
    ids = list(dict.fromkeys((*turns, *nears, *newest, *dense)))
    pages = await _candidates(memory, table, ids, wanted)
    candidates = [
        ranking.Candidate(
            page.id, turns.get(page.id, 0.0), _near(turns, nears, page.id), dense.get(page.id),
            page.said_by, page.time or None, page.session, page.tokens, schema.signs_of(page.signs),
        )
        for page in pages.values()
    ]  # fmt: skip
    population = ranking.Population(sum(one.count for one in ranges), similar.mean, similar.spread)
    ranked = _ranked(wanted, candidates, population)
    ranked, same = _distinct(ranked, pages)
    ranked, note = _within_tokens(wanted, ranked)
    threshold = ranking.relevance_threshold(candidates)
    rebuilding = _REBUILDING if lexically and memory.rebuilding else ""
    notes = "; ".join(filter(None, [note, similar.note, rebuilding]))
    hits = [
        RecallHit(pages[one.page], one, same.get(one.page, ())) for one in ranked[: wanted.count]
    ]
    return RecallResult(hits, threshold, notes)


def _distinct(
    ranked: Sequence[ranking.Ranked], pages: Mapping[int, Stored]
) -> tuple[list[ranking.Ranked], dict[int, list[int]]]:
    """Merge pages with the same text, speaker and kind: the best one, and numbers of the others."""
    first: dict[tuple[str, str, str], int] = {}
    kept: list[ranking.Ranked] = []
    same: dict[int, list[int]] = {}
    for one in ranked:
        page = pages[one.page]
        best = first.setdefault((page.text, page.said_by, page.kind), one.page)
        if best == one.page:
            kept.append(one)
        elif len(others := same.setdefault(best, [])) < limits.SAME_PAGES:
            others.append(page.number)
    return kept, same


def _within_tokens(
    wanted: Wanted, ranked: list[ranking.Ranked]
) -> tuple[list[ranking.Ranked], str]:
    """The best pages that fit `wanted.tokens` together; a note when no page fits."""
    if not wanted.tokens:
        return ranked, ""
    chosen = ranking.fill(ranked, wanted.tokens, wanted.overhead)
    if chosen or not ranked:
        return chosen, ""
    return [], f"no page fits {wanted.tokens} tokens: the best has {ranked[0].tokens}"


def _near(turns: Mapping[int, float], nears: Mapping[int, float], page: int) -> float:
    """BM25 of a page with its neighbours. The newest pages are not indexed so: their own score."""
    return nears.get(page, 0.0) or turns.get(page, 0.0)


def _text_scores(
    memory: Memory, ranges: Sequence[Range], expression: str, wanted: Wanted
) -> tuple[dict[int, float], dict[int, float], list[int]]:
    """BM25 of pages, BM25 with neighbours, and the newest pages if filters or the way need them."""
    where = " AND ".join(wanted.filters)
    values = tuple(wanted.filters.values())
    found: list[dict[int, float]] = []
    for index in ("turns", "nears"):
        scores: dict[int, float] = {}
        if expression and not (index == "nears" and wanted.way == "words"):
            sql = _FILTERED.format(index, where) if where else _MATCHES.format(index)
            for one in ranges:
                parameters = (expression, *_ids(one), *values, limits.MATCHES)
                rows = memory.read_blocking(sql, *parameters)
                if len(rows) == limits.MATCHES and not where:
                    rows += _others(memory, index, rows, parameters)
                scores |= {int(page or 0): float(score or 0) for page, score in rows}
        found.append(scores)
    newest: list[int] = []
    if where or wanted.way == "recency":
        sql = _NEWEST.format(where or "1")
        for one in ranges:
            rows = memory.read_blocking(sql, *_ids(one), *values, limits.HITS)
            newest += [int(row[0] or 0) for row in rows]
    return found[0], found[1], newest


def _others(
    memory: Memory, index: str, rows: Sequence[Row], parameters: Sequence[Value]
) -> list[Row]:
    """One page per text, when copies of a few texts take most of the MATCHES rows."""
    ids = json.dumps([row[0] for row in rows])
    [(texts,)] = memory.read_blocking(_TEXTS, ids)
    if int(texts or 0) > limits.MATCHES // 2:
        return []
    return memory.read_blocking(_EACH_TEXT.format(index), *parameters)


def _ids(one: Range) -> tuple[int, int]:
    first = schema.page_id(one.space, one.place)
    return first, first + one.count - 1


async def _candidates(
    memory: Memory, table: PageTable, ids: Sequence[int], wanted: Wanted
) -> dict[int, Stored]:
    """The candidates that the process has and the filters accept, by id."""
    numbers = {page: table.number(page) for page in ids}
    own = [p for p, n in numbers.items() if n is not None and n not in wanted.skip]
    rows = {int(r[0] or 0): r for r in await memory.by_id(own)}
    pages = {page: stored(numbers[page] or 0, row) for page, row in rows.items()}
    if not wanted.filters:
        return pages
    fits = set(await memory.in_thread(_fitting, memory, own, wanted))
    return {page: one for page, one in pages.items() if page in fits}


def _fitting(memory: Memory, ids: Sequence[int], wanted: Wanted) -> list[int]:
    """Those of these pages that meet the filters."""
    where = " AND ".join(wanted.filters)
    fits: list[int] = []
    for at in range(0, len(ids), 500):
        some = ids[at : at + 500]
        sql = f"SELECT id FROM pages WHERE id IN ({','.join('?' * len(some))}) AND {where}"
        fits += [int(r[0] or 0) for r in memory.read_blocking(sql, *some, *wanted.filters.values())]
    return fits


def _ranked(
    wanted: Wanted, candidates: Sequence[ranking.Candidate], population: ranking.Population
) -> list[ranking.Ranked]:
    """Rank in the requested way; the ways with a single score exist for comparison."""
    match wanted.way:
        case "words":
            return _by(candidates, "words", lambda one: one.turn)
        case "meaning":
            return _by(candidates, "meaning", lambda one: one.dense or 0.0)
        case "recency":
            return _by(candidates, "recency", lambda one: float(one.page))
        case _:
            names = frozenset(one.author for one in candidates)
            query = ranking.Query(wanted.question, names, time.time())
            return ranking.rank(query, candidates, population)


def _by(candidates: Sequence[ranking.Candidate], name: str, score: Score) -> list[ranking.Ranked]:
    ranked = [ranking.Ranked(c.page, score(c), c.tokens, {name: score(c)}) for c in candidates]
    return sorted(ranked, key=lambda one: (-one.score, -one.page))
