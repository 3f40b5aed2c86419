"""Pages found again, by their words and by their meaning.

Candidates come from the text index (a page's own words, and those of its window) and from the
recall device; fuse.py ranks them. While the device is down the words alone decide, and the answer
says so. Both kernel and programs ask here: what `prepare` brings back is what `search_mem` shows.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from .. import limits
from ..database import Row, Value
from ..driver import Likeness
from ..driver import Reach as Part
from . import fuse, lexical, schema
from .layout import Stored
from .meaning import Meaning
from .memory import Memory
from .rows import stored
from .table import Range, Table

Score = Callable[[fuse.Candidate], float]
_MATCHES = """SELECT rowid, -rank FROM {0} WHERE {0} MATCH ? AND rowid BETWEEN ? AND ?
              ORDER BY rank LIMIT ?"""
_FILTERED = """SELECT {0}.rowid, -{0}.rank FROM {0} JOIN pages ON pages.id = {0}.rowid
               WHERE {0} MATCH ? AND {0}.rowid BETWEEN ? AND ? AND {1} ORDER BY {0}.rank LIMIT ?"""
_FILLING = "the text indexes are being made anew: some pages are not found by their words yet"
_TEXTS = """SELECT count(DISTINCT hash) FROM pages
            WHERE id IN (SELECT value FROM json_each(?))"""
_EACH_TEXT = """WITH found AS MATERIALIZED (SELECT rowid AS id, -rank AS score FROM {0}
                  WHERE {0} MATCH ? AND rowid BETWEEN ? AND ?)
                SELECT max(id), max(score) FROM found JOIN pages USING(id) GROUP BY hash
                ORDER BY 2 DESC LIMIT ?"""
_NEWEST = "SELECT id FROM pages WHERE id BETWEEN ? AND ? AND {0} ORDER BY id DESC LIMIT ?"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for."""

    question: str
    count: int = limits.HITS
    tokens: int = 0  # of all pages together; 0: no such limit
    overhead: int = 0  # tokens that each page takes beside its own
    skip: frozenset[int] = frozenset()  # numbers
    filters: Mapping[str, Value] = field(default_factory=dict[str, Value])  # SQL: its value
    way: str = "both"


@dataclass(frozen=True, slots=True)
class Hit:
    """A page, and why."""

    page: Stored
    ranked: fuse.Ranked
    same: Sequence[int] = ()  # numbers of other pages with this text


@dataclass(frozen=True, slots=True)
class Found:
    hits: Sequence[Hit]  # the best first
    clear: float = 0.0  # the score from which a page is clearly called for
    note: str = ""  # why it is not what it could be


async def find(memory: Memory, meaning: Meaning, table: Table, wanted: Wanted) -> Found:
    """The pages of a process that answer best. Never fails because meaning is not there."""
    ranges = table.reaches()
    if not ranges:
        return Found([])
    if wanted.way in ("both", "meaning"):
        meaning.ahead(wanted.question)
    lexically = wanted.way in ("both", "words")
    expression = lexical.match(wanted.question) if lexically else ""
    words = partial(_words, memory, table.owner, ranges, expression, wanted)
    turns, nears, newest = await memory.in_thread(table.owner, words)
    near = Likeness((), (), 0, 0)
    if wanted.way in ("both", "meaning"):
        parts = [Part(one.space, one.place, one.place + one.count - 1) for one in ranges]
        also = list(dict.fromkeys((*turns, *nears, *newest)))
        near = await meaning.search(memory.directory(table.owner), wanted.question, parts, also)
    dense = dict(zip(near.pages, near.scores, strict=True))
    ids = list(dict.fromkeys((*turns, *nears, *newest, *dense)))
    held = await _held(memory, table, ids, wanted)
    candidates = [
        fuse.Candidate(
            page.id, turns.get(page.id, 0.0), _near(turns, nears, page.id), dense.get(page.id),
            page.said_by, page.time or None, page.session, page.tokens, schema.signs_of(page.signs),
        )
        for page in held.values()
    ]  # fmt: skip
    among = fuse.Reach(sum(one.count for one in ranges), near.mean, near.spread)
    ranked = _ranked(wanted, candidates, among)
    ranked, same = _once(ranked, held)
    ranked, note = _filled(wanted, ranked)
    clear = fuse.clear(candidates)
    filling = _FILLING if lexically and table.owner in memory.filling else ""
    notes = "; ".join(filter(None, [note, near.note, filling]))
    hits = [Hit(held[one.page], one, same.get(one.page, ())) for one in ranked[: wanted.count]]
    return Found(hits, clear, notes)


def _once(
    ranked: Sequence[fuse.Ranked], held: Mapping[int, Stored]
) -> tuple[list[fuse.Ranked], dict[int, list[int]]]:
    """The best page of each text that one author wrote as one kind; and numbers of the others."""
    first: dict[tuple[str, str, str], int] = {}
    kept: list[fuse.Ranked] = []
    same: dict[int, list[int]] = {}
    for one in ranked:
        page = held[one.page]
        best = first.setdefault((page.text, page.said_by, page.kind), one.page)
        if best == one.page:
            kept.append(one)
        elif len(others := same.setdefault(best, [])) < limits.SAME_PAGES:
            others.append(page.number)
    return kept, same


