"""Writes, reads, shares and erases the pages of one owner's processes.

An owner's data is one directory; a text is stored in its database and nowhere else. A turn is one
transaction: its pages, the new window, the moves with their reasons, and the call's number. Page
tables are in memory and change at once, in the order in which the writes are queued; a write that
fails leaves page numbers without a page.
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import anyio

from ..abi import limits
from ..abi.errors import SyscallError
from ..abi.values import Message, Role
from ..driver import Cut
from ..process.table import Process, check_alive
from ..storage.database import Database, Row, Statement, Transaction, Value
from ..storage.store import Store
from ..yield_point import YieldPoint
from . import pieces, rows, schema
from .layout import Stored
from .rows import Change, Moved, NewPage, TurnRecord, load_window, stored
from .table import PageTable, Piece, Range, Tables, without

Result = TypeVar("Result")
_STORED = f"SELECT {schema.COLUMNS} FROM pages WHERE id"
_TRIM_MOVES = """DELETE FROM moves WHERE pid = ? AND seq <= (SELECT seq FROM moves WHERE pid = ?
                  ORDER BY seq DESC LIMIT 1 OFFSET ?)"""
COUNTED = """SELECT (SELECT count(*) FROM todo), (SELECT min(since) FROM todo),
                    (SELECT count(*) FROM refused)"""


@dataclass(frozen=True, slots=True)
class Lag:
    """The indexing lag of one owner, or of several."""

    waiting: int = 0  # pages that wait for a vector
    since: float = 0.0  # Unix seconds: when the oldest of them began to wait; 0: none waits
    refused: int = 0  # pages of which the embedder made no vector

    def with_pages(self, pages: int) -> "Lag":
        """This lag and pages that begin to wait now."""
        since = self.since if self.waiting else time.time()
        return Lag(self.waiting + pages, since, self.refused)


def counted(row: Sequence[Value]) -> Lag:
    """The lag in the row that the query COUNTED returns."""
    waiting, since, refused = row
    return Lag(int(waiting or 0), float(since or 0), int(refused or 0))


def total_lag(lags: Iterable[Lag]) -> Lag:
    """The sum of several lags, since the oldest page that waits."""
    waiting, refused, since = 0, 0, 0.0
    for one in lags:
        refused += one.refused
        if one.waiting:
            waiting += one.waiting
            since = min(since or one.since, one.since)
    return Lag(waiting, since, refused)


@dataclass(frozen=True, slots=True)
class LoadedPages:
    """What is read when an owner's pages are opened."""

    owner: str
    database: Database
    tables: list[PageTable]  # without their windows
    last_space: int  # the greatest number of a space that was given
    lag: Lag
    rebuilding: bool  # a rebuild of the text indexes was interrupted
    unfinished: bool  # erased pages are still in the indexes or in the database


def _ignore() -> None:
    return


