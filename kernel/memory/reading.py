"""Pages as they are told to people and programs."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from .. import limits
from ..errors import Errno, SyscallError
from ..values import Kind, Move, Page, Pages, ReadMem, Trace, Where
from .layout import Stored
from .memory import Memory
from .rows import OTHERS, REPLACED
from .table import Table

_SOME = 256  # pages of one look
_BESIDE = 500  # bytes of a page's numbers, and of the names of its fields
_MOVES = 1_000  # the newest are told


def page(table: Table, held: Stored, resident: set[int] | None = None) -> Page:
    """`resident`: what is in the window, where the caller knows it already."""
    here = table.resident() if resident is None else resident
    mark = table.marks.get(held.number)
    mapped = table.at(held.number)
    return Page(
        number=held.number, message=held.message, owner=table.owner, kind=Kind(held.kind),
        author=held.author, time=held.time, session=held.session, key=held.key,
        tokens=held.tokens, text=held.text, labels=held.labels, pinned=table.pinned(held.number),
        where=Where.WINDOW if held.number in here else Where.STORE,
        uses=mark.uses if mark is not None else 0,
        source=mapped.source if mapped is not None else "", speaker=held.speaker,
        written=held.created,
    )  # fmt: skip


async def read(memory: Memory, table: Table, request: ReadMem) -> Pages:
    """Pages from `first` on, as many as a reply holds; of a key, or of a time."""
    numbers = await _numbers(memory, table, request)
    pages: list[Page] = []
    room = limits.READ_MEM_BYTES
    resident = table.resident()
    while some := list(islice(numbers, _SOME)):
        for one in (await memory.stored(table, some)).values():
            if not _wanted(one, request):
                continue
            room -= bytes_of(one, texts=request.texts)
            if len(pages) == request.count or (room < 0 and pages):
                return Pages(pages, one.number)
            pages.append(page(table, one if request.texts else replace(one, text=""), resident))
    return Pages(pages, None)


async def _numbers(memory: Memory, table: Table, request: ReadMem) -> Iterator[int]:
    """Of the pages that may be meant; those of a key are looked up."""
    if not request.key:
        return (number for number, _ in table.pages(request.first, table.next))
    return (n for n in await memory.keyed(table, request.key) if n >= request.first)


def bytes_of(held: Stored, *, texts: bool = True) -> int:
    """What a page takes in a reply, about, and not less."""
    said = (held.text if texts else "", held.author, held.speaker)
    words = (*said, held.key, held.session, *held.labels)
    return _BESIDE + sum(len(word.encode()) + 5 for word in words)


def _wanted(held: Stored, request: ReadMem) -> bool:
    early = request.since is not None and held.time < request.since
    late = request.until is not None and held.time > request.until
    return not early and not late


async def trace(memory: Memory, table: Table, number: int) -> Trace:
    """A page's ways into the window and out of it, from its first writing on. ENOENT."""
    table.must(number)
    held = (await memory.stored(table, [number])).get(number)
    if held is None:
        raise SyscallError(Errno.ENOENT, f"page {number} of process {table.pid} is gone")
    sql = """SELECT time, call, what, why, parts FROM moves
             WHERE pid = ? AND first <= ? AND last >= ? ORDER BY seq DESC LIMIT ?"""
    rows = await memory.read(table.owner, sql, table.pid, number, number, _MOVES)
    moves = [
        Move(float(t or 0), int(call or 0), str(what), str(why), json.loads(str(parts)))
        for t, call, what, why, parts in reversed(rows)
    ]
    known = not any(move.what == REPLACED and move.why.endswith(OTHERS) for move in moves)
    made = await _created(memory, table, held, f"by {held.author}" if known else "")
    return Trace(page(table, held), [made, *moves])


async def _created(memory: Memory, table: Table, held: Stored, who: str) -> Move:
    sql = "SELECT created, call FROM pages WHERE id = ?"
    found = await memory.read(table.owner, sql, held.id)
    created, call = found[0] if found else (0.0, 0)
    mapped = table.at(held.number)
    why = f"mapped from {mapped.source}" if mapped is not None and mapped.source else who
    return Move(float(created or 0), int(call or 0), "written", why, {})
