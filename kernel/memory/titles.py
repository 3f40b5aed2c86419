"""Titles of conversations: the first words of the first user message, or else of its answer.

A person's text is stored in the owner's database only, so a title is read from there on demand and
cached in memory in the page table. It refers to its page: when the page is forgotten or replaced,
the title is dropped.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from ..abi import limits
from ..abi.values import Kind
from .memory import Memory
from .table import PageTable, Title

_SQL = """SELECT id, kind, created, substr(text, 1, ?) FROM pages
          WHERE id IN (SELECT value FROM json_each(?))"""
_OTHER_KINDS = tuple(kind for kind in Kind if kind not in (Kind.USER, Kind.SYSTEM))


@dataclass(frozen=True, slots=True)
class _TitlePages:
    """The pages of a table that are read for its title."""

    table: PageTable
    first: Sequence[tuple[int, int]]  # numbers and ids
    last: int | None  # id of the newest page


async def load(memory: Memory, pids: Sequence[int]) -> None:
    """Read the titles of an owner's processes that are not cached or no longer valid."""
    tables = [table for pid in pids if (table := memory.tables.get(pid)) is not None]
    wanted = [_title_pages(table) for table in tables if not known(table)]
    ids = {page for one in wanted for _, page in one.first}
    ids |= {one.last for one in wanted if one.last is not None}
    if not ids:
        return
    epoch = memory.forgets
    found = await memory.read(_SQL, limits.TITLE_CHARS * 4, json.dumps(sorted(ids)))
    if memory.forgets != epoch:
        return  # a page read here may be erased: the next `load` reads again
    rows = {int(page or 0): (kind, float(at or 0), str(text)) for page, kind, at, text in found}
    for one in wanted:
        one.table.title = _title(one, rows)


def known(table: PageTable) -> bool:
    """Whether its cached title is valid for its current pages."""
    title = table.title
    if title is None or title.pages != table.next:
        return False
    return not title.page or table.page(title.number) == title.page


def _title_pages(table: PageTable) -> _TitlePages:
    first = list(islice(table.pages(0, table.next), limits.TITLE_PAGES))
    newest = range(table.next - 1, max(-1, table.next - 1 - limits.TITLE_PAGES), -1)
    last = next((page for n in newest if (page := table.page(n)) is not None), None)
    return _TitlePages(table, first, last)


def _title(one: _TitlePages, rows: Mapping[int, tuple[object, float, str]]) -> Title:
    _, used, _ = rows.get(one.last or 0, ("", 0.0, ""))
    texts = [(number, page, *rows.get(page, ("", 0.0, ""))) for number, page in one.first]
    for kinds in ((Kind.USER,), _OTHER_KINDS):
        for number, page, kind, _, text in texts:
            if kind in kinds and text.strip():
                return Title(one.table.next, number, page, shortened(text), used)
    return Title(one.table.next, 0, 0, "", used)


def shortened(text: str) -> str:
    """The first words, on one line."""
    flat = " ".join(text.split())
    if len(flat) <= limits.TITLE_CHARS:
        return flat
    cut = flat[: limits.TITLE_CHARS - 1]
    head, _, rest = cut.rpartition(" ")
    return f"{head if head and len(rest) < limits.TITLE_CHARS // 2 else cut}…"
