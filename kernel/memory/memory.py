"""Every process's pages: written, read, shared and erased.

An owner's data is one directory; a text stands in its database and nowhere else. A turn is one
transaction: its pages, what the window became and why, with the call's number. Page tables are in
memory and change at once, in the order in which the writes are queued; a write that fails leaves
numbers that stand for nothing.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import anyio

from .. import limits
from ..database import Database, Row, Statement, Transaction, Value, damaged
from ..driver import Cut
from ..errors import SyscallError
from ..process import Process, check_alive
from ..store import Store
from ..turns import Turns
from ..values import Message, Role
from . import pieces, rows, schema
from .lag import COUNTED, Lags
from .layout import Stored
from .loading import load_tables
from .rows import Change, Moved, Turn, Written, stored
from .schema import SCHEMA
from .table import Piece, Range, Table, load, without
from .tables import Tables

Result = TypeVar("Result")
_FILE = "pages.db"
_STORED = f"SELECT {schema.COLUMNS} FROM pages WHERE id"
_FEWER_MOVES = """DELETE FROM moves WHERE pid = ? AND seq <= (SELECT seq FROM moves WHERE pid = ?
                  ORDER BY seq DESC LIMIT 1 OFFSET ?)"""


def _nothing(_: str) -> None:
    return


class Memory:
    """The pages of the machine."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.tables = Tables()
        self._owners: dict[str, Database] = {}
        self._spaces: dict[str, int] = {}  # last number, by owner
        self.unread: set[int] = set()  # pids whose window is still on disk
        self.forgets: Counter[str] = Counter()  # times, by owner: what was read before may be gone
        self.files = Turns(limits.OWNER_FILES, limits.FILES)  # by owner: what maps files
        self.lags = Lags()  # pages that are not found by meaning yet
        self.checks = Turns(1, limits.CHECKERS)  # by owner: what reads all pages
        self._upkeep: dict[str, anyio.Lock] = {}
        self.filling: set[str] = set()  # owners whose text indexes are being made anew
        self.coming: set[tuple[str, int]] = set()  # spaces of documents that are being stored
        self.left: Callable[[str], None] = _nothing  # called when an owner has pages to be erased
        owners = store.directory / "owners"
        owners.mkdir(mode=0o700, exist_ok=True)
        for directory in owners.iterdir():
            if directory.is_dir():
                self._load(directory.name)

    # --- owners -----------------------------------------------------------------------------------
    def directory(self, owner: str) -> Path:
        return self.store.directory / "owners" / owner

    def database(self, owner: str) -> Database:
        if owner not in self._owners:
            database = self.store.open(f"owners/{owner}/{_FILE}", SCHEMA)
            last = self.store.read(database, "SELECT max(space) FROM spaces")[0][0]
            sequence = self.store.read(
                database, "SELECT seq FROM sqlite_sequence WHERE name = 'spaces'"
            )
            self._spaces[owner] = max(int(last or 0), *(int(row[0] or 0) for row in sequence), 0)
            self._owners[owner] = database
        return self._owners[owner]

    def owners(self) -> list[str]:
        return list(self._owners)

    def _load(self, owner: str) -> None:
        """A database that cannot be read is its owner's misfortune, and nobody else's."""
        try:
            tables, lag = load_tables(self.store, self.database(owner), owner)
        except (SyscallError, ValueError, TypeError) as error:
            path = self.directory(owner) / _FILE
            self.withhold(owner, error if isinstance(error, SyscallError) else damaged(path, error))
            return
        self.lags.counted(owner, lag)
        for table in tables:
            self.tables.add(table)
            self.unread.add(table.pid)

    def withhold(self, owner: str, error: SyscallError) -> None:
        """Do without an owner's pages: whoever asks for them gets the error."""
        for table in self.tables.of(owner):
            self.tables.remove(table.pid)
            self.unread.discard(table.pid)
        self._owners.pop(owner, None)
        self.store.withhold(f"owners/{owner}/{_FILE}", owner, error)

    def upkeep(self, owner: str) -> anyio.Lock:
        """Held while an owner's pages are checked, swept, or their indexes are made anew."""
        return self._upkeep.setdefault(owner, anyio.Lock())

    def new_space(self, owner: str) -> int:
        self.database(owner)
        self._spaces[owner] += 1
        return self._spaces[owner]

    # --- tables -----------------------------------------------------------------------------------
    def tokens(self, pid: int) -> int:
        """Of all pages of a process."""
        table = self.tables.get(pid)
        return table.tokens if table is not None else 0

    def table(self, process: Process) -> Table:
        """Its page table; an empty one until something is written. ESRCH: it was reaped."""
        known = self.tables.get(process.pid)
        if known is None:
            check_alive(process)
            space = self.new_space(process.owner)
            known = self.tables.add(Table(process.pid, process.owner, space))
        return known

    async def opened(self, process: Process) -> Table:
        """The same, with its window read from disk after a restart."""
        table = self.table(process)
        if table.pid in self.unread:
            sql = "SELECT window FROM tables WHERE pid = ?"
            found = await self.read(table.owner, sql, table.pid)
            text = found[0][0] if found else "[]"
            window = load(str(text)) if text is not None else await self._whole(table)
            numbers = [number for piece in window for number in piece.numbers()]
            sizes = await self.sizes(table, numbers)
            if table.pid in self.unread:
                self.unread.discard(table.pid)
                table.window, table.sizes = window, sizes
                table.weigh()
        return table

    async def _whole(self, table: Table) -> list[Piece]:
        """The window of a process from a time when all of it was always there."""
        pieces: dict[int, Piece] = {}
        held = await self.stored(table, [number for number, _ in table.pages(0, table.next)])
        for number, page in held.items():
            role = Role(page.kind) if page.kind in set(Role) else Role.USER  # it was replaced
            piece = pieces.setdefault(page.message, Piece(page.message, role, []))
            piece.pages.append(number)
        return list(pieces.values())

    def saved(self, table: Table, *, ranges: Sequence[Range] = ()) -> list[Statement]:
        """A table as it is now; a window that was not read yet stays as it is on disk."""
        read = table.pid not in self.unread
        if read:
            table.weigh()
        return rows.saved(table, window=read, ranges=ranges)

    # --- reading ----------------------------------------------------------------------------------
    async def read(self, owner: str, sql: str, *values: Value) -> list[Row]:
        return await self.in_thread(owner, self.store.read, self.database(owner), sql, values)

    async def in_thread(self, owner: str, do: Callable[..., Result], *values: object) -> Result:
        """Call a function that reads the owner's database in a thread, in turn with others."""
        return await self.store.readers.run(owner, do, *values)

    def now(self, owner: str, sql: str, *values: Value) -> list[Row]:
        """The same, for who is in a thread already."""
        return self.store.read(self.database(owner), sql, values)

    async def stored(self, table: Table, numbers: Iterable[int]) -> dict[int, Stored]:
        """Pages by number, in the order that is asked for; those that are gone are left out."""
        wanted = {number: table.page(number) for number in numbers}
        ids = [page for page in wanted.values() if page is not None]
        found = {int(row[0] or 0): row for row in await self.by_id(table.owner, ids)}
        return {
            number: stored(number, found[page])
            for number, page in wanted.items()
            if page is not None and page in found
        }

    async def sizes(self, table: Table, numbers: Iterable[int]) -> dict[int, int]:
        """Tokens of pages by number, without their texts."""
        ids = {number: page for number in numbers if (page := table.page(number)) is not None}
        sql = "SELECT id, tokens FROM pages WHERE id IN (SELECT value FROM json_each(?))"
        asked = json.dumps(sorted(ids.values()))
        found = {int(p or 0): int(t or 0) for p, t in await self.read(table.owner, sql, asked)}
        return {number: found[page] for number, page in ids.items() if page in found}

    async def count_waiting(self, owner: str) -> None:
        """How many pages wait for their vectors, counted anew."""
        self.lags.counted(owner, (await self.read(owner, COUNTED))[0])

    async def by_id(self, owner: str, ids: Sequence[int]) -> list[Row]:
        if not ids:
            return []
        return await self.in_thread(owner, self._by_id, self.database(owner), ids)

    def _by_id(self, database: Database, ids: Sequence[int]) -> list[Row]:
        found: list[Row] = []
        for at in range(0, len(ids), schema.AT_ONCE):
            some = ids[at : at + schema.AT_ONCE]
            sql = f"{_STORED} IN ({','.join('?' * len(some))})"
            found += self.store.read(database, sql, some)
        return found

    async def keyed(self, table: Table, key: str) -> dict[int, tuple[int, int]]:
        """The pages of a process that a key stands for: by number, their ids and tokens."""
        sql = "SELECT id, tokens FROM pages WHERE key = ? AND key != ''"
        found = {int(p or 0): int(t or 0) for p, t in await self.read(table.owner, sql, key)}
        return {number: (page, found[page]) for number, page in table.find(set(found))}

    # --- writing ----------------------------------------------------------------------------------
    async def write(
        self, process: Process, pages: Sequence[Written], more: Sequence[Statement] = ()
    ) -> list[tuple[int, int]]:
        """Append pages outside any turn, and outside the window. Their numbers and ids.

        `more`: what is written of each as well, after its id.
        """
        table = await self.opened(process)
        async with self.tables.changing(table, whole=False):
            room, statements = self._appended(table, pages, 0)
            statements += [(sql, (page, *values)) for _, page in room for sql, values in more]
            await self._commit(table, [*statements, *self.saved(table, ranges=table.ranges[-1:])])
        return room

    async def say(
        self, process: Process, message: Message, cuts: Sequence[Cut], author: str
    ) -> None:
        """Append one message to the window, outside any turn: a system prompt at spawn."""
        table = await self.opened(process)
        async with self.tables.changing(table, whole=False):
            number = table.messages
            by = process.owner
            pages = [Written(c.text, c.tokens, message.role, author, speaker=by) for c in cuts]
            room, statements = self._appended(table, pages, 0)
            table.window = [*table.window, Piece(number, message.role, [n for n, _ in room])]
            table.sizes |= {n: c.tokens for (n, _), c in zip(room, cuts, strict=True)}
            await self._commit(table, [*statements, *self.saved(table, ranges=table.ranges[-1:])])

    async def commit(self, process: Process, turn: Turn) -> list[int]:
        """Write a turn, durable when it returns. The numbers of its pages."""
        table = await self.opened(process)
        async with self.tables.changing(table, whole=False):
            if turn.is_void():
                return []
            message = table.messages
            room, statements = self._appended(table, turn.pages, turn.call)
            numbers = [number for number, _ in room]
            recalled = {n: parts for n, parts in turn.recalled.items() if table.page(n) is not None}
            turn = replace(turn, recalled=recalled)  # without what was forgotten meanwhile
            statements += self._moved(table, turn, numbers)
            here = table.resident() | set(recalled)  # what was evicted meanwhile stays out
            window = without(turn.window, {n for p in turn.window for n in p.numbers()} - here)
            table.window = [*window, *rows.pieces(turn, numbers, message)]
            table.sizes |= turn.sizes
            table.sizes |= {n: p.tokens for n, p in zip(numbers, turn.pages, strict=True)}
            statements += self.saved(table, ranges=table.ranges[-1:])
            await self._commit(table, statements)
        return numbers

    def _appended(
        self, table: Table, pages: Sequence[Written], call: int
    ) -> tuple[list[tuple[int, int]], list[Statement]]:
        """Pages at the table's end: numbers and ids, and how they are stored."""
        room = table.append(len(pages))
        return room, self.stores(table, [page for _, page in room], pages, call)

    def stores(
        self, table: Table, ids: Sequence[int], pages: Sequence[Written], call: int = 0
    ) -> list[Statement]:
        """How a table's new pages are stored under ids that lie side by side."""
        if not ids:
            return []
        statements = [
            rows.page_row(table.owner, page, one, message=table.messages, call=call)
            for page, one in zip(ids, pages, strict=True)
        ]
        self.lags.add(table.owner, len(ids))
        table.messages += pages[-1].message + 1
        table.tokens += sum(one.tokens for one in pages)
        return [*statements, *schema.followed(ids[0], ids[-1])]

    def _moved(self, table: Table, turn: Turn, numbers: Sequence[int]) -> list[Statement]:
        """The moves of a turn, and the marks of what came back."""
        now = time.time()
        moves = rows.left(turn, numbers)
        for number, parts in turn.recalled.items():
            mark = table.mark(number)
            mark.used, mark.uses = now, mark.uses + 1
            moves.append(Moved(number, number, "recalled", "a request", turn.call, parts))
        statements = self._rows(table, moves)
        return [*statements, *(rows.mark_row(table, number) for number in turn.recalled)]

    def _rows(self, table: Table, moves: Sequence[Moved]) -> list[Statement]:
        """Moves as they are written down; the oldest are not kept for ever."""
        written = [rows.move_row(table.pid, move) for move in moves]
        fewer: Statement = (_FEWER_MOVES, (table.pid, table.pid, limits.MOVES))
        return [*written, fewer] if written else []

    async def change(self, table: Table, what: Change) -> None:
        """Make durable what was changed of a table: pins, evictions, mappings."""
        statements = [
            *what.more,
            *(rows.mark_row(table, number) for number in what.marks),
            *self._rows(table, what.moves),
            *self.saved(table, ranges=what.ranges),
        ]
        if what.goes:
            await self.let_go(table.owner, statements, frees=what.frees)
        else:
            await self._commit(table, statements)

    async def let_go(
        self, owner: str, statements: Sequence[Statement], *, frees: bool = False
    ) -> None:
        """Write that pages are going; a few are erased at once, the others soon."""

        def work(transaction: Transaction) -> bool:
            transaction.write(statements)
            return pieces.erase(transaction)[1]

        if await self.store.apply(self.database(owner), work, frees=frees):
            self.left(owner)

    async def _commit(self, table: Table, statements: Sequence[Statement]) -> None:
        await self.store.write(self.database(table.owner), statements)

    # --- sharing and going ------------------------------------------------------------------------
    async def copy(self, parent: Process, children: Sequence[Process]) -> None:
        """Give each child the parent's pages, durable when it returns. None is stored twice."""
        table = await self.opened(parent)
        async with self.tables.structure(parent.owner), self.tables.changing(table, whole=False):
            made: list[Statement] = []
            born: list[Table] = []
            why = f"at the fork from process {parent.pid}"
            for child in children:
                own = table.copy(child.pid, self.new_space(parent.owner))
                born.append(self.tables.add(own))
                made += self.saved(own, ranges=own.ranges)
                made += [rows.mark_row(own, number) for number in own.marks]
                made += self._rows(own, [Moved(0, own.next - 1, "shared", why)] if own.next else [])
            try:
                await self.store.write(self.database(parent.owner), made)
            except SyscallError:
                for own in born:
                    self.tables.remove(own.pid)
                raise

    def committed(self, owner: str, call: int) -> bool:
        """Whether a call's pages are on disk: then it succeeded, whatever the journal says."""
        sql = "SELECT 1 FROM pages WHERE call = ? AND call > 0 LIMIT 1"
        return bool(self.store.read(self.database(owner), sql, (call,)))
