"""Calls and outcomes, written down: what `logs` shows and what recovery reads after a crash.

Events stand in segments, one SQLite file each, oldest deleted when the total passes its limit; the
begins of calls without an end are carried into each new segment first, so the newest segment alone
tells what was in flight. Calls of class C get no event but a counter an hour.

A person's text never stands here: events hold names, numbers and rules.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from . import limits
from .database import Database, Row, Schema, Statement
from .errors import Errno, SyscallError
from .identifiers import TABLE, Identifiers
from .store import Done, Store, waiter
from .values import Event

log = logging.getLogger(__name__)
SCHEMA = Schema(
    "journal",
    (
        """CREATE TABLE events(seq INTEGER PRIMARY KEY, time REAL NOT NULL, kind TEXT NOT NULL,
             pid INTEGER NOT NULL, owner TEXT NOT NULL, call INTEGER NOT NULL,
             syscall TEXT NOT NULL, object TEXT NOT NULL, errno INTEGER NOT NULL,
             note TEXT NOT NULL)""",
        "ALTER TABLE events ADD COLUMN subject TEXT NOT NULL DEFAULT ''",
    ),
)
COUNTERS = Schema(
    "counters",
    (
        """CREATE TABLE counters(hour INTEGER, subject TEXT, syscall TEXT, object TEXT, rule TEXT,
             calls INTEGER NOT NULL, PRIMARY KEY(hour, subject, syscall, object, rule))""",
        TABLE,  # the numbers of calls: it outlives every segment
    ),
)
# Of all segments, and of what has to be on disk before the calls' ends are: a follower gets events
# in their order, and who may run an engine again is known before anybody can ask again.
QUEUE = "journal"
_INSERT = "INSERT OR REPLACE INTO events VALUES(?,?,?,?,?,?,?,?,?,?,?)"
_COUNT = """INSERT INTO counters VALUES(?,?,?,?,?,?) ON CONFLICT
            DO UPDATE SET calls = calls + excluded.calls"""
_SIZE_EVERY = 256  # events between two looks at the segment's size


@dataclass(frozen=True, slots=True)
class Entry:
    """An event before it has a number and a time."""

    kind: str
    pid: int = 0
    owner: str = ""
    call: int = 0
    syscall: str = ""
    object: str = ""
    errno: int = 0
    note: str = ""
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Recorded:
    """Calls of one kind, as they were recorded."""

    subjects: tuple[str, ...]
    syscall: str
    object: str
    errno: int  # of the refused ones
    pid: int  # that they were about; 0: none, or not recorded
    calls: int


class Journal:
    """Appends to the newest segment. `tell` hears each event after it is written."""

    def __init__(
        self,
        store: Store,
        tell: Callable[[Event], None],
        *,
        segment_bytes: int = limits.SEGMENT_BYTES,
        total_bytes: int = limits.JOURNAL_BYTES,
    ) -> None:
        self._store = store
        self._tell = tell
        self._total_bytes = total_bytes
        self._open: dict[int, Event] = {}  # begins without an end, by call
        self._counts: dict[tuple[str, str, str, str], int] = {}
        self._flush: asyncio.TimerHandle | None = None
        self._second, self._turned = 0, 0  # strangers who were turned away in this second
        (store.directory / "journal").mkdir(mode=0o700, exist_ok=True)
        self._segment_bytes = min(segment_bytes, total_bytes // 4)
        numbers = self._numbers() or [1]
        self._number = numbers[-1]
        self._segment = self._database(self._number)
        probe = "SELECT (SELECT sum(calls) FROM counters), (SELECT sum(next) FROM identifiers)"
        self._counters, replaced = store.replaceable("counters.db", COUNTERS, probe)
        newest = [int(seq) for (seq,) in self._newest("SELECT coalesce(max(seq), 0)")]
        self._last = max(newest)
        # What was reserved is not known any more: nobody has given so many numbers.
        last = self._last + limits.CALLS_SKIPPED * replaced
        self._numbering = Identifiers(
            store, self._counters, "calls", block=limits.CALL_BLOCK, last=last
        )
        self._until_look = _SIZE_EVERY

    def _database(self, number: int) -> Database:
        return self._store.open(_name(number), SCHEMA, queue=QUEUE)

    def _numbers(self) -> list[int]:
        files = (self._store.directory / "journal").glob("*.db")
        return sorted(int(file.stem) for file in files if file.stem.isdigit())

    @property
    def cursor(self) -> int:
        """The number of the newest event."""
        return self._last

    @property
    def bytes(self) -> int:
        total = 0
        for file in (self._store.directory / "journal").iterdir():
            with suppress(FileNotFoundError):  # SQLite removes its own meanwhile
                total += file.stat().st_size
        return total

    async def start(self) -> None:
        """Return when events can be appended. ENOSPC or EIO when they cannot be numbered."""
        await self._numbering.ready()

    def unfinished(self) -> list[Event]:
        """At boot: the begins that never got an end."""
        ended = {call for (call,) in self._newest("SELECT call", "WHERE kind = 'end'")}
        for event in map(_event, self._newest("SELECT *", "WHERE kind = 'begin'")):
            if event.seq not in ended:
                self._open[event.seq] = event
        return list(self._open.values())

    def _newest(self, select: str, where: str = "") -> list[Any]:
        """Rows of the last two segments: a crash may have come before the last one's first row."""
        sql = f"{select} FROM events {where}"
        rows = self._store.peek(_name(self._number - 1), sql)
        return rows + self._store.read(self._segment, sql)

    def append(self, entry: Entry, done: Done | None = None) -> int:
        """Number an event and queue it; `done` hears when it is written. Never waits.

        0, and EIO for `done`, when no numbers could be reserved: then it is not written.
        """
        event = self._numbered(entry)
        if event is None:
            if done is not None:
                asyncio.get_running_loop().call_soon(done, _unnumbered())
            return 0
        self._look_at_size()

        def written(error: SyscallError | None) -> None:
            if error is None:
                self._tell(event)
            if done is not None:
                done(error)

        # What has happened may be written from the reserve; what only begins may not.
        reserve = event.kind != "begin"
        self._store.submit(self._segment, [(_INSERT, _row(event))], written, frees=reserve)
        return event.seq

    def _numbered(self, entry: Entry) -> Event | None:
        """The event with its number and the time; None when no number is left."""
        number = self._numbering.next()
        if not number:
            return None
        self._last = number
        event = Event(
            number, time.time(), entry.kind, entry.pid, entry.owner, entry.call,
            entry.syscall, entry.object, entry.errno, entry.note, entry.subject,
        )  # fmt: skip
        if event.kind == "begin":
            self._open[event.seq] = event
        elif event.kind == "end":
            self._open.pop(event.call, None)
        return event

    def _look_at_size(self) -> None:
        self._until_look -= 1
        if self._until_look <= 0:
            self._until_look = _SIZE_EVERY
            if self._segment.bytes >= self._segment_bytes:
                self._try_to_rotate()

    def turned_away(self, owner: str, error: SyscallError, *, greeted: bool = False) -> None:
        """Somebody was hung up on. Strangers get so many lines a second; the rest is counted."""
        second = int(time.monotonic())
        if second != self._second:
            more = self._turned - limits.TURNED_AWAY
            self._second, self._turned = second, 0
            if more > 0:
                self.append(Entry("refused", object="/kernel", note=f"{more} more strangers"))
        self._turned += not greeted
        if greeted or self._turned <= limits.TURNED_AWAY:
            self.append(Entry(
                "refused", owner=owner, syscall="" if greeted else "hello", object="/kernel",
                errno=error.errno, note=error.message[: limits.NOTE_CHARS],
            ))  # fmt: skip

    async def written(self, entry: Entry) -> int:
        """Append and wait until kill -9 cannot take the event back."""
        await self.start()
        number, future = self.note(entry)
        await future
        return number

    def note(self, entry: Entry) -> tuple[int, "asyncio.Future[None]"]:
        """Append: the number at once, and a future that ends when the event is written."""
        future, done = waiter()
        # Not everybody waits for it: an error that nobody asks about is no leak.
        future.add_done_callback(lambda f: f.cancelled() or f.exception())
        return self.append(entry, done), future

    async def settle(self) -> None:
        """Wait until everything that was appended or counted can be read."""
        self.flush()
        await self._store.write(self._segment, [], durable=False, frees=True)
        await self._store.write(self._counters, [], durable=False, frees=True)

    def history(self, since: int, most: int, not_before: float = 0.0) -> list[Event]:
        """Up to `most` events after the number `since`, oldest first, none of them older than a
        time (Unix seconds). Blocks: call it in a thread."""
        sql = "SELECT * FROM events WHERE seq > ? AND time >= ? ORDER BY seq LIMIT ?"
        found: dict[int, Event] = {}
        for number in self._numbers():
            rows = self._store.peek(_name(number), sql, (since, not_before, most))
            found |= {event.seq: event for event in map(_event, rows)}
            if len(found) >= most:
                break
        return sorted(found.values(), key=lambda event: event.seq)[:most]

    def event(self, number: int) -> Event | None:
        """One event, if it is still kept. Blocks: call it in a thread."""
        found = self.history(number - 1, 1)
        return found[0] if found and found[0].seq == number else None

    def recorded(self, since: float) -> list[Recorded]:
        """The calls since a time (Unix seconds), the newest RECORDED kinds. Blocks."""
        sql = """SELECT subject, syscall, object, errno, pid, count(*) FROM events
                 WHERE time >= ? AND subject != '' AND kind IN ('begin', 'call', 'refused')
                 GROUP BY subject, syscall, object, errno, pid LIMIT ?"""
        counters = """SELECT subject, syscall, object, 0, 0, sum(calls) FROM counters
                      WHERE hour >= ? GROUP BY subject, syscall, object LIMIT ?"""
        rows = self._store.peek("counters.db", counters, (int(since // 3600), limits.RECORDED))
        for number in reversed(self._numbers()):
            rows += self._store.peek(_name(number), sql, (since, limits.RECORDED))
            if len(rows) >= limits.RECORDED:
                break
        return [_recorded(row) for row in rows[: limits.RECORDED]]

    # --- segments -------------------------------------------------------------------------------
    def _try_to_rotate(self) -> None:
        """A segment that cannot be begun is no reason to lose the event: the old one goes on."""
        try:
            self._rotate()
        except (OSError, SyscallError):
            log.exception("the journal stays in segment %d", self._number)

    def _rotate(self) -> None:
        self._segment = self._database(self._number + 1)
        self._number += 1
        if self._open:
            carried = [(_INSERT, _row(event)) for event in self._open.values()]
            self._store.submit(self._segment, carried, lambda _: None, frees=True)
        # The segment just left may still have writes queued: those before it are at rest.
        older = self._numbers()[:-2]
        for number in older:
            self._store.shut(_name(number))
        while older and self.bytes > self._total_bytes:
            self._store.forget(_name(older.pop(0)))

    # --- counters of class C --------------------------------------------------------------------
    def count(self, subject: str, syscall: str, object_: str, rule: str) -> None:
        """One more call of class C; reaches the disk within COUNTER_S."""
        key = (subject, syscall, object_, rule)
        self._counts[key] = self._counts.get(key, 0) + 1
        if self._flush is None:
            loop = asyncio.get_running_loop()
            self._flush = loop.call_later(limits.COUNTER_S, self.flush)

    def flush(self) -> None:
        """Write the counters now."""
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        hour = int(time.time() // 3600)
        rows: list[Statement] = [
            (_COUNT, (hour, *key, calls)) for key, calls in self._counts.items()
        ]
        self._counts.clear()
        if rows:
            rows.append(("DELETE FROM counters WHERE hour < ?", (hour - limits.COUNTER_HOURS,)))
            self._store.submit(self._counters, rows, lambda _: None)


def _unnumbered() -> SyscallError:
    words = "the journal has no number left for this call: none could be reserved on disk"
    return SyscallError(Errno.EIO, words, "`llmasos daemon logs` tells why; free disk space")


def _name(number: int) -> str:
    return f"journal/{number:08d}.db"


def _recorded(row: Row) -> Recorded:
    subject, syscall, object_, errno, pid, calls = row
    subjects = tuple(str(subject).split())
    return Recorded(
        subjects, str(syscall), str(object_), int(errno or 0), int(pid or 0), int(calls or 0)
    )


def _row(event: Event) -> Sequence[str | int | float]:
    return (
        event.seq, event.time, event.kind, event.pid, event.owner, event.call,
        event.syscall, event.object, event.errno, event.note, event.subject,
    )  # fmt: skip


def _event(row: Row) -> Event:
    return Event(*row)  # type: ignore[arg-type]  # the columns stand in the order of the fields
