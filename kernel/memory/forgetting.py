"""Erases pages permanently, with every copy and everything derived from them.

The text and its hash are deleted from the database (`secure_delete` overwrites them), with the
summaries made from it; the engines' contexts are dropped. The text indexes are merged so that no
segment keeps the words, the write-ahead log is emptied, copies from before a migration are removed,
and Chroma's files are rewritten. The result reports a failure of these steps; the sweeper retries.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from .. import points
from ..abi import limits
from ..abi.errors import SyscallError
from ..storage.database import Statement
from . import rows, schema, text_index
from .memory import Memory
from .rows import Moved, runs
from .table import GONE, PageTable
from .vector_index import VectorIndex

Purge = Callable[[Sequence[int], Sequence[int]], None]  # ids of pages, and pids that had them


@dataclass(frozen=True, slots=True)
class ForgetResult:
    """The result of a `forget`."""

    pages: int
    pids: Sequence[int]  # processes that had them
    pending_note: str = ""  # what is not done yet, and why


async def forget(
    memory: Memory, vectors: VectorIndex, table: PageTable, numbers: Iterable[int],
    purge: Purge,
) -> ForgetResult:  # fmt: skip
    """Erase pages for every process that has them.

    `purge` ends calls that see them and drops the engines' contexts of the owner. It is called
    while the tables that had them are locked, so no answer of such a call is written.
    """
    requested = sorted({page for number in numbers if (page := table.page(number)) is not None})
    ids: list[int] = []
    pids: set[int] = set()
    for at in range(0, len(requested), limits.SLICE_ROWS):
        gone, had = await _delete(memory, set(requested[at : at + limits.SLICE_ROWS]), purge)
        ids += gone
        pids.update(had)
    if not ids:
        return ForgetResult(0, [])
    points.passed("forget.erased")
    try:
        async with memory.maintenance:
            await _clean_indexes(memory, vectors, ids)
    except (SyscallError, OSError) as error:
        return ForgetResult(len(ids), sorted(pids), f"indexes still hold erased pages: {error}")
    return ForgetResult(len(ids), sorted(pids))


async def _clean_indexes(memory: Memory, vectors: VectorIndex, ids: Sequence[int]) -> None:
    """Remove the pages from indexes, logs and copies."""
    database = memory.database
    await memory.store.write(database, [schema.SWEEPING], durable=False, frees=True)
    await text_index.merge(memory)
    await memory.store.truncate_log(database)
    for pattern in ("*.copy", "*.part"):  # of a migration, complete or interrupted
        for copy in memory.directory.glob(pattern):
            copy.unlink(missing_ok=True)
    await vectors.remove([], ids)
    await vectors.clean_files()
    points.passed("forget.renewed")
    await memory.store.write(database, [schema.CLEAN], frees=True)


def holders(memory: Memory, table: PageTable, numbers: Iterable[int]) -> list[int]:
    """Pids of the processes that have any of these pages: shared, forked or mapped."""
    pages = {page for number in numbers if (page := table.page(number)) is not None}
    by_space: dict[int, list[int]] = {}
    for page in pages:
        by_space.setdefault(schema.space_of(page)[0], []).append(page)
    found = {
        other.pid
        for space, some in by_space.items()
        for other in memory.tables.using(space)
        if any(True for page in some for _ in other.numbers(page))
    }
    return sorted(found)


async def _delete(memory: Memory, requested: set[int], purge: Purge) -> tuple[list[int], list[int]]:
    """Delete pages and their summaries from the database: the deleted ids, and the pids."""
    async with memory.tables.ownership, AsyncExitStack() as locks:
        ids = sorted(await _with_summaries(memory, requested))
        memory.forgets += 1
        tokens = {int(r[0] or 0): int(r[8] or 0) for r in await memory.by_id(ids)}
        ids = [page for page in ids if page in tokens]
        statements: list[Statement] = []
        had = {
            one.pid: one
            for space in {schema.space_of(page)[0] for page in ids}
            for one in memory.tables.using(space)
        }
        pids: list[int] = []
        for pid, other in sorted(had.items()):
            await locks.enter_async_context(memory.tables.changing(other))
            gone = {number: page for page in ids for number in other.numbers(page)}
            if gone:
                pids.append(pid)
                other.tokens -= sum(tokens[page] for page in gone.values())
                statements += _forgotten(memory, other, sorted(gone))
        for low, high in runs(ids):
            statements += schema.erase_pages(low, high)
        statements += [schema.clear_digest(schema.space_of(page)[0]) for page in ids]
        if ids:
            database = memory.database
            await memory.store.write(database, [*statements, schema.DIRTY], frees=True)
            memory.forgets += 1  # again: pages read during the write may be erased
            purge(ids, pids)
    return ids, pids


async def _with_summaries(memory: Memory, pages: set[int]) -> set[int]:
    """Pages, the summaries made from any of them, the summaries of these, and so on."""
    found, fresh = set(pages), set(pages)
    while fresh:
        some = list(fresh)[: schema.AT_ONCE]
        fresh -= set(some)
        sql = f"SELECT summary FROM told WHERE page IN ({','.join('?' * len(some))})"
        summaries = {int(row[0] or 0) for row in await memory.read(sql, *some)}
        fresh |= summaries - found
        found |= summaries
    return found


def _forgotten(memory: Memory, table: PageTable, numbers: Sequence[int]) -> list[Statement]:
    """Mark the pages as gone in a table that had them; the statements that save it."""
    for number in numbers:
        table.set_page(number, GONE)
    table.evict(numbers)
    table.title = None  # it may hold text of these pages
    moves = [Moved(low, high, "forgotten", "requested") for low, high in runs(numbers)]
    return [
        *(rows.mark_row(table, number) for number in numbers),
        *(rows.move_row(table.pid, move) for move in moves),
        *memory.saved(table),
    ]