class Memory:
    """The pages of one owner, while its database is open."""

    def __init__(self, store: Store, loaded: LoadedPages) -> None:
        self.store = store
        self.owner = loaded.owner
        self.database = loaded.database
        self.directory = loaded.database.path.parent
        self.tables = Tables()
        self.unread: set[int] = set()  # pids whose window is not read from disk yet
        for table in loaded.tables:
            self.tables.add(table)
            self.unread.add(table.pid)
        self._last_space = loaded.last_space
        self.lag = loaded.lag  # pages that have no vector yet
        self.rebuilding = loaded.rebuilding  # the text indexes are incomplete
        self.forgets = 0  # `forget` steps: if it changes, pages read before may be erased
        self.storing: set[int] = set()  # spaces of documents that are being stored
        # Held to check and sweep the pages, and to rebuild their indexes.
        self.maintenance = anyio.Lock()
        self.on_erase_pending: Callable[[], None] = _ignore  # the database has pages to erase

    def has_pages(self) -> bool:
        return any(table.tokens for table in self.tables.all())

    def new_space(self) -> int:
        self._last_space += 1
        return self._last_space

    # --- tables -----------------------------------------------------------------------------------
    def tokens(self, pid: int) -> int:
        """The tokens of all pages of a process."""
        table = self.tables.get(pid)
        return table.tokens if table is not None else 0

    def table(self, process: Process) -> PageTable:
        """Its page table; empty until something is written. ESRCH: the process was reaped."""
        known = self.tables.get(process.pid)
        if known is None:
            check_alive(process)
            space = self.new_space()
            known = self.tables.add(PageTable(process.pid, process.owner, space))
        return known

    def discard(self, process: Process) -> bool:
        """Drop the page table of a process that has no pages. False: it has some."""
        table = self.tables.get(process.pid)
        if table is not None and (table.next or table.place):
            return False
        self.tables.remove(process.pid)
        self.tables.unlock([process.pid])
        return True

    async def opened(self, process: Process) -> PageTable:
        """Its page table, with the window read from disk after a restart."""
        table = self.table(process)
        if table.pid in self.unread:
            sql = "SELECT window FROM tables WHERE pid = ?"
            found = await self.read(sql, table.pid)
            text = found[0][0] if found else "[]"
            window = load_window(str(text)) if text is not None else await self._whole(table)
            numbers = [number for piece in window for number in piece.numbers()]
            sizes = await self.sizes(table, numbers)
            if table.pid in self.unread:
                self.unread.discard(table.pid)
                table.window, table.sizes = window, sizes
                table.count_window()
        return table

    async def _whole(self, table: PageTable) -> list[Piece]:
        """The window of a process of an older version, whose window was always all of its pages."""
        pieces: dict[int, Piece] = {}
        pages = await self.stored(table, [number for number, _ in table.pages(0, table.next)])
        for number, page in pages.items():
            role = Role(page.kind) if page.kind in set(Role) else Role.USER  # the page was replaced
            piece = pieces.setdefault(page.message, Piece(page.message, role, []))
            piece.pages.append(number)
        return list(pieces.values())

    def saved(self, table: PageTable, *, ranges: Sequence[Range] = ()) -> list[Statement]:
        """Statements that save a table; a window that is not read yet is left as it is on disk."""
        read = table.pid not in self.unread
        if read:
            table.count_window()
        return rows.saved(table, window=read, ranges=ranges)

    # --- reading ----------------------------------------------------------------------------------
    async def read(self, sql: str, *values: Value) -> list[Row]:
        return await self.in_thread(self.store.read, self.database, sql, values)

    async def in_thread(self, function: Callable[..., Result], *values: object) -> Result:
        """Run a function that reads the database in a reader thread."""
        return await self.store.readers.run(self.owner, function, *values)

    async def in_file_thread(self, function: Callable[..., Result], *values: object) -> Result:
        """Run a function that reads files to map in a thread for that."""
        return await self.store.file_readers.run(self.owner, function, *values)

    def read_blocking(self, sql: str, *values: Value) -> list[Row]:
        """Like `read`, for a caller that is in a thread already. Blocks."""
        return self.store.read(self.database, sql, values)

    async def stored(self, table: PageTable, numbers: Iterable[int]) -> dict[int, Stored]:
        """Pages by number, in the order requested; erased ones are left out."""
        wanted = {number: table.page(number) for number in numbers}
        ids = [page for page in wanted.values() if page is not None]
        found = {int(row[0] or 0): row for row in await self.by_id(ids)}
        return {
            number: stored(number, found[page])
            for number, page in wanted.items()
            if page is not None and page in found
        }

    async def sizes(self, table: PageTable, numbers: Iterable[int]) -> dict[int, int]:
        """Tokens of pages by number; does not read their texts."""
        ids = {number: page for number in numbers if (page := table.page(number)) is not None}
        sql = "SELECT id, tokens FROM pages WHERE id IN (SELECT value FROM json_each(?))"
        values = json.dumps(sorted(ids.values()))
        found = {int(p or 0): int(t or 0) for p, t in await self.read(sql, values)}
        return {number: found[page] for number, page in ids.items() if page in found}

    async def count_waiting(self) -> None:
        """Count the pages that wait for a vector again."""
        self.lag = counted((await self.read(COUNTED))[0])

    def add_waiting(self, pages: int) -> None:
        """Count new pages, which wait for a vector from now on."""
        self.lag = self.lag.with_pages(pages)

    async def by_id(self, ids: Sequence[int]) -> list[Row]:
        return await self.in_thread(self._by_id, ids) if ids else []

    def _by_id(self, ids: Sequence[int]) -> list[Row]:
        found: list[Row] = []
        for at in range(0, len(ids), schema.AT_ONCE):
            some = ids[at : at + schema.AT_ONCE]
            sql = f"{_STORED} IN ({','.join('?' * len(some))})"
            found += self.store.read(self.database, sql, some)
        return found

    async def keyed(self, table: PageTable, key: str) -> dict[int, tuple[int, int]]:
        """The pages of a process with a key: ids and tokens by number."""
        sql = "SELECT id, tokens FROM pages WHERE key = ? AND key != ''"
        found = {int(p or 0): int(t or 0) for p, t in await self.read(sql, key)}
        return {number: (page, found[page]) for number, page in table.find(set(found))}

    # --- writing ----------------------------------------------------------------------------------
    async def write(
        self, process: Process, pages: Sequence[NewPage], more: Sequence[Statement] = ()
    ) -> list[tuple[int, int]]:
        """Append pages outside any turn and outside the window; returns their numbers and ids.

        `more`: statements that are run for each page, with its id as the first value.
        """
        table = await self.opened(process)
        async with self.tables.changing(table, whole=False):
            room, statements = self._appended(table, pages, 0)
            statements += [(sql, (page, *values)) for _, page in room for sql, values in more]
            await self._write([*statements, *self.saved(table, ranges=table.ranges[-1:])])
        return room

    async def append_message(
        self, process: Process, message: Message, cuts: Sequence[Cut], author: str
    ) -> None:
        """Append a message to the window, outside any turn: the system prompt at spawn."""
        table = await self.opened(process)
        async with self.tables.changing(table, whole=False):
            number = table.messages
            by = process.owner
            pages = [NewPage(c.text, c.tokens, message.role, author, speaker=by) for c in cuts]
            room, statements = self._appended(table, pages, 0)
            table.window = [*table.window, Piece(number, message.role, [n for n, _ in room])]
            table.sizes |= {n: c.tokens for (n, _), c in zip(room, cuts, strict=True)}
            await self._write([*statements, *self.saved(table, ranges=table.ranges[-1:])])

    async def commit(self, process: Process, turn: TurnRecord) -> list[int]:
        """Write a turn, durable when it returns; returns the numbers of its pages."""
        table = await self.opened(process)
        async with self.tables.changing(table, whole=False):
            if turn.is_void():
                return []
            message = table.messages
            room, statements = self._appended(table, turn.pages, turn.call)
            numbers = [number for number, _ in room]
            recalled = {n: parts for n, parts in turn.recalled.items() if table.page(n) is not None}
            turn = replace(turn, recalled=recalled)  # without pages erased meanwhile
            statements += self._move_rows(table, turn, numbers)
            here = table.resident() | set(recalled)  # pages evicted meanwhile stay out
            window = without(turn.window, {n for p in turn.window for n in p.numbers()} - here)
            table.window = [*window, *rows.pieces(turn, numbers, message)]
            table.sizes |= turn.sizes
            table.sizes |= {n: p.tokens for n, p in zip(numbers, turn.pages, strict=True)}
            statements += self.saved(table, ranges=table.ranges[-1:])
            await self._write(statements)
        return numbers

    def _appended(
        self, table: PageTable, pages: Sequence[NewPage], call: int
    ) -> tuple[list[tuple[int, int]], list[Statement]]:
        """Append pages to the table: their numbers and ids, and the statements that store them."""
        room = table.append(len(pages))
        return room, self.store_rows(table, [page for _, page in room], pages, call)

    def store_rows(
        self, table: PageTable, ids: Sequence[int], pages: Sequence[NewPage], call: int = 0
    ) -> list[Statement]:
        """Statements that store a table's new pages under consecutive ids."""
        if not ids:
            return []
        statements = [
            rows.page_row(table.owner, page, one, message=table.messages, call=call)
            for page, one in zip(ids, pages, strict=True)
        ]
        self.add_waiting(len(ids))
        table.messages += pages[-1].message + 1
        table.tokens += sum(one.tokens for one in pages)
        return [*statements, *schema.index_pages(ids[0], ids[-1])]

    def _move_rows(
        self, table: PageTable, turn: TurnRecord, numbers: Sequence[int]
    ) -> list[Statement]:
        """Statements for the moves of a turn and the marks of the recalled pages."""
        now = time.time()
        moves = rows.moves_out(turn, numbers)
        for number, parts in turn.recalled.items():
            mark = table.mark(number)
            table.marks[number] = replace(mark, used=now, uses=mark.uses + 1)
            moves.append(Moved(number, number, "recalled", "a request", turn.call, parts))
        statements = self._moves(table, moves)
        return [*statements, *(rows.mark_row(table, number) for number in turn.recalled)]

    def _moves(self, table: PageTable, moves: Sequence[Moved]) -> list[Statement]:
        """Statements that store moves and delete all but the newest MOVES of the process."""
        written = [rows.move_row(table.pid, move) for move in moves]
        trim: Statement = (_TRIM_MOVES, (table.pid, table.pid, limits.MOVES))
        return [*written, trim] if written else []

    async def change(self, table: PageTable, what: Change) -> None:
        """Write a change of a table (pins, evictions, mappings), durable when it returns."""
        statements = [
            *what.more,
            *(rows.mark_row(table, number) for number in what.marks),
            *self._moves(table, what.moves),
            *self.saved(table, ranges=what.ranges),
        ]
        if what.erases:
            await self.queue_erase(statements, frees=what.frees)
        else:
            await self._write(statements)

    async def queue_erase(self, statements: Sequence[Statement], *, frees: bool = False) -> None:
        """Queue pages for erasure; the first piece is erased at once, the others by the sweeper."""

        def work(transaction: Transaction) -> bool:
            transaction.write(statements)
            return pieces.erase(transaction)[1]

        if await self.store.apply(self.database, work, frees=frees):
            self.on_erase_pending()

    async def _write(self, statements: Sequence[Statement]) -> None:
        await self.store.write(self.database, statements)

    # --- fork and recovery ------------------------------------------------------------------------
    async def copy(self, parent: Process, children: Sequence[Process]) -> None:
        """Give each child the parent's pages, durable when it returns. No page is stored twice."""
        table = await self.opened(parent)
        async with (
            self.tables.ownership,
            self.tables.changing(table, whole=False),
        ):
            statements: list[Statement] = []
            tables: list[PageTable] = []
            why = f"at the fork from process {parent.pid}"
            yield_point = YieldPoint(shield=True)
            for child in children:
                own = table.copy(child.pid, self.new_space())
                tables.append(self.tables.add(own))
                statements += self.saved(own, ranges=own.ranges)
                statements.append((rows.COPY_MARKS, (own.pid, parent.pid)))
                statements += self._moves(
                    own, [Moved(0, own.next - 1, "shared", why)] if own.next else []
                )
                await yield_point()
            try:
                await self.store.write(self.database, statements)
            except SyscallError:
                for own in tables:
                    self.tables.remove(own.pid)
                raise

    async def committed(self, call: int) -> bool:
        """Whether a call's pages are on disk: if so, it succeeded, whatever the journal says."""
        sql = "SELECT 1 FROM pages WHERE call = ? AND call > 0 LIMIT 1"
        return bool(await self.read(sql, call))
