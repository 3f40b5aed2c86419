"""The context window as memory: pages of an owner's processes, and what a call sees of them.

An owner's data is one directory; a person's text stands in its database and nowhere else. A turn is
one transaction: the request's pages and the answer's are committed together with the call's number,
or neither is. While there is no paging, a conversation that does not fit the window is E2BIG.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import anyio.to_thread

from . import limits
from .driver import Cut, Engine, Prompt
from .errors import TooBig
from .process import Process
from .store import Database, Row, Schema, Statement, Store, Value
from .values import Generate, Message, Page, Pages, ReadMem, Role

SCHEMA = Schema(
    "pages",
    (
        """CREATE TABLE owner(key_id TEXT); INSERT INTO owner VALUES(NULL);
           CREATE TABLE pages(pid INTEGER, number INTEGER, message INTEGER NOT NULL,
             owner TEXT NOT NULL, kind TEXT NOT NULL, author TEXT NOT NULL, time REAL NOT NULL,
             tokens INTEGER NOT NULL, text TEXT NOT NULL, labels TEXT NOT NULL,
             pinned INTEGER NOT NULL, used REAL NOT NULL, hash BLOB NOT NULL,
             call INTEGER NOT NULL,
             PRIMARY KEY(pid, number)) WITHOUT ROWID;
           CREATE INDEX pages_by_call ON pages(call)""",
    ),
)
_INSERT = f"INSERT INTO pages VALUES({','.join('?' * 14)})"
# Of no call: recovery must not take a child's page for the outcome of its parent's call.
_COPY = """INSERT INTO pages SELECT ?, number, message, owner, kind, author, time, tokens, text,
           labels, pinned, used, hash, 0 FROM pages WHERE pid = ?"""
_SPACE = "coalesce(max(number) + 1, 0), coalesce(max(message) + 1, 0), coalesce(sum(tokens), 0)"


@dataclass(slots=True)
class Space:
    """An address space, in numbers."""

    pages: int = 0  # number of the next page
    messages: int = 0  # number of the next message
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a call will see, and what it will write. Nothing has moved yet."""

    prompt: Prompt
    fresh: Sequence[Message]
    max_tokens: int


