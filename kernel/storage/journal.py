"""The journal of calls and their outcomes: `logs` shows it, recovery reads it after a crash.

Each user has a stream of segments (segments.py) and a share of the space, so the events of one user
never evict those of another. Unauthenticated connections share one stream, devices another; other
kernel events are in the owner's stream. Each new segment starts with the begin events of the calls
in flight, so recovery reads only the newest segments. Event numbers are unique across all streams.
A call of class C has no event, only an hourly counter (tallies.py).

Events hold names, numbers and rules, never a person's text.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import anyio

from ..abi import limits
from ..abi.errors import Damaged, Errno, SyscallError
from ..abi.values import Event
from .database import Database, Row
from .identifiers import Identifiers
from .refusals import Refusals
from .segments import Segments, share
from .store import Done, Store, waiter
from .tallies import Tallies

log = logging.getLogger(__name__)
# Folders of the streams: of the owner and the kernel, and one below _USERS for each other user.
_MACHINE, _USERS = "journal", "journal/users"
_UNAUTHENTICATED, _DEVICES = "journal/strangers", "journal/devices"
_INSERT = "INSERT OR REPLACE INTO events VALUES(?,?,?,?,?,?,?,?,?,?,?)"


class Entry(NamedTuple):
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
    """How many calls of one kind were recorded."""

    subjects: tuple[str, ...]
    syscall: str
    object: str
    errno: int  # of refused calls
    calls: int


class Journal:
    """Appends events to the newest segment of a stream, and passes each to `notify` once written.

    `owner`: the owner of the machine, whose stream also has the kernel's events.
    """

    def __init__(
        self,
        store: Store,
        notify: Callable[[Event], None],
        *,
        owner: str = "",
        segment_bytes: int = limits.SEGMENT_BYTES,
        total_bytes: int = limits.JOURNAL_BYTES,
    ) -> None:
        self._store, self._notify, self._machine_owner = store, notify, owner
        self._segment_bytes, self._total_bytes = segment_bytes, total_bytes
        self._in_flight: dict[int, Event] = {}  # begin events without an end, by call
        self._unreported: deque[int] = deque()  # events not yet passed to `notify`, in order
        self._outcomes: dict[int, Event | None] = {}  # of those; None: the write failed
        self._tallies = Tallies(store)
        self._refusals = Refusals()
        self._count_timer: asyncio.TimerHandle | None = None
        self._streams: dict[str, Segments] = {}
        for folder in (_MACHINE, _UNAUTHENTICATED, _DEVICES):
            self._stream(folder)
        users = store.directory / _USERS
        users.mkdir(mode=0o700, exist_ok=True)
        for path in users.iterdir():
            self._stream(f"{_USERS}/{path.name}")
        self._last = max(int(row[0] or 0) for row in self._newest("SELECT max(seq)", ((0,),)))
        # When the reservation is lost, skip more numbers than can have been issued.
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
        """The folder of the stream that an event belongs to."""
        if owner and owner != self._machine_owner:
            return f"{_USERS}/{owner}"
        if owner:
            return _MACHINE
        # Every user who may connect or mount a model causes such events: they need own streams.
        return {"refused": _UNAUTHENTICATED, "device": _DEVICES}.get(kind, _MACHINE)

    def _visible_to(self, owner: str | None) -> Iterable[Segments]:
        """The streams with events that a user may see; None: all streams."""
        if owner is None:
            return list(self._streams.values())
        shared = (_MACHINE, _UNAUTHENTICATED, _DEVICES)
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
        """Wait until events can be appended. ENOSPC or EIO when no numbers can be reserved."""
        await self._numbering.ready()

    def unfinished(self) -> list[Event]:
        """At boot: the begin events without an end."""
        ended = {row[0] for row in self._newest("SELECT call", where="WHERE kind = 'end'")}
        for event in map(_event, self._newest("SELECT *", where="WHERE kind = 'begin'")):
            if event.seq not in ended:
                self._in_flight[event.seq] = event
        return list(self._in_flight.values())

    def _newest(self, select: str, extra: Sequence[Row] = (), *, where: str = "") -> list[Any]:
        """Rows of the last two segments of each stream: after a crash the last may be empty."""
        sql, rows = f"{select} FROM events {where}", list(extra)
        for stream in self._streams.values():
            for number in stream.numbers()[-2:]:
                rows += stream.rows(number, sql)
        return rows

    # --- events -----------------------------------------------------------------------------------
    def append(self, entry: Entry, done: Done | None = None) -> int:
        """Number an event and queue it; `done` is called when it is written. Never waits.

        When no number is available it is not written: returns 0, and `done` gets EIO.
        """
        event = self._numbered(entry)
        if event is None:
            if done is not None:
                asyncio.get_running_loop().call_soon(done, _no_number())
            return 0
        folder = self._folder(event.owner, event.kind)
        stream = self._stream(folder)
        if stream.is_full(self._segment_limit(folder)):
            self._try_to_rotate(folder)
        self._enqueue(folder, event, done, retry=True)
        return event.seq

    def _numbered(self, entry: Entry) -> Event | None:
        """The event with its number and the time; None when no number is available."""
        number = self._numbering.next()
        if not number:
            return None
        self._last = number
        event = Event(
            number, time.time(), entry.kind, entry.pid, entry.owner, entry.call,
            entry.syscall, entry.object, entry.errno, entry.note, entry.subject,
        )  # fmt: skip
        if event.kind == "begin":
            self._in_flight[event.seq] = event
        elif event.kind == "end":
            self._in_flight.pop(event.call, None)
        self._unreported.append(number)
        return event

    def _enqueue(self, folder: str, event: Event, done: Done | None, *, retry: bool) -> None:
        """Queue a write; with `retry`, once more in another segment when this one is damaged."""

        def written(error: SyscallError | None) -> None:
            if retry and isinstance(error, Damaged) and self._leave_segment(folder, database):
                self._enqueue(folder, event, done, retry=False)
                return
            self._report(event, error)
            if done is not None:
                done(error)

        try:
            database = self._streams[folder].database
        except SyscallError as error:
            retry = False
            asyncio.get_running_loop().call_soon(written, error)
            return
        # Outcomes may use the disk reserve, new calls may not.
        reserve = event.kind != "begin"
        self._store.submit(database, [(_INSERT, _row(event))], written, frees=reserve)

    def _leave_segment(self, folder: str, damaged: Database) -> bool:
        """Rotate away from a damaged segment. False: the stream still writes to it."""
        return self._streams[folder].database is not damaged or self._try_to_rotate(folder)

    def _report(self, event: Event, error: SyscallError | None) -> None:
        """Notify followers in the order of the numbers: streams are written concurrently."""
        self._outcomes[event.seq] = event if error is None else None
        while self._unreported and self._unreported[0] in self._outcomes:
            reported = self._outcomes.pop(self._unreported.popleft())
            if reported is not None:
                self._notify(reported)

    async def append_and_wait(self, entry: Entry) -> int:
        """Append and wait until the event survives kill -9."""
        await self.start()
        number, future = self.append_future(entry)
        await future
        return number

    def append_future(self, entry: Entry) -> tuple[int, "asyncio.Future[None]"]:
        """Append: the number at once, and a future that completes when the event is written."""
        future, done = waiter()
        # Not every caller awaits it: retrieve the exception, or asyncio logs it.
        future.add_done_callback(lambda f: f.cancelled() or f.exception())
        return self.append(entry, done), future

    async def drain(self) -> None:
        """Wait until everything appended or counted so far can be read."""
        self._write_counted()
        await self._tallies.drain()
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

        Returns the number of the event that lists it; 0 when it is only counted.
        """
        now = time.monotonic()
        key = entry.subject, entry.syscall, entry.object, f"{entry.errno} {entry.note}"
        number = self._refusals.repeated(entry.owner, key, now)
        if not number and self._refusals.admits(entry.owner, entry.subject, now):
            number = self.append(entry)
            self._refusals.wrote(entry.owner, key, number, now)
            return number
        if self._count_timer is None:
            loop = asyncio.get_running_loop()
            self._count_timer = loop.call_later(limits.REFUSAL_COUNT_S, self._write_counted)
        return number

    def must_pause(self, owner: str) -> bool:
        """Take one refusal from the user's pace. True: the connection must pause."""
        return self._refusals.must_pause(owner, time.monotonic())

    def _write_counted(self) -> None:
        """Append how many refusals were only counted."""
        if self._count_timer is not None:
            self._count_timer.cancel()
            self._count_timer = None
        for owner, subject, count in self._refusals.take_counts():
            whose = f" of {subject}" if subject else ""
            self.append(Entry("refused", owner=owner, object="/kernel",
                              note=f"and {count} more{whose}"[: limits.NOTE_CHARS]))  # fmt: skip

    def rejected(self, owner: str, error: SyscallError, *, greeted: bool = False) -> None:
        """Record that a connection was refused, or closed with an error."""
        self.refuse(Entry(
            "refused", owner=owner, syscall="" if greeted else "hello", object="/kernel",
            errno=error.errno, note=error.message[: limits.NOTE_CHARS],
        ))  # fmt: skip

    # --- reading ----------------------------------------------------------------------------------
    def history(
        self, since: int, most: int, not_before: float = 0.0, owner: str | None = None
    ) -> list[Event]:
        """Up to `most` events after the number `since`, oldest first, from streams that a user may
        see. `not_before`: Unix seconds. Blocks: call it in a thread.
        """
        sql = "SELECT * FROM events WHERE seq > ? AND time >= ? ORDER BY seq LIMIT ?"
        found: dict[int, Event] = {}
        for stream in self._visible_to(owner):
            of_stream: dict[int, Event] = {}
            for number in stream.numbers():
                rows = stream.rows(number, sql, (since, not_before, most))
                of_stream |= {event.seq: event for event in map(_event, rows)}
                if len(of_stream) >= most:
                    break
            found |= of_stream
        return sorted(found.values(), key=lambda event: event.seq)[:most]

    def event(self, number: int) -> Event | None:
        """One event; None when it is no longer stored. Blocks: call it in a thread."""
        found = self.history(number - 1, 1)
        return found[0] if found and found[0].seq == number else None

    def recorded(self, since: float) -> list[Recorded]:
        """The calls since a time (Unix seconds), the newest first, RECORDED rows at most. Blocks:
        call it in a thread."""
        rows = islice(self._recorded_rows(since), limits.RECORDED)
        return [_recorded(row) for row in rows]

    def _recorded_rows(self, since: float) -> Iterable[Row]:
        sql = """SELECT subject, syscall, object, errno, count(*) FROM events
                 WHERE time >= ? AND subject != '' AND kind IN ('begin', 'call', 'refused')
                 GROUP BY subject, syscall, object, errno LIMIT ?"""
        yield from self._tallies.recorded(since)
        for stream in self._visible_to(None):
            for number in reversed(stream.numbers()):
                yield from stream.rows(number, sql, (since, limits.RECORDED))

    # --- segments ---------------------------------------------------------------------------------
    def _segment_limit(self, folder: str) -> int:
        """Bytes of one segment of a stream, at most."""
        return min(self._segment_bytes, self._share(folder) // 4)

    def _share(self, folder: str) -> int:
        others = len(self._streams) - 1
        return share(self._total_bytes, first=folder == _MACHINE, others=others)

    def _try_to_rotate(self, folder: str) -> bool:
        """Rotate. False: a new segment cannot be created, and the old one stays in use."""
        try:
            self._rotate(folder)
        except (OSError, SyscallError):
            log.exception("cannot create a new segment of %s; the old one stays in use", folder)
            return False
        return True

    def _rotate(self, folder: str) -> None:
        stream = self._streams[folder]
        stream.rotate()
        carried = [
            (_INSERT, _row(event))
            for event in self._in_flight.values()
            if self._folder(event.owner, event.kind) == folder
        ]
        if carried:
            self._store.submit(stream.database, carried, lambda _: None, frees=True)
        while stream.bytes > self._share(folder) and stream.drop():
            pass
        self._trim()

    def _trim(self) -> None:
        """Delete old segments until the total fits, each from the stream most over its share.

        A stream may have grown over its share when there were fewer streams.
        """
        excess = {f: stream.bytes - self._share(f) for f, stream in self._streams.items()}
        while self.bytes > self._total_bytes and excess:
            largest = max(excess, key=lambda folder: excess[folder])
            if self._streams[largest].drop():
                excess[largest] = self._streams[largest].bytes - self._share(largest)
            else:
                del excess[largest]

    # --- counters of class C ----------------------------------------------------------------------
    def count(self, subject: str, syscall: str, object_: str, rule: str) -> None:
        """Count a call of class C. The counter is on disk within COUNTER_S."""
        self._tallies.count(subject, syscall, object_, rule)

    def flush(self) -> None:
        """Write all counters now."""
        self._write_counted()
        self._tallies.flush()


def _no_number() -> SyscallError:
    message = "the journal cannot reserve a number for this call on disk"
    return SyscallError(Errno.EIO, message, "`llmasos daemon logs` has the cause; free disk space")


def _recorded(row: Row) -> Recorded:
    subject, syscall, object_, errno, calls = row
    subjects = tuple(str(subject).split())
    return Recorded(subjects, str(syscall), str(object_), int(errno or 0), int(calls or 0))


def _row(event: Event) -> Sequence[str | int | float]:
    return (
        event.seq, event.time, event.kind, event.pid, event.owner, event.call,
        event.syscall, event.object, event.errno, event.note, event.subject,
    )  # fmt: skip


def _event(row: Row) -> Event:
    return Event(*row)  # type: ignore[arg-type]  # columns are in the order of the fields
