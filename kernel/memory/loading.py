"""Reads the page tables of an owner from the database, once at boot."""

from ..storage.database import Database, Row
from ..storage.store import Store
from . import rows
from .lag import COUNTED
from .table import PageTable, Range


def load_tables(store: Store, database: Database, owner: str) -> tuple[list[PageTable], Row]:
    """An owner's page tables without their windows, and the row of the query COUNTED.

    SyscallError, ValueError or TypeError when the database cannot be read.
    """
    tables: dict[int, PageTable] = {}
    sql = "SELECT pid, space, next, place, messages, tokens, held FROM tables"
    for row in store.read(database, sql):
        pid, space, after, place, messages, tokens, window = (int(one or 0) for one in row)
        tables[pid] = PageTable(
            pid, owner, space, after, place, messages, tokens, window_tokens=window
        )
    for row in store.read(database, "SELECT * FROM ranges ORDER BY pid, first"):
        pid, *numbers, writable = (int(one or 0) for one in row[:6])
        table = tables.get(pid)
        if table is not None:
            first, count, space, place = numbers
            table.ranges.append(Range(first, count, space, place, bool(writable), str(row[6])))
    for row in store.read(database, "SELECT * FROM marks"):
        table = tables.get(int(row[0] or 0))
        if table is not None:
            table.marks[int(row[1] or 0)] = rows.mark(row)
    return list(tables.values()), store.read(database, COUNTED)[0]
