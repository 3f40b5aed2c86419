"""Calls and outcomes, written down: what `logs` shows and what recovery reads after a crash.

Every user has a stream of segments (segments.py) and a share of the space, so that nobody's calls
evict another's; strangers and devices have one, and the kernel's other events stand in the owner's.
The begins of calls without an end are carried into each new segment first, so the newest segments
alone tell what was in flight. Numbers are given once, for all streams together. Calls of class C
get no event but a counter an hour (tallies.py).

A person's text never stands here: events hold names, numbers and rules.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import anyio

from . import limits
from .database import Database, Row
from .errors import Damaged, Errno, SyscallError
from .identifiers import Identifiers
from .refusals import Refusals
from .segments import Segments, share
from .store import Done, Store, waiter
from .tallies import Tallies
from .values import Event

log = logging.getLogger(__name__)
_MACHINE, _USERS = "journal", "journal/users"  # folders: the owner's and the kernel's, the users'
_STRANGERS, _DEVICES = "journal/strangers", "journal/devices"
_INSERT = "INSERT OR REPLACE INTO events VALUES(?,?,?,?,?,?,?,?,?,?,?)"


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
    """Appends to the newest segment of a stream. `tell` gets each event after it is written.

    `owner`: whose machine it is; the stream of the kernel's own events is that user's.
    """

    def __init__(
        self,
        store: Store,
        tell: Callable[[Event], None],
        *,
        owner: str = "",
        segment_bytes: int = limits.SEGMENT_BYTES,
        total_bytes: int = limits.JOURNAL_BYTES,
    ) -> None:
        self._store, self._tell, self._owner = store, tell, owner
        self._segment_bytes, self._total_bytes = segment_bytes, total_bytes
        self._open: dict[int, Event] = {}  # begins without an end, by call
        self._order: deque[int] = deque()  # numbers of events that nobody was told of
        self._settled: dict[int, Event | None] = {}  # of those: written, or not to be
        self._tallies = Tallies(store)
        self._refusals = Refusals()
        self._counted: asyncio.TimerHandle | None = None
        self._streams: dict[str, Segments] = {}
        for folder in (_MACHINE, _STRANGERS, _DEVICES):
            self._stream(folder)
        users = store.directory / _USERS
        users.mkdir(mode=0o700, exist_ok=True)
        for path in users.iterdir():
            self._stream(f"{_USERS}/{path.name}")
        self._last = max(int(row[0] or 0) for row in self._newest("SELECT max(seq)", ((0,),)))
        # Where it is not known any more what was reserved: nobody has given so many numbers.
        last = self._last + limits.CALLS_SKIPPED * self._tallies.replaced
        self._numbering = Identifiers(
            store, self._tallies.database, "calls", block=limits.CALL_BLOCK, last=last
        )

    # --- streams ----------------------------------------------------------------------------------
    def _stream(self, folder: str) -> Segments:
        if folder not in self._streams:
            self._streams[folder] = Segments(self._store, folder)
        return self._streams[folder]

    def _folder(self, owner: str, kind: str) -> str:
        """Where an event belongs."""
        if owner and owner != self._owner:
            return f"{_USERS}/{owner}"
        if owner:
            return _MACHINE
        # Anybody who may mount a model, or connect, makes such events.
        return {"refused": _STRANGERS, "device": _DEVICES}.get(kind, _MACHINE)

    def _seen_by(self, owner: str | None) -> Iterable[Segments]:
        """Streams with events that a user may see; None: all."""
        if owner is None:
            return list(self._streams.values())
        shared = (_MACHINE, _STRANGERS, _DEVICES)
        folders = dict.fromkeys((*shared, self._folder(owner, "call")))
        return [self._streams[folder] for folder in folders if folder in self._streams]

    @property
    def cursor(self) -> int:
        """The number of the newest event."""
        return self._last

    @property
    def bytes(self) -> int:
        return sum(stream.bytes for stream in self._streams.values())

    async def start(self) -> None:
        """Return when events can be appended. ENOSPC or EIO when they cannot be numbered."""
        await self._numbering.ready()

    def unfinished(self) -> list[Event]:
        """At boot: the begins that never got an end."""
        ended = {row[0] for row in self._newest("SELECT call", where="WHERE kind = 'end'")}
        for event in map(_event, self._newest("SELECT *", where="WHERE kind = 'begin'")):
            if event.seq not in ended:
                self._open[event.seq] = event
        return list(self._open.values())

    def _newest(self, select: str, extra: Sequence[Row] = (), *, where: str = "") -> list[Any]:
        """Rows of the last two segments: a crash may have come before the last one's first row."""
        sql, rows = f"{select} FROM events {where}", list(extra)
        for stream in self._streams.values():
            for number in stream.numbers()[-2:]:
                rows += stream.rows(number, sql)
        return rows

    # --- events -----------------------------------------------------------------------------------
    def append(self, entry: Entry, done: Done | None = None) -> int:
        """Number an event and queue it; `done` is called when it is written. Never waits.

        0, and EIO for `done`, when no numbers could be reserved: then it is not written.
        """
        event = self._numbered(entry)
        if event is None:
            if done is not None:
                asyncio.get_running_loop().call_soon(done, _unnumbered())
            return 0
        folder = self._folder(event.owner, event.kind)
        stream = self._stream(folder)
        if stream.is_full(self._most(folder)):
            self._try_to_rotate(folder)
        self._submit(folder, event, done, again=True)
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
        self._order.append(number)
        return event

    def _submit(self, folder: str, event: Event, done: Done | None, *, again: bool) -> None:
        def written(error: SyscallError | None) -> None:
            if again and isinstance(error, Damaged) and self._left(folder, database):
                self._submit(folder, event, done, again=False)
                return
            self._settle(event, error)
            if done is not None:
                done(error)

        try:
            database = self._streams[folder].database
        except SyscallError as error:
            again = False
            asyncio.get_running_loop().call_soon(written, error)
            return
        # What has happened may be written from the reserve; what only begins may not.
        reserve = event.kind != "begin"
        self._store.submit(database, [(_INSERT, _row(event))], written, frees=reserve)

    def _left(self, folder: str, damaged: Database) -> bool:
        """Whether events of a stream go to another segment than this one now."""
        return self._streams[folder].database is not damaged or self._try_to_rotate(folder)

    def _settle(self, event: Event, error: SyscallError | None) -> None:
        """Tell followers, in the order of the numbers: streams are written beside one another."""
        self._settled[event.seq] = event if error is None else None
        while self._order and self._order[0] in self._settled:
            told = self._settled.pop(self._order.popleft())
            if told is not None:
                self._tell(told)

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
        self._write_counted()
        await self._tallies.settle()
        waits: list[asyncio.Future[None]] = []
        for stream in self._streams.values():
            if stream.opened:
                future, done = waiter()
                self._store.submit(stream.database, [], done, frees=True)
                waits.append(future)
        with anyio.CancelScope(shield=True):
            for future in waits:
                await future

    # --- refusals ---------------------------------------------------------------------------------
    def refuse(self, entry: Entry) -> int:
        """Append a refusal, or only count it when there are too many (refusals.py).

        The number of the row that tells of it; 0 when none does.
        """
        now = time.monotonic()
        question = entry.subject, entry.syscall, entry.object, f"{entry.errno} {entry.note}"
        number = self._refusals.repeated(entry.owner, question, now)
        if not number and self._refusals.admits(entry.owner, entry.subject, now):
            number = self.append(entry)
            self._refusals.wrote(entry.owner, question, number, now)
            return number
        if self._counted is None:
            loop = asyncio.get_running_loop()
            self._counted = loop.call_later(limits.REFUSAL_COUNT_S, self._write_counted)
        return number

    def hurries(self, owner: str) -> bool:
        """Whether a user is refused so often that each refusal costs a pause. Counts one."""
        return self._refusals.hurries(owner, time.monotonic())

    def _write_counted(self) -> None:
        """Say how many refusals were only counted."""
        if self._counted is not None:
            self._counted.cancel()
            self._counted = None
        for owner, subject, many in self._refusals.counted():
            who = f" of {subject}" if subject else ""
            self.append(Entry("refused", owner=owner, object="/kernel",
                              note=f"and {many} more{who}"[: limits.NOTE_CHARS]))  # fmt: skip

    def turned_away(self, owner: str, error: SyscallError, *, greeted: bool = False) -> None:
        """A connection was closed with a reason, or refused."""
        self.refuse(Entry(
            "refused", owner=owner, syscall="" if greeted else "hello", object="/kernel",
            errno=error.errno, note=error.message[: limits.NOTE_CHARS],
        ))  # fmt: skip

    # --- reading ----------------------------------------------------------------------------------
    def history(
        self, since: int, most: int, not_before: float = 0.0, owner: str | None = None
    ) -> list[Event]:
        """Up to `most` events after the number `since`, oldest first, none of them older than a
        time (Unix seconds), of streams that a user may see. Blocks: call it in a thread.
        """
        sql = "SELECT * FROM events WHERE seq > ? AND time >= ? ORDER BY seq LIMIT ?"
        found: dict[int, Event] = {}
        for stream in self._seen_by(owner):
            mine: dict[int, Event] = {}
            for number in stream.numbers():
                rows = stream.rows(number, sql, (since, not_before, most))
                mine |= {event.seq: event for event in map(_event, rows)}
                if len(mine) >= most:
                    break
            found |= mine
        return sorted(found.values(), key=lambda event: event.seq)[:most]

    def event(self, number: int) -> Event | None:
        """One event, if it is still kept. Blocks: call it in a thread."""
        found = self.history(number - 1, 1)
        return found[0] if found and found[0].seq == number else None

    def recorded(self, since: float) -> list[Recorded]:
        """The calls since a time (Unix seconds), the newest RECORDED kinds. Blocks."""
        rows = islice(self._recorded_rows(since), limits.RECORDED)
        return [_recorded(row) for row in rows]

    def _recorded_rows(self, since: float) -> Iterable[Row]:
        sql = """SELECT subject, syscall, object, errno, pid, count(*) FROM events
                 WHERE time >= ? AND subject != '' AND kind IN ('begin', 'call', 'refused')
                 GROUP BY subject, syscall, object, errno, pid LIMIT ?"""
        yield from self._tallies.recorded(since)
        for stream in self._seen_by(None):
            for number in reversed(stream.numbers()):
                yield from stream.rows(number, sql, (since, limits.RECORDED))

    # --- segments ---------------------------------------------------------------------------------
    def _most(self, folder: str) -> int:
        """Bytes of one segment of a stream."""
        return min(self._segment_bytes, self._share(folder) // 4)

    def _share(self, folder: str) -> int:
        others = len(self._streams) - 1
        return share(self._total_bytes, first=folder == _MACHINE, others=others)

    def _try_to_rotate(self, folder: str) -> bool:
        """A segment that cannot be begun is no reason to lose the event: the old one goes on."""
        try:
            self._rotate(folder)
        except (OSError, SyscallError):
            log.exception("the stream %s stays in its segment", folder)
            return False
        return True

    def _rotate(self, folder: str) -> None:
        stream = self._streams[folder]
        stream.rotate()
        carried = [
            (_INSERT, _row(event))
            for event in self._open.values()
            if self._folder(event.owner, event.kind) == folder
        ]
        if carried:
            self._store.submit(stream.database, carried, lambda _: None, frees=True)
        while stream.bytes > self._share(folder) and stream.drop():
            pass
        self._trim()

    def _trim(self) -> None:
        """Other streams may have grown while there were fewer: the one that is most over goes."""
        over = {f: one.bytes - self._share(f) for f, one in self._streams.items()}
        while self.bytes > self._total_bytes and over:
            most = max(over, key=lambda folder: over[folder])
            if self._streams[most].drop():
                over[most] = self._streams[most].bytes - self._share(most)
            else:
                del over[most]

    # --- counters of class C ----------------------------------------------------------------------
    def count(self, subject: str, syscall: str, object_: str, rule: str) -> None:
        """One more call of class C; reaches the disk within COUNTER_S."""
        self._tallies.count(subject, syscall, object_, rule)

    def flush(self) -> None:
        """Write what was only counted now."""
        self._write_counted()
        self._tallies.flush()


def _unnumbered() -> SyscallError:
    words = "the journal has no number left for this call: none could be reserved on disk"
    return SyscallError(Errno.EIO, words, "`llmasos daemon logs` tells why; free disk space")


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
