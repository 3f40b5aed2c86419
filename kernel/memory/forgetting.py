"""Forgetting for good: a page leaves with every copy that was ever derived of it.

The text and its hash leave the database (`secure_delete` overwrites them), the text indexes are
merged so that no segment keeps the words, the write-ahead log is emptied, copies from before a
migration are removed, and Chroma's files are made anew. The engine's contexts of every process that
had the page are dropped by whoever calls.
"""

from collections.abc import Iterable, Sequence

from .. import points
from ..database import Statement
from . import rows, schema
from .meaning import Meaning
from .memory import Memory
from .rows import Moved, runs
from .sweeping import MERGED
from .table import GONE, Table


async def forget(
    memory: Memory, meaning: Meaning, table: Table, numbers: Iterable[int]
) -> tuple[int, list[int]]:
    """Erase pages for everybody who has them. How many, and whose windows held them."""
    numbers = await _with_summaries(memory, table, set(numbers))
    ids = sorted({page for number in numbers if (page := table.page(number)) is not None})
    if not ids:
        return 0, []
    statements: list[Statement] = []
    tokens = dict.fromkeys(ids, 0)
    for row in await memory.by_id(table.owner, ids):
        tokens[int(row[0] or 0)] = int(row[8] or 0)
    touched: list[int] = []
    for other in [one for one in memory.tables() if one.owner == table.owner]:
        gone = [(number, page) for page in ids if (number := other.number(page)) is not None]
        if gone:
            touched.append(other.pid)
            statements += _forgotten(memory, other, [number for number, _ in gone])
            other.tokens -= sum(tokens[page] for _, page in gone)
    for low, high in runs(ids):
        statements += schema.erased(low, high)
    database = memory.database(table.owner)
    await memory.store.write(database, [*statements, schema.DIRTY], frees=True)
    points.passed("forget.erased")
    await memory.store.write(database, MERGED, frees=True)
    await memory.store.empty_log(database)
    for copy in memory.directory(table.owner).glob("*.copy"):
        copy.unlink(missing_ok=True)
    await meaning.erased(table.owner, [], ids)
    await meaning.renew(table.owner)
    points.passed("forget.renewed")
    await memory.store.write(database, schema.CLEAN, frees=True)
    return len(ids), touched


async def _with_summaries(memory: Memory, table: Table, numbers: set[int]) -> set[int]:
    """Pages, and the summaries that tell of any of them."""
    sql = "SELECT id, key FROM pages WHERE kind = 'summary'"
    found = await memory.read(table.owner, sql)
    told = {
        number
        for page, key in found
        if not numbers.isdisjoint(rows.told_of(str(key)))
        and (number := table.number(int(page or 0))) is not None
    }
    return numbers | told


def _forgotten(memory: Memory, table: Table, numbers: Sequence[int]) -> list[Statement]:
    """A process that has the pages has holes there."""
    for number in numbers:
        table.mark(number).page = GONE
    table.leave(numbers)
    moves = [Moved(low, high, "forgotten", "it was asked for") for low, high in runs(numbers)]
    return [
        *(rows.mark_row(table, number) for number in numbers),
        *(rows.move_row(table.pid, move) for move in moves),
        *rows.saved(table, window=table.pid not in memory.unread),
    ]
