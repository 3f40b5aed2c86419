"""Converts stored pages to the values of `read_mem` and `trace_mem` replies."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from ..abi import limits
from ..abi.errors import Errno, SyscallError
from ..abi.values import Kind, Move, Page, Pages, ReadMem, Trace, Where
from .layout import Stored
from .memory import Memory
from .schema import AUTHOR_REPLACED
from .table import PageTable

_BATCH = 256  # pages per query
_PAGE_BYTES = 500  # encoded size of a page without its strings
_MOVES = 1_000  # the newest moves in a reply


def page(table: PageTable, stored: Stored, resident: set[int] | None = None) -> Page:
    """A page of a reply. `resident`: the numbers in the window, if the caller has them."""
    in_window = table.resident() if resident is None else resident
    mark = table.marks.get(stored.number)
    mapped = table.at(stored.number)
    return Page(
        number=stored.number, message=stored.message, owner=table.owner, kind=Kind(stored.kind),
        author=stored.author, time=stored.time, session=stored.session, key=stored.key,
        tokens=stored.tokens, text=stored.text, labels=stored.labels,
        pinned=table.pinned(stored.number),
        where=Where.WINDOW if stored.number in in_window else Where.STORE,
        uses=mark.uses if mark is not None else 0,
        source=mapped.source if mapped is not None else "", speaker=stored.speaker,
        written=stored.created,
    )  # fmt: skip


async def read(memory: Memory, table: PageTable, request: ReadMem) -> Pages:
    """Pages from `first` on, as many as fit a reply; filtered by key and time."""
    numbers = await _numbers(memory, table, request)
    pages: list[Page] = []
    room = limits.READ_MEM_BYTES
    resident = table.resident()
    while some := list(islice(numbers, _BATCH)):
        for one in (await memory.stored(table, some)).values():
            if not _in_period(one, request):
                continue
            room -= bytes_of(one, texts=request.texts)
            if len(pages) == request.count or (room < 0 and pages):
                return Pages(pages, one.number)
            pages.append(page(table, one if request.texts else replace(one, text=""), resident))
    return Pages(pages, None)


async def _numbers(memory: Memory, table: PageTable, request: ReadMem) -> Iterator[int]:
    """The numbers of the pages to read; with a key, only the pages of the key."""
    if not request.key:
        return (number for number, _ in table.pages(request.first, table.next))
    return (n for n in await memory.keyed(table, request.key) if n >= request.first)


def bytes_of(stored: Stored, *, texts: bool = True) -> int:
    """An upper bound of a page's encoded size in a reply, in bytes."""
    strings = (
        stored.text if texts else "",
        stored.author,
        stored.speaker,
        stored.key,
        stored.session,
    )
    return _PAGE_BYTES + sum(len(one.encode()) + 5 for one in (*strings, *stored.labels))


def _in_period(stored: Stored, request: ReadMem) -> bool:
    early = request.since is not None and stored.time < request.since
    late = request.until is not None and stored.time > request.until
    return not early and not late


async def trace(memory: Memory, table: PageTable, number: int) -> Trace:
    """The history of a page: its creation and its moves into and out of the window. ENOENT."""
    table.require(number)
    stored = (await memory.stored(table, [number])).get(number)
    if stored is None:
        raise SyscallError(Errno.ENOENT, f"page {number} of process {table.pid} is gone")
    sql = """SELECT time, call, what, why, parts FROM moves
             WHERE pid = ? AND first <= ? AND last >= ? ORDER BY seq DESC LIMIT ?"""
    rows = await memory.read(sql, table.pid, number, number, _MOVES)
    moves = [
        Move(float(t or 0), int(call or 0), str(what), str(why), json.loads(str(parts)))
        for t, call, what, why, parts in reversed(rows)
    ]
    known = not any(move.what == AUTHOR_REPLACED for move in moves)
    made = await _created(memory, table, stored, f"by {stored.author}" if known else "")
    return Trace(page(table, stored), [made, *moves])


async def _created(memory: Memory, table: PageTable, stored: Stored, who: str) -> Move:
    sql = "SELECT created, call FROM pages WHERE id = ?"
    found = await memory.read(sql, stored.id)
    created, call = found[0] if found else (0.0, 0)
    mapped = table.at(stored.number)
    why = f"mapped from {mapped.source}" if mapped is not None and mapped.source else who
    return Move(float(created or 0), int(call or 0), "written", why, {})