def _filled(wanted: Wanted, ranked: list[fuse.Ranked]) -> tuple[list[fuse.Ranked], str]:
    """Those that have so many tokens together; and why it is none, when there are some."""
    if not wanted.tokens:
        return ranked, ""
    chosen = fuse.fill(ranked, wanted.tokens, wanted.overhead)
    if chosen or not ranked:
        return chosen, ""
    return [], f"none fits {wanted.tokens} tokens: the best page has {ranked[0].tokens}"


def _near(turns: Mapping[int, float], nears: Mapping[int, float], page: int) -> float:
    """BM25 of a page's window. The newest pages have none yet: they stand for it themselves."""
    return nears.get(page, 0.0) or turns.get(page, 0.0)


def _words(
    memory: Memory, owner: str, ranges: Sequence[Range], expression: str, wanted: Wanted
) -> tuple[dict[int, float], dict[int, float], list[int]]:
    """BM25 of pages and of their windows; and the newest pages, where these are wanted."""
    where = " AND ".join(wanted.filters)
    values = tuple(wanted.filters.values())
    found: list[dict[int, float]] = []
    for index in ("turns", "nears"):
        scores: dict[int, float] = {}
        if expression and not (index == "nears" and wanted.way == "words"):
            sql = _FILTERED.format(index, where) if where else _MATCHES.format(index)
            for one in ranges:
                asked = (expression, *_ids(one), *values, limits.MATCHES)
                rows = memory.now(owner, sql, *asked)
                if len(rows) == limits.MATCHES and not where:
                    rows += _others(memory, owner, index, rows, asked)
                scores |= {int(page or 0): float(score or 0) for page, score in rows}
        found.append(scores)
    newest: list[int] = []
    if where or wanted.way == "recency":
        sql = _NEWEST.format(where or "1")
        for one in ranges:
            rows = memory.now(owner, sql, *_ids(one), *values, limits.HITS)
            newest += [int(row[0] or 0) for row in rows]
    return found[0], found[1], newest


def _others(
    memory: Memory, owner: str, index: str, rows: Sequence[Row], asked: Sequence[Value]
) -> list[Row]:
    """Pages of other texts, where copies of a few texts take most of the places."""
    ids = json.dumps([row[0] for row in rows])
    [(texts,)] = memory.now(owner, _TEXTS, ids)
    if int(texts or 0) > limits.MATCHES // 2:
        return []
    return memory.now(owner, _EACH_TEXT.format(index), *asked)


def _ids(one: Range) -> tuple[int, int]:
    first = schema.page_id(one.space, one.place)
    return first, first + one.count - 1


async def _held(
    memory: Memory, table: Table, ids: Sequence[int], wanted: Wanted
) -> dict[int, Stored]:
    """Candidates that the process has and that are wanted, by id."""
    numbers = {page: table.number(page) for page in ids}
    mine = [p for p, n in numbers.items() if n is not None and n not in wanted.skip]
    held = {int(r[0] or 0): r for r in await memory.by_id(table.owner, mine)}
    pages = {page: stored(numbers[page] or 0, row) for page, row in held.items()}
    if not wanted.filters:
        return pages
    fits = set(await memory.in_thread(table.owner, _fitting, memory, table.owner, mine, wanted))
    return {page: one for page, one in pages.items() if page in fits}


def _fitting(memory: Memory, owner: str, ids: Sequence[int], wanted: Wanted) -> list[int]:
    """Those of some pages that meet the filters."""
    where = " AND ".join(wanted.filters)
    fits: list[int] = []
    for at in range(0, len(ids), 500):
        some = ids[at : at + 500]
        sql = f"SELECT id FROM pages WHERE id IN ({','.join('?' * len(some))}) AND {where}"
        fits += [int(r[0] or 0) for r in memory.now(owner, sql, *some, *wanted.filters.values())]
    return fits


def _ranked(
    wanted: Wanted, candidates: Sequence[fuse.Candidate], among: fuse.Reach
) -> list[fuse.Ranked]:
    """By the way that is asked for: the single ones are there to compare with."""
    match wanted.way:
        case "words":
            return _by(candidates, "words", lambda one: one.turn)
        case "meaning":
            return _by(candidates, "meaning", lambda one: one.dense or 0.0)
        case "recency":
            return _by(candidates, "recency", lambda one: float(one.page))
        case _:
            names = frozenset(one.author for one in candidates)
            asked = fuse.Question(wanted.question, names, time.time())
            return fuse.rank(asked, candidates, among)


def _by(candidates: Sequence[fuse.Candidate], name: str, score: Score) -> list[fuse.Ranked]:
    ranked = [fuse.Ranked(c.page, score(c), c.tokens, {name: score(c)}) for c in candidates]
    return sorted(ranked, key=lambda one: (-one.score, -one.page))
