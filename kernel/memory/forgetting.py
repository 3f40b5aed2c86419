"""Forgetting for good: a page leaves with every copy that was ever derived of it.

The text and its hash leave the database (`secure_delete` overwrites them), with the summaries that
tell of it; the engines' contexts are dropped; the text indexes are merged so that no segment keeps
the words, the write-ahead log is emptied, copies from before a migration are removed, and Chroma's
files are made anew. What fails of the latter is said, and done again by the sweeper.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from .. import limits, points
from ..database import Statement
from ..errors import SyscallError
from . import rows, schema, words
from .meaning import Meaning
from .memory import Memory
from .rows import Moved, runs
from .table import GONE, Table

Purge = Callable[[Sequence[int], Sequence[int]], None]  # ids of pages, and pids that had them


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was done."""

    pages: int
    pids: Sequence[int]  # who had them
    left: str = ""  # what is still to be done, and why


async def forget(
    memory: Memory, meaning: Meaning, table: Table, numbers: Iterable[int],
    purge: Purge,
) -> Forgotten:  # fmt: skip
    """Erase pages for everybody who has them.

    `purge` ends calls that see them and drops what engines hold of the owner. It is called while
    nothing can be written to the tables that had them, so no answer of such a call is kept.
    """
    owner = table.owner
    asked = sorted({page for number in numbers if (page := table.page(number)) is not None})
    ids: list[int] = []
    pids: set[int] = set()
    for at in range(0, len(asked), limits.SLICE_ROWS):
        gone, had = await _erased(memory, owner, set(asked[at : at + limits.SLICE_ROWS]), purge)
        ids += gone
        pids.update(had)
    if not ids:
        return Forgotten(0, [])
    points.passed("forget.erased")
    try:
        async with memory.upkeep(owner):
            await _swept(memory, meaning, owner, ids)
    except (SyscallError, OSError) as error:
        return Forgotten(len(ids), sorted(pids), f"indexes still hold something of it: {error}")
    return Forgotten(len(ids), sorted(pids))


async def _swept(memory: Memory, meaning: Meaning, owner: str, ids: Sequence[int]) -> None:
    """Out of every copy that was derived of the pages."""
    database = memory.database(owner)
    await memory.store.write(database, [schema.SWEEPING], durable=False, frees=True)
    await words.merge(memory, owner)
    await memory.store.empty_log(database)
    for pattern in ("*.copy", "*.part"):  # a migration's, whole or cut short
        for copy in memory.directory(owner).glob(pattern):
            copy.unlink(missing_ok=True)
    await meaning.erased(owner, [], ids)
    await meaning.sweep(owner)
    points.passed("forget.renewed")
    await memory.store.write(database, [schema.CLEAN], frees=True)


def holders(memory: Memory, table: Table, numbers: Iterable[int]) -> list[int]:
    """The processes that have any of these pages of a process: shared, forked or mapped."""
    pages = {page for number in numbers if (page := table.page(number)) is not None}
    by_space: dict[int, list[int]] = {}
    for page in pages:
        by_space.setdefault(schema.space_of(page)[0], []).append(page)
    found = {
        other.pid
        for space, some in by_space.items()
        for other in memory.tables.having(table.owner, space)
        if any(True for page in some for _ in other.numbers(page))
    }
    return sorted(found)


async def _erased(
    memory: Memory, owner: str, asked: set[int], purge: Purge
) -> tuple[list[int], list[int]]:
    """Off the database, with all that tells of them. The pages, and who had any."""
    async with memory.tables.structure(owner), AsyncExitStack() as held:
        ids = sorted(await _with_summaries(memory, owner, asked))
        memory.forgets[owner] += 1
        tokens = {int(r[0] or 0): int(r[8] or 0) for r in await memory.by_id(owner, ids)}
        ids = [page for page in ids if page in tokens]
        statements: list[Statement] = []
        had = {
            one.pid: one
            for space in {schema.space_of(page)[0] for page in ids}
            for one in memory.tables.having(owner, space)
        }
        pids: list[int] = []
        for pid, other in sorted(had.items()):
            await held.enter_async_context(memory.tables.changing(other))
            gone = {number: page for page in ids for number in other.numbers(page)}
            if gone:
                pids.append(pid)
                other.tokens -= sum(tokens[page] for page in gone.values())
                statements += _forgotten(memory, other, sorted(gone))
        for low, high in runs(ids):
            statements += schema.erased(low, high)
        statements += [schema.unknown(schema.space_of(page)[0]) for page in ids]
        if ids:
            database = memory.database(owner)
            await memory.store.write(database, [*statements, schema.DIRTY], frees=True)
            memory.forgets[owner] += 1  # again: what was read while it was written may be gone
            purge(ids, pids)
    return ids, pids


async def _with_summaries(memory: Memory, owner: str, pages: set[int]) -> set[int]:
    """Pages, the summaries that tell of any of them, those that tell of these, and so on."""
    found, fresh = set(pages), set(pages)
    while fresh:
        some = list(fresh)[: schema.AT_ONCE]
        fresh -= set(some)
        sql = f"SELECT summary FROM told WHERE page IN ({','.join('?' * len(some))})"
        told = {int(row[0] or 0) for row in await memory.read(owner, sql, *some)}
        fresh |= told - found
        found |= told
    return found


def _forgotten(memory: Memory, table: Table, numbers: Sequence[int]) -> list[Statement]:
    """A process that has the pages has holes there."""
    for number in numbers:
        table.mark(number).page = GONE
    table.leave(numbers)
    table.title = None  # it may hold words of theirs
    moves = [Moved(low, high, "forgotten", "it was asked for") for low, high in runs(numbers)]
    return [
        *(rows.mark_row(table, number) for number in numbers),
        *(rows.move_row(table.pid, move) for move in moves),
        *memory.saved(table),
    ]
