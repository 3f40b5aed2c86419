"""Erases pages that no process has any more from the database, in pieces.

One transaction removes them from the page tables, queues them in the table `going` and erases the
first of them. The sweeper erases the others soon afterwards in pieces, also after a crash. The
sweeper also removes what indexes and Chroma's files keep of them.
"""

import logging
from collections.abc import Iterable, Sequence

from ..abi.errors import Damaged, SyscallError
from ..process.table import Process
from ..storage.database import Statement
from . import pieces, schema
from .memory import Memory
from .rows import runs

log = logging.getLogger(__name__)
_LOST = """SELECT min(id), max(id), count(*) FROM pages WHERE id BETWEEN ? AND ? AND NOT EXISTS
           (SELECT 1 FROM going WHERE pages.id BETWEEN low AND high)"""


async def drop(memory: Memory, process: Process) -> list[int]:
    """Erase a reaped process's pages that no other process has. Returns the erased spaces."""
    return await erase(memory, process.pid)


async def erase(memory: Memory, pid: int) -> list[int]:
    """Erase the rows of a pid and the pages that no other process has: the erased spaces."""
    tables = memory.tables
    async with tables.ownership, tables.lock(pid):
        table = tables.remove(pid)
        memory.unread.discard(pid)
        sql = """SELECT space FROM ranges WHERE pid = ?1 UNION
                 SELECT space FROM spaces WHERE pid = ?1"""
        spaces = {int(row[0] or 0) for row in await memory.read(sql, pid)}
        if table is not None:
            spaces |= table.spaces()
        statements = [
            *schema.delete_process(pid),
            ("UPDATE spaces SET pid = 0 WHERE pid = ?", (pid,)),
        ]
        empty: list[int] = []
        for space in sorted(spaces):
            whole, erased = erase_unused(memory, space)
            statements += erased
            empty += [space] if whole else []
        await memory.queue_erase(statements, frees=True)
    tables.unlock([pid])
    return empty


def erase_pages(memory: Memory, pages: Iterable[int]) -> tuple[list[int], list[Statement]]:
    """Those of these pages that no process has, and the statements that erase them."""
    unused = [
        page
        for page in pages
        if all(one.number(page) is None
               for one in memory.tables.using(schema.space_of(page)[0]))
    ]  # fmt: skip
    statements = [schema.queue_erase(low, high) for low, high in runs(unused)]
    statements += [schema.clear_digest(space) for space in {schema.space_of(p)[0] for p in unused}]
    return unused, [*statements, schema.DIRTY] if unused else []


def erase_unused(memory: Memory, space: int) -> tuple[bool, list[Statement]]:
    """Statements that erase the unused pages of a space; and whether that is all of it."""
    holes = unused_ranges(memory, space)
    statements = [schema.queue_erase(low, high) for low, high in holes]
    whole = holes[:1] == [schema.id_range(space)]
    if whole:
        statements.append(("DELETE FROM spaces WHERE space = ?", (space,)))
    return whole, [*statements, schema.clear_digest(space), schema.DIRTY] if holes else []


def unused_ranges(memory: Memory, space: int) -> list[tuple[int, int]]:
    """Ids of a space that no table uses: first and last of each run."""
    tables = memory.tables.using(space)
    used = sorted(part for table in tables for part in table.places_used(space))
    writer = next((table for table in tables if table.space == space), None)
    holes: list[tuple[int, int]] = []
    at = 0
    for first, end in used:
        if first > at:
            holes.append((schema.page_id(space, at), schema.page_id(space, first - 1)))
        at = max(at, end)
    # The writer of the space may add pages at `writer.place` and after it.
    end = (1 << schema.SPAN) - 1 if writer is None else writer.place - 1
    if end >= at:
        holes.append((schema.page_id(space, at), schema.page_id(space, end)))
    return holes


async def erase_unmapped(memory: Memory, space: int) -> bool:
    """Erase a space if no process has it. Whether it was erased."""
    async with memory.tables.ownership:
        if memory.tables.using(space):
            return False
        _, statements = erase_unused(memory, space)
        await memory.queue_erase(statements, frees=True)
    return True


async def finish(memory: Memory) -> list[int]:
    """Erase all queued pages. Returns the ids that still existed."""
    erased: list[int] = []
    more = True
    while more:
        ids, more = await memory.store.slice(memory.database, pieces.erase)
        erased += ids
    return erased


# --- after a crash --------------------------------------------------------------------------------
async def clear(memory: Memory) -> None:
    """Erase spaces that no process has, left by an operation that a crash interrupted."""
    for (space,) in await memory.read("SELECT space FROM spaces WHERE pid = 0"):
        await erase_unmapped(memory, int(space or 0))


async def recover(memory: Memory, alive: set[int]) -> None:
    """At the first use in a run: erase what no living process has. Damaged.

    After another failure, as on a full disk, the next run tries again.
    """
    try:
        await clear(memory)
        for pid in await orphans(memory, alive):
            await erase(memory, pid)
    except Damaged:
        raise
    except SyscallError as error:
        log.warning("pages of no process stay in the database of %s: %s", memory.owner, error)


async def orphans(memory: Memory, alive: set[int]) -> list[int]:
    """Pids that have pages but no process: a crash came between reaping and erasing."""
    sql = "SELECT pid FROM tables UNION SELECT pid FROM spaces WHERE pid > 0"
    return [int(pid or 0) for (pid,) in await memory.read(sql) if pid not in alive]


async def lost(memory: Memory) -> int:
    """The number of pages of no process that are not queued for erasure.

    Pages of a document that is being mapped are not counted.
    """
    async with memory.tables.ownership:
        return sum(pages for _, _, pages in await _lost(memory))


async def _lost(memory: Memory) -> Sequence[tuple[int, int, int]]:
    """Runs of lost pages: first id, last id and number of each."""
    found: list[tuple[int, int, int]] = []
    for (number,) in await memory.read("SELECT space FROM spaces"):
        space = int(number or 0)
        if space in memory.storing:
            continue
        for low, high in unused_ranges(memory, space):
            first, last, pages = (await memory.read(_LOST, low, high))[0]
            if first is not None:
                found.append((int(first), int(last or 0), int(pages or 0)))
    return found


async def erase_lost(memory: Memory) -> None:
    """Erase the pages that no process has."""
    async with memory.tables.ownership:
        statements = [schema.queue_erase(low, high) for low, high, _ in await _lost(memory)]
        await memory.queue_erase([*statements, schema.DIRTY], frees=True)
