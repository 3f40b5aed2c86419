"""Pages that nobody has any more leave the database, in pieces.

One transaction takes them from who had them and writes down that they are going; it erases the
first of them, too. The others are erased by the sweeper soon afterwards, piece by piece, also after
a crash. What indexes and Chroma's files keep of them is the sweeper's as well.
"""

import logging
from collections.abc import Iterable, Sequence

from ..database import Statement
from ..errors import Damaged, SyscallError
from ..process import Process
from . import pieces, schema
from .memory import Memory
from .rows import runs

log = logging.getLogger(__name__)
_LOST = """SELECT min(id), max(id), count(*) FROM pages WHERE id BETWEEN ? AND ? AND NOT EXISTS
           (SELECT 1 FROM going WHERE pages.id BETWEEN low AND high)"""


async def drop(memory: Memory, process: Process) -> list[int]:
    """Free a reaped process's pages, but for those that others have. The spaces that are gone."""
    return await erase(memory, process.owner, process.pid)


async def erase(memory: Memory, owner: str, pid: int) -> list[int]:
    """A process's rows, and the pages that nobody has any more. The spaces that are gone."""
    tables = memory.tables
    async with tables.structure(owner), tables.lock(pid):
        table = tables.remove(pid)
        memory.unread.discard(pid)
        sql = """SELECT space FROM ranges WHERE pid = ?1 UNION
                 SELECT space FROM spaces WHERE pid = ?1"""
        spaces = {int(row[0] or 0) for row in await memory.read(owner, sql, pid)}
        if table is not None:
            spaces |= table.spaces()
        statements = [*schema.gone(pid), ("UPDATE spaces SET pid = 0 WHERE pid = ?", (pid,))]
        empty: list[int] = []
        for space in sorted(spaces):
            gone, erased = emptied(memory, owner, space)
            statements += erased
            empty += [space] if gone else []
        await memory.let_go(owner, statements, frees=True)
    tables.unlock([pid])
    return empty


def freed(memory: Memory, owner: str, pages: Iterable[int]) -> tuple[list[int], list[Statement]]:
    """Those of some pages that nobody has any more, and how they go."""
    free = [
        page
        for page in pages
        if all(one.number(page) is None
               for one in memory.tables.having(owner, schema.space_of(page)[0]))
    ]  # fmt: skip
    statements = [schema.going(low, high) for low, high in runs(free)]
    statements += [schema.unknown(space) for space in {schema.space_of(p)[0] for p in free}]
    return free, [*statements, schema.DIRTY] if free else []


def emptied(memory: Memory, owner: str, space: int) -> tuple[bool, list[Statement]]:
    """How what nobody has of a space goes. Whether that is all of it."""
    holes = unused(memory, owner, space)
    statements = [schema.going(low, high) for low, high in holes]
    whole = holes[:1] == [schema.whole(space)]
    if whole:
        statements.append(("DELETE FROM spaces WHERE space = ?", (space,)))
    return whole, [*statements, schema.unknown(space), schema.DIRTY] if holes else []


def unused(memory: Memory, owner: str, space: int) -> list[tuple[int, int]]:
    """Ids of a space that no table reaches: first and last of each run."""
    mine = memory.tables.having(owner, space)
    used = sorted(part for table in mine for part in table.holds(space))
    writer = next((table for table in mine if table.space == space), None)
    holes: list[tuple[int, int]] = []
    at = 0
    for first, end in used:
        if first > at:
            holes.append((schema.page_id(space, at), schema.page_id(space, first - 1)))
        at = max(at, end)
    end = (1 << schema.SPAN) - 1 if writer is None else writer.place - 1  # more may come
    if end >= at:
        holes.append((schema.page_id(space, at), schema.page_id(space, end)))
    return holes


async def abandon(memory: Memory, owner: str, space: int) -> bool:
    """Erase a space unless somebody has it. Whether it is erased."""
    async with memory.tables.structure(owner):
        if memory.tables.having(owner, space):
            return False
        _, statements = emptied(memory, owner, space)
        await memory.let_go(owner, statements, frees=True)
    return True


async def finish(memory: Memory, owner: str) -> list[int]:
    """Erase all that is going. The ids that were still there."""
    erased: list[int] = []
    more = True
    while more:
        ids, more = await memory.store.slice(memory.database(owner), pieces.erase)
        erased += ids
    return erased


# --- after a crash --------------------------------------------------------------------------------
async def clear(memory: Memory, owner: str) -> None:
    """At boot: spaces that nobody has, as the last run ended in the midst of something."""
    for (space,) in await memory.read(owner, "SELECT space FROM spaces WHERE pid = 0"):
        await abandon(memory, owner, int(space or 0))


async def recover(memory: Memory, alive: set[int]) -> None:
    """After a crash: what no living process has leaves the database of each owner.

    A database that turns out to be damaged is not used in this run, and keeps nobody else from it.
    """
    for owner in memory.owners():
        try:
            await clear(memory, owner)
            for pid in orphans(memory, owner, alive):
                await erase(memory, owner, pid)
        except Damaged as error:
            memory.withhold(owner, error)
        except SyscallError as error:  # as on a full disk: the next start tries again
            log.warning("pages that nobody has stay in the database of %s: %s", owner, error)


def orphans(memory: Memory, owner: str, alive: set[int]) -> list[int]:
    """Pids that have pages, and whose process is gone: a crash came between the two."""
    sql = "SELECT pid FROM tables UNION SELECT pid FROM spaces WHERE pid > 0"
    return [int(pid or 0) for (pid,) in memory.now(owner, sql) if pid not in alive]


async def lost(memory: Memory, owner: str) -> int:
    """How many pages nobody has that do not go. Not those of a document that is being mapped."""
    async with memory.tables.structure(owner):
        return sum(pages for _, _, pages in await _lost(memory, owner))


async def _lost(memory: Memory, owner: str) -> Sequence[tuple[int, int, int]]:
    """First id, last id and number of each run."""
    found: list[tuple[int, int, int]] = []
    for (number,) in await memory.read(owner, "SELECT space FROM spaces"):
        space = int(number or 0)
        if (owner, space) in memory.coming:
            continue
        for low, high in unused(memory, owner, space):
            first, last, pages = (await memory.read(owner, _LOST, low, high))[0]
            if first is not None:
                found.append((int(first), int(last or 0), int(pages or 0)))
    return found


async def let_go_lost(memory: Memory, owner: str) -> None:
    """Erase the pages that nobody has."""
    async with memory.tables.structure(owner):
        statements = [schema.going(low, high) for low, high, _ in await _lost(memory, owner)]
        await memory.let_go(owner, [*statements, schema.DIRTY], frees=True)
