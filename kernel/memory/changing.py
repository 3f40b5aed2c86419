"""Pages written, replaced, pinned and evicted by name. What others share stays theirs."""

import dataclasses
from collections.abc import Sequence

from .. import limits
from ..database import Statement
from ..errors import Denied, Errno, SyscallError, TooBig
from ..values import Role
from . import rows, schema
from .erasing import freed
from .memory import Memory
from .rows import OTHERS, REPLACED, Change, Moved, Written, runs
from .table import GONE, Table


async def replace(
    memory: Memory, table: Table, number: int, pages: Sequence[Written]
) -> tuple[list[int], list[int]]:
    """Another text under the same number: it, and stored pages that nobody has any more.

    ENOENT; EACCES: mapped read-only; E2BIG: not one page.
    """
    if len(pages) != 1:
        words = f"the text takes {len(pages)} pages, page {number} is one"
        raise SyscallError(Errno.E2BIG, words, "write the rest as new pages", pid=table.pid)
    async with memory.tables.structure(table.owner), memory.tables.changing(table):
        old = table.must(number)
        _writable(table, number)
        page = table.mark(number).page = table.aside()
        why, statements = await _instead(memory, table, old, page, pages[0])
        table.sizes[number] = pages[0].tokens
        free, erased = freed(memory, table.owner, [old])
        move = Moved(number, number, REPLACED, why)
        more = [*statements, *erased]
        await memory.change(table, Change([move], [number], more=more, goes=bool(free)))
    return [number], free


async def _instead(
    memory: Memory, table: Table, old: int, page: int, one: Written
) -> tuple[str, list[Statement]]:
    """Who replaced a page, and how; the message, the call and the time of its writing stay."""
    sql = "SELECT message, call, created, tokens, author FROM pages WHERE id = ?"
    (found,) = await memory.read(table.owner, sql, old) or [(table.messages, 0, None, 0, "")]
    message, call, created, tokens = (float(value or 0) for value in found[:4])
    one = dataclasses.replace(one, created=created or None)
    row = rows.page_row(table.owner, page, one, message=int(message), call=int(call))
    table.tokens += one.tokens - int(tokens)
    memory.lags.add(table.owner, 1)
    who = f"by {table.owner}{'' if found[4] == one.author else OTHERS}"
    return who, [row, *schema.followed(page, page)]


async def put(
    memory: Memory, table: Table, key: str, pages: Sequence[Written]
) -> tuple[list[int], list[int]]:
    """What a key stands for from now on: its pages before are gone.

    The new numbers, and stored pages that nobody has any more. What is mapped read-only stays, and
    so does a document, whose key is its file's name.
    """
    async with memory.tables.structure(table.owner), memory.tables.changing(table):
        found = await memory.keyed(table, key)
        before = {number: one for number, one in found.items() if _is_put(table, number)}
        room = table.append(len(pages))
        statements = memory.stores(table, [page for _, page in room], pages)
        old = [page for page, _ in before.values()]
        for number, (_, tokens) in before.items():
            table.mark(number).page = GONE
            table.tokens -= tokens
        table.leave(list(before))
        free, erased = freed(memory, table.owner, old)
        moves = [Moved(a, b, "evicted", "its key was written anew") for a, b in runs(before)]
        more = [*statements, *erased]
        await memory.change(
            table, Change(moves, list(before), table.ranges[-1:], more, goes=bool(free))
        )
    return [number for number, _ in room], free


def _is_put(table: Table, number: int) -> bool:
    """Whether a page may be what a key stood for until now."""
    found = table.at(number)
    document = found is not None and found.source.startswith("/files/")
    return _is_writable(table, number) and (not document or _is_own(table, number))


def _is_own(table: Table, number: int) -> bool:
    """Whether it stands there instead of a page of a mapping."""
    mark = table.marks.get(number)
    return mark is not None and bool(mark.page)


def _is_writable(table: Table, number: int) -> bool:
    found = table.at(number)
    return found is None or found.writable or _is_own(table, number)


def _writable(table: Table, number: int) -> None:
    found = table.at(number)
    if found is not None and not _is_writable(table, number):
        words = f"page {number} of process {table.pid} is mapped read-only from {found.source}"
        raise Denied(words, "map it writable, or write a new page")


async def pin(
    memory: Memory, table: Table, numbers: Sequence[int], pinned: bool, window: int = 0
) -> None:
    """Keep pages in the window, or let them leave again. ENOENT.

    E2BIG when what is pinned would leave too little of a window of so many tokens.
    """
    async with memory.tables.changing(table):
        for number in numbers:
            table.must(number)
        if pinned and window:
            await _check_pins(memory, table, numbers, window)
        for number in numbers:
            table.mark(number).pinned = pinned
        moves = [
            Moved(low, high, "pinned" if pinned else "unpinned", "it was asked for")
            for low, high in runs(numbers)
        ]
        await memory.change(table, Change(moves, marks=numbers))


async def _check_pins(memory: Memory, table: Table, numbers: Sequence[int], window: int) -> None:
    """E2BIG when all that never leaves would take more than its share of the window."""
    pinned = {*numbers, *(n for n, mark in table.marks.items() if mark.pinned)}
    system = {n for p in table.window if p.role is Role.SYSTEM for n in p.pages}
    tokens = sum((await memory.sizes(table, pinned | system)).values())
    room = int(window * limits.PIN_SHARE)
    if tokens > room:
        words = (
            f"{len(pinned)} pinned pages, with the system prompt, would take {tokens} tokens; "
            f"{room} of the window's {window} are for them"
        )
        raise TooBig(words, f"pin fewer; `llmasos mem pin {table.pid} PAGE --off` lets one go")


async def evict(memory: Memory, table: Table, numbers: Sequence[int]) -> list[int]:
    """Take pages out of the window now. ENOENT; EBUSY for one that is pinned."""
    async with memory.tables.changing(table):
        for number in numbers:
            table.must(number)
            if table.pinned(number):
                words = f"page {number} of process {table.pid} is pinned"
                hint = f"`llmasos mem pin {table.pid} {number} --off`"
                raise SyscallError(Errno.EBUSY, words, hint, pid=table.pid)
        here = table.resident()
        leaving = [number for number in numbers if number in here]
        table.leave(leaving)
        moves = [Moved(low, high, "evicted", "it was asked for") for low, high in runs(leaving)]
        await memory.change(table, Change(moves))
    return leaving
