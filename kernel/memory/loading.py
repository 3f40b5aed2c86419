"""Opens the database of an owner's pages and reads the page tables. Blocks: run it in a thread."""

from ..storage.database import Database
from ..storage.store import Store
from . import pieces, rows
from .memory import COUNTED, LoadedPages, counted
from .schema import SCHEMA
from .table import PageTable, Range

FILE = "pages.db"
_SEQUENCE = "SELECT max(seq) FROM sqlite_sequence WHERE name = 'spaces'"


def load(store: Store, owner: str, limit_bytes: int = 0) -> LoadedPages:
    """Open or create the database. SyscallError, ValueError or TypeError when it is unreadable.

    `limit_bytes`: of its data; 0: no limit.
    """
    database = store.open(name(owner), SCHEMA, limit_bytes=limit_bytes)
    last = store.read(database, "SELECT max(space) FROM spaces")[0][0]
    sequence = store.read(database, _SEQUENCE)[0][0]
    return LoadedPages(
        owner, database, _tables(store, database, owner), max(int(last or 0), int(sequence or 0)),
        counted(store.read(database, COUNTED)[0]),
        rebuilding=bool(store.read(database, pieces.REBUILDING)),
        unfinished=bool(store.read(database, pieces.UNFINISHED)),
    )  # fmt: skip


def name(owner: str) -> str:
    """The name of the database in the store."""
    return f"owners/{owner}/{FILE}"


def _tables(store: Store, database: Database, owner: str) -> list[PageTable]:
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
    return list(tables.values())
