"""Replaces, writes by key, pins and evicts pages. Other processes keep the pages they share."""

import dataclasses
from collections.abc import Sequence

from ..abi import limits
from ..abi.errors import Denied, Errno, SyscallError, TooBig
from ..abi.values import Role
from ..storage.database import Statement
from . import rows, schema
from .erasing import erase_pages
from .memory import Memory
from .rows import Change, Moved, NewPage, runs
from .table import GONE, PageTable


async def replace(
    memory: Memory, table: PageTable, number: int, pages: Sequence[NewPage]
) -> tuple[list[int], list[int]]:
    """Replace the text of a page number.

    Returns the number, and the ids of pages that no process has any more. ENOENT; EACCES: mapped
    read-only; E2BIG: the text is longer than one page.
    """
    if len(pages) != 1:
        message = f"the text takes {len(pages)} pages, it has to fit one (page {number})"
        raise SyscallError(Errno.E2BIG, message, "write the rest as new pages", pid=table.pid)
    async with memory.tables.ownership, memory.tables.changing(table):
        old = table.require(number)
        _check_writable(table, number)
        page = table.allocate_replacement()
        table.set_page(number, page)
        what, statements = await _replacement(memory, table, old, page, pages[0])
        table.sizes[number] = pages[0].tokens
        unused, erased = erase_pages(memory, [old])
        move = Moved(number, number, what, f"by {table.owner}")
        more = [*statements, *erased]
        await memory.change(table, Change([move], [number], more=more, erases=bool(unused)))
    return [number], unused


async def _replacement(
    memory: Memory, table: PageTable, old: int, page: int, one: NewPage
) -> tuple[str, list[Statement]]:
    """What happens to a page, and the statements; message, call and creation time are kept."""
    sql = "SELECT message, call, created, tokens, author FROM pages WHERE id = ?"
    (found,) = await memory.read(sql, old) or [(table.messages, 0, None, 0, "")]
    message, call, created, tokens = (float(value or 0) for value in found[:4])
    one = dataclasses.replace(one, created=created or None)
    row = rows.page_row(table.owner, page, one, message=int(message), call=int(call))
    table.tokens += one.tokens - int(tokens)
    memory.add_waiting(1)
    what = schema.REPLACED if found[4] == one.author else schema.AUTHOR_REPLACED
    return what, [row, *schema.index_pages(page, page)]


async def put(
    memory: Memory, table: PageTable, key: str, pages: Sequence[NewPage]
) -> tuple[list[int], list[int]]:
    """Write pages under a key; they replace the pages that had the key.

    Returns the new numbers, and the ids of pages that no process has any more. Pages that are
    mapped read-only stay, and so do pages of documents, whose key is the file's name.
    """
    async with memory.tables.ownership, memory.tables.changing(table):
        found = await memory.keyed(table, key)
        before = {number: one for number, one in found.items() if _replaces_by_key(table, number)}
        room = table.append(len(pages))
        statements = memory.store_rows(table, [page for _, page in room], pages)
        old = [page for page, _ in before.values()]
        for number, (_, tokens) in before.items():
            table.set_page(number, GONE)
            table.tokens -= tokens
        table.evict(list(before))
        unused, erased = erase_pages(memory, old)
        moves = [Moved(a, b, "evicted", "its key was rewritten") for a, b in runs(before)]
        more = [*statements, *erased]
        await memory.change(
            table, Change(moves, list(before), table.ranges[-1:], more, erases=bool(unused))
        )
    return [number for number, _ in room], unused


def _replaces_by_key(table: PageTable, number: int) -> bool:
    """Whether writing the page's key replaces the page."""
    found = table.at(number)
    document = found is not None and found.source.startswith("/files/")
    return _is_writable(table, number) and (not document or _is_replacement(table, number))


def _is_replacement(table: PageTable, number: int) -> bool:
    """Whether the page replaces a page of a mapping."""
    mark = table.marks.get(number)
    return mark is not None and bool(mark.page)


def _is_writable(table: PageTable, number: int) -> bool:
    found = table.at(number)
    return found is None or found.writable or _is_replacement(table, number)


def _check_writable(table: PageTable, number: int) -> None:
    found = table.at(number)
    if found is not None and not _is_writable(table, number):
        message = f"page {number} of process {table.pid} is mapped read-only from {found.source}"
        raise Denied(message, "map it writable, or write a new page")


async def pin(
    memory: Memory, table: PageTable, numbers: Sequence[int], pinned: bool, window: int = 0
) -> None:
    """Pin pages in the window, or unpin them. ENOENT.

    E2BIG when pinned pages would take more than PIN_SHARE of a window of `window` tokens.
    """
    async with memory.tables.changing(table):
        for number in numbers:
            table.require(number)
        if pinned and window:
            await _check_pins(memory, table, numbers, window)
        for number in numbers:
            table.marks[number] = dataclasses.replace(table.mark(number), pinned=pinned)
        moves = [
            Moved(low, high, "pinned" if pinned else "unpinned", "requested")
            for low, high in runs(numbers)
        ]
        await memory.change(table, Change(moves, marks=numbers))


async def _check_pins(
    memory: Memory, table: PageTable, numbers: Sequence[int], window: int
) -> None:
    """E2BIG when pinned pages and the system prompt would exceed PIN_SHARE of the window."""
    pinned = {*numbers, *(n for n, mark in table.marks.items() if mark.pinned)}
    system = {n for p in table.window if p.role is Role.SYSTEM for n in p.pages}
    tokens = sum((await memory.sizes(table, pinned | system)).values())
    room = int(window * limits.PIN_SHARE)
    if tokens > room:
        message = (
            f"{len(pinned)} pinned pages and the system prompt would take {tokens} tokens; "
            f"{room} of the window's {window} are allowed"
        )
        hint = f"pin fewer pages; `llmasos mem pin {table.pid} PAGE --off` unpins one"
        raise TooBig(message, hint)


async def evict(memory: Memory, table: PageTable, numbers: Sequence[int]) -> list[int]:
    """Take pages out of the window now. ENOENT; EBUSY for one that is pinned."""
    async with memory.tables.changing(table):
        for number in numbers:
            table.require(number)
            if table.pinned(number):
                message = f"page {number} of process {table.pid} is pinned"
                hint = f"`llmasos mem pin {table.pid} {number} --off` unpins it"
                raise SyscallError(Errno.EBUSY, message, hint, pid=table.pid)
        resident = table.resident()
        evicted = [number for number in numbers if number in resident]
        table.evict(evicted)
        moves = [Moved(low, high, "evicted", "requested") for low, high in runs(evicted)]
        await memory.change(table, Change(moves))
    return evicted