class Memory:
    """Every process's pages."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._spaces: dict[int, Space] = {}
        self._owners: dict[str, Database] = {}
        owners = store.directory / "owners"
        owners.mkdir(mode=0o700, exist_ok=True)
        for directory in owners.iterdir():
            if directory.is_dir():
                self._load(directory.name)

    def _load(self, owner: str) -> None:
        sql = f"SELECT pid, {_SPACE} FROM pages GROUP BY pid"
        for pid, *numbers in self._store.read(self._database(owner), sql):
            self._spaces[int(pid or 0)] = _space(numbers)

    def _database(self, owner: str) -> Database:
        if owner not in self._owners:
            self._owners[owner] = self._store.open(f"owners/{owner}/pages.db", SCHEMA)
        return self._owners[owner]

    def space(self, pid: int) -> Space:
        return self._spaces.get(pid) or self._spaces.setdefault(pid, Space())

    async def prepare(
        self, process: Process, request: Generate, engine: Engine, window: int
    ) -> Plan:
        """Lay out a call; changes nothing. E2BIG with the numbers when it does not fit."""
        history = await self._messages(process)
        fresh = request.messages
        prompt = await engine.compose([*history, *fresh], raw=request.raw, fresh=len(fresh))
        wanted = request.sampling.max_tokens
        room = window - prompt.size
        if room < (wanted or 1):
            raise self._too_big(process, prompt.size, wanted, window)
        return Plan(prompt, fresh, wanted or min(limits.MAX_TOKENS, room))

    def _too_big(self, process: Process, prompt: int, wanted: int | None, window: int) -> TooBig:
        before = self.space(process.pid).tokens
        needs = prompt + (wanted or limits.MAX_TOKENS)
        larger = -(-needs // limits.PAGE_TOKENS) * limits.PAGE_TOKENS
        asked = f" and {wanted} are asked for" if wanted else ""
        return TooBig(
            f"the prompt has {prompt} tokens ({before} of them earlier pages of process "
            f"{process.pid}){asked}; the window has {window}",
            f"say less, begin a new process, or give the model a larger window: "
            f"`llmasos unmount {process.model}`, "
            f"`llmasos mount {process.model} --set window={larger}`",
        )

    async def commit(
        self, process: Process, call: int, plan: Plan, answer: Sequence[Cut]
    ) -> list[int]:
        """Write a turn, durable when it returns. The numbers of its pages."""
        turn = [(m.role, cuts) for m, cuts in zip(plan.fresh, plan.prompt.cuts, strict=True)]
        turn.append((Role.ASSISTANT, answer))
        return await self._write(process, call, turn)

    async def write(self, process: Process, message: Message, cuts: Sequence[Cut]) -> None:
        """Append one message outside any turn: a system prompt at spawn."""
        await self._write(process, 0, [(message.role, cuts)])

    async def _write(
        self, process: Process, call: int, messages: Sequence[tuple[Role, Sequence[Cut]]]
    ) -> list[int]:
        space = self.space(process.pid)
        now = time.time()
        rows: list[Statement] = []
        number, tokens = space.pages, 0
        for offset, (role, cuts) in enumerate(messages):
            author = process.app if role is Role.ASSISTANT else process.owner
            for cut in cuts:
                digest = blake2b(cut.text.encode(), digest_size=16).digest()
                rows.append((_INSERT, (
                    process.pid, number, space.messages + offset, process.owner, role, author,
                    now, cut.tokens, cut.text, "[]", 0, now, digest, call,
                )))  # fmt: skip
                number += 1
                tokens += cut.tokens
        await self._store.write(self._database(process.owner), rows)
        written = list(range(space.pages, number))
        space.pages = number
        space.messages += len(messages)
        space.tokens += tokens
        return written

    async def copy(self, parent: Process, children: Sequence[Process]) -> None:
        """Give each child the parent's committed pages, durable when it returns."""
        copies = [(_COPY, (child.pid, parent.pid)) for child in children]
        await self._store.write(self._database(parent.owner), copies)
        # What was copied is what is there: a turn of the parent may have been written before it.
        sql = f"SELECT {_SPACE} FROM pages WHERE pid = ?"
        (numbers,) = await self._read(parent.owner, sql, children[0].pid)
        for child in children:
            self._spaces[child.pid] = _space(numbers)

    async def _messages(self, process: Process) -> list[Message]:
        """The conversation so far, pages joined to messages."""
        if not self.space(process.pid).pages:
            return []
        sql = "SELECT message, kind, text FROM pages WHERE pid = ? ORDER BY number"
        rows = await self._read(process.owner, sql, process.pid)
        texts: dict[int, list[str]] = {}
        roles: dict[int, Role] = {}
        for message, kind, text in rows:
            number = int(message or 0)
            texts.setdefault(number, []).append(str(text))
            roles[number] = Role(str(kind))
        return [Message(roles[number], "".join(parts)) for number, parts in texts.items()]

    async def pages(self, process: Process, request: ReadMem) -> Pages:
        """Pages from `first`, as many as a reply holds."""
        sql = """SELECT number, message, owner, kind, author, time, tokens, text, labels, pinned
                 FROM pages WHERE pid = ? AND number >= ? ORDER BY number LIMIT ?"""
        rows = await self._read(process.owner, sql, process.pid, request.first, request.count)
        pages: list[Page] = []
        room = limits.READ_MEM_BYTES
        for page in map(_page, rows):
            room -= len(page.text.encode())
            if room < 0 and pages:
                return Pages(pages, page.number)
            pages.append(page)
        last = pages[-1].number + 1 if pages else 0
        return Pages(pages, last if last and last < self.space(process.pid).pages else None)

    async def _read(self, owner: str, sql: str, *values: int) -> list[Row]:
        return await anyio.to_thread.run_sync(self._store.read, self._database(owner), sql, values)

    async def drop(self, process: Process) -> None:
        """Free a reaped process's pages."""
        if self.space(process.pid).pages:
            await self.erase(process.owner, process.pid)
        self._spaces.pop(process.pid, None)

    async def erase(self, owner: str, pid: int) -> None:
        statement = ("DELETE FROM pages WHERE pid = ?", (pid,))
        await self._store.write(self._database(owner), [statement], frees=True)

    def committed(self, owner: str, call: int) -> bool:
        """Whether a call's pages are on disk: then it succeeded, whatever the journal says."""
        sql = "SELECT 1 FROM pages WHERE call = ? LIMIT 1"
        return bool(self._store.read(self._database(owner), sql, (call,)))

    def orphans(self, alive: set[int]) -> list[tuple[str, int]]:
        """(owner, pid) of pages whose process is gone: a crash came between the two."""
        sql = "SELECT DISTINCT pid FROM pages"
        return [
            (owner, int(pid or 0))
            for owner, database in self._owners.items()
            for (pid,) in self._store.read(database, sql)
            if pid not in alive
        ]


def _space(numbers: Sequence[Value]) -> Space:
    return Space(*(int(number or 0) for number in numbers))


def _page(row: Row) -> Page:
    number, message, owner, kind, author, when, tokens, text, labels, pinned = row
    return Page(
        number=int(number or 0), message=int(message or 0), owner=str(owner),
        kind=Role(str(kind)), author=str(author), time=float(when or 0),
        tokens=int(tokens or 0), text=str(text),
        labels=json.loads(str(labels)), pinned=bool(pinned),
    )  # fmt: skip
