"""The page tables of an owner as they stand in the database, read once when the machine starts."""

from ..database import Database, Row
from ..store import Store
from . import rows
from .lag import COUNTED
from .table import Range, Table


def load_tables(store: Store, database: Database, owner: str) -> tuple[list[Table], Row]:
    """An owner's tables, without their windows; and how far the vectors lag behind.

    SyscallError, ValueError or TypeError when the database cannot be read.
    """
    tables: dict[int, Table] = {}
    sql = "SELECT pid, space, next, place, messages, tokens, held FROM tables"
    for row in store.read(database, sql):
        pid, space, after, place, messages, tokens, held = (int(one or 0) for one in row)
        tables[pid] = Table(pid, owner, space, after, place, messages, tokens, held=held)
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
