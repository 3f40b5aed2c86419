"""Messages between the processes of an owner: bounded mailboxes, in order, that survive kill -9.

A body is stored only in the directory of the receiver's owner. A message is delivered to its
receiver and acknowledged to its sender when it is written (class B). It stays on disk until the
receiver acknowledges it, or requests the next one on the same connection (which is written a
moment later). If the receiver disconnects or dies before that, the next reader gets the message,
with the same number. The body of an acknowledged message stays in the write-ahead log until the log
is emptied: some seconds later, and after each start.
"""

import asyncio
import json
import logging
import time
from collections import deque
from dataclasses import dataclass, field, replace

from ..abi import limits
from ..abi.errors import Errno, SyscallError
from ..abi.values import Mail, Recv, Send
from ..storage.database import Database, Schema
from ..storage.identifiers import TABLE, Identifiers
from ..storage.store import Store
from .table import Process, check_alive

log = logging.getLogger(__name__)
SCHEMA = Schema(
    "mail",
    (
        """CREATE TABLE mail(number INTEGER PRIMARY KEY AUTOINCREMENT, pid INTEGER NOT NULL,
             sender INTEGER NOT NULL, author TEXT NOT NULL, time REAL NOT NULL, body TEXT NOT NULL,
             labels TEXT NOT NULL);
           CREATE INDEX mail_by_pid ON mail(pid)""",
        TABLE,
    ),
)
_INSERT = "INSERT INTO mail VALUES(?,?,?,?,?,?,?)"
_DONE = "DELETE FROM mail WHERE number = ?"


@dataclass(slots=True)
class Mailbox:
    """The messages and waiting readers of one process."""

    waiting: deque[Mail] = field(default_factory=deque[Mail])
    writing: int = 0  # messages that are being written
    bytes: int = 0  # of all bodies that are waiting, being written or delivered
    readers: deque["asyncio.Future[None]"] = field(
        default_factory=lambda: deque["asyncio.Future[None]"]()
    )
    delivered: dict[int, tuple[int, Mail]] = field(  # not acknowledged: number -> connection, mail
        default_factory=dict[int, tuple[int, Mail]]
    )


@dataclass(frozen=True, slots=True)
class LoadedMail:
    """What is read when an owner's mailboxes are opened."""

    database: Database
    waiting: list[tuple[int, Mail]]  # each with the pid of its receiver
    last: int  # the greatest number of a message that was given


def load(store: Store, owner: str) -> LoadedMail:
    """Open or create the database. Blocks. SyscallError, ValueError or TypeError: unreadable."""
    database = store.open(name(owner), SCHEMA)
    last = int(store.read(database, "SELECT coalesce(max(seq), 0) FROM sqlite_sequence")[0][0] or 0)
    waiting: list[tuple[int, Mail]] = []
    for row in store.read(database, "SELECT * FROM mail ORDER BY number"):
        number, pid, sender, author, when, body, labels = row
        mail = Mail(
            int(number or 0), int(sender or 0), str(author), float(when or 0), str(body),
            json.loads(str(labels)), 0,
        )  # fmt: skip
        waiting.append((int(pid or 0), mail))
    return LoadedMail(database, waiting, last)


def name(owner: str) -> str:
    """The name of the database in the store."""
    return f"owners/{owner}/mail.db"


class Mailboxes:
    """The mailboxes of one owner's processes, while the owner is open."""

    def __init__(self, store: Store, owner: str, loaded: LoadedMail | None) -> None:
        """`loaded` None: there is no database yet; the first message creates it."""
        self._store, self._owner = store, owner
        self._open = self._numbered(loaded) if loaded is not None else None
        self._boxes: dict[int, Mailbox] = {}
        self._readers: dict[int, set[int]] = {}  # connection -> pids whose messages it was given
        self._done: list[int] = []  # acknowledged, and still on disk
        self._flush: asyncio.TimerHandle | None = None
        self._wipe_at: asyncio.TimerHandle | None = None  # when the log is emptied
        self._bytes = 0  # of all bodies
        self._count = 0  # of all messages
        self.messages = 0  # in all mailboxes
        if loaded is not None:
            self._wipe_later(limits.MAIL_WIPE_S)  # the last run may have been killed
            for pid, mail in loaded.waiting:
                self._box(pid).waiting.append(mail)
                self._add(pid, len(mail.body.encode()))
                self.messages += 1

    @property
    def busy(self) -> bool:
        """Whether a message is delivered and not acknowledged, or is not yet off the disk."""
        timers = self._flush is not None or self._wipe_at is not None
        return timers or any(b.delivered or b.writing or b.readers for b in self._boxes.values())

    def _numbered(self, loaded: LoadedMail) -> tuple[Database, Identifiers]:
        database, block = loaded.database, limits.MAIL_BLOCK
        return database, Identifiers(self._store, database, "mail", block=block, last=loaded.last)

    def _storage(self) -> tuple[Database, Identifiers]:
        """The database and the numbers of its messages. Blocks to create it. EIO."""
        if self._open is None:
            self._open = self._numbered(load(self._store, self._owner))
        return self._open

    def _box(self, pid: int) -> Mailbox:
        return self._boxes.setdefault(pid, Mailbox())

    async def send(self, to: Process, request: Send, author: str) -> tuple[int, int]:
        """The number of the message, and how many are waiting now. EAGAIN: the mailbox is full."""
        database, numbers = self._storage()
        await numbers.ready()
        check_alive(to)
        box = self._box(to.pid)
        count = len(box.waiting) + len(box.delivered) + box.writing
        if count >= limits.MAIL:
            raise SyscallError(
                Errno.EAGAIN,
                f"{count} messages wait for process {to.pid}, {limits.MAIL} are allowed",
                "retry after it has received some", pid=to.pid,
            )  # fmt: skip
        size = len(request.body.encode())
        self._check_bytes(to, box, size)
        self._check_count(to)
        number = numbers.next()
        mail = Mail(number, request.sender, author, time.time(), request.body, request.labels, 0)
        labels = json.dumps(mail.labels)
        row = (number, to.pid, mail.sender, author, mail.time, mail.body, labels)
        box.writing += 1
        self._add(to.pid, size)

        def written(error: SyscallError | None) -> None:
            box.writing -= 1
            if self._boxes.get(to.pid) is not box:
                return  # the process was removed with its mail
            if error is not None:
                self._add(to.pid, -size, -1)
                return
            box.waiting.append(mail)
            self.messages += 1
            self._wake(box)

        # The receiver is woken before the sender continues to the journal.
        await self._store.write(database, [(_INSERT, row)], durable=False, on_done=written)
        return number, len(box.waiting)

    def _check_bytes(self, to: Process, box: Mailbox, size: int) -> None:
        """EAGAIN: the waiting messages of the process or of its owner have too many bytes."""
        for stored, most, whose in (
            (box.bytes, limits.MAILBOX_BYTES, f"process {to.pid}"),
            (self._bytes, limits.OWNER_MAIL_BYTES, f"processes of {to.owner}"),
        ):
            if stored + size > most:
                message = f"messages of {stored} bytes wait for {whose}, {most} are allowed"
                hint = f"`llmasos recv {to.pid}` takes one out"
                raise SyscallError(Errno.EAGAIN, message, hint, pid=to.pid)

    def _check_count(self, to: Process) -> None:
        """EAGAIN: too many messages wait for the owner's processes, of whatever size."""
        count = self._count
        if count >= limits.OWNER_MAIL:
            message = (
                f"{count} messages wait for processes of {to.owner}, "
                f"{limits.OWNER_MAIL} are allowed"
            )
            hint = f"`llmasos recv {to.pid}` takes one out"
            raise SyscallError(Errno.EAGAIN, message, hint, pid=to.pid)

    def _add(self, pid: int, size: int, count: int = 1) -> None:
        """Add messages and their bytes to the counters; negative values subtract."""
        self._box(pid).bytes += size
        self._bytes += size
        self._count += count

    async def receive(self, process: Process, request: Recv, connection: int) -> Mail:
        """The oldest message; waits for one. ETIMEDOUT. Uses no slot while it waits."""
        box = self._box(process.pid)
        mine = [n for n, (to, _) in box.delivered.items() if to == connection]
        # Messages delivered to another connection are not acknowledged here.
        early = [mail.number for mail in box.waiting if mail.number <= request.done]
        done = {*early, *(n for n in mine if n <= request.done)}
        self._acknowledge(process, box, {*mine, *done} if request.take else done)
        if request.done:  # an explicit acknowledgement returns when it is written
            self.flush()
            await self._store.write(self._storage()[0], [], durable=False, frees=True)
        if not request.take:
            return Mail(0, 0, "", 0.0, "", [], len(box.waiting))
        try:
            async with asyncio.timeout(request.timeout_s):
                await self._wait(process, box)
        except TimeoutError:
            message, hint = f"no message waits for process {process.pid}", ""
            if request.timeout_s:
                message = f"no message for process {process.pid} within {request.timeout_s:g} s"
                hint = f"`llmasos recv {process.pid}` waits without a timeout"
            raise SyscallError(Errno.ETIMEDOUT, message, hint, pid=process.pid) from None
        mail = box.waiting.popleft()
        box.delivered[mail.number] = connection, mail
        self._readers.setdefault(connection, set()).add(process.pid)
        if box.waiting:
            self._wake(box)
        return replace(mail, waiting=len(box.waiting))

    def requeue(self, connection: int) -> None:
        """A connection closed: queue again what it was given and did not acknowledge."""
        for pid in self._readers.pop(connection, ()):
            box = self._boxes.get(pid)
            if box is None:
                continue
            back = sorted(n for n, (to, _) in box.delivered.items() if to == connection)
            box.waiting.extendleft(box.delivered.pop(number)[1] for number in reversed(back))
            if box.waiting:
                self._wake(box)

    async def _wait(self, process: Process, box: Mailbox) -> None:
        """Wait until there is a message for this reader; readers are served first come first."""
        while not box.waiting or box.readers:
            if process.ending is not None:
                raise SyscallError(Errno.ESRCH, f"process {process.pid} has ended", pid=process.pid)
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            box.readers.append(turn)
            try:
                await turn
            except BaseException:
                if turn in box.readers:
                    box.readers.remove(turn)
                elif box.waiting:  # woken and then cancelled: wake the next reader instead
                    self._wake(box)
                raise
            if box.waiting:
                return

    @staticmethod
    def _wake(box: Mailbox) -> None:
        while box.readers:
            turn = box.readers.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def _acknowledge(self, process: Process, box: Mailbox, done: set[int]) -> None:
        """Remove acknowledged messages from the mailbox now, and from the disk a moment later."""
        if not done:
            return
        self.messages -= len(done)
        removed = [mail for mail in box.waiting if mail.number in done]
        removed += [box.delivered.pop(number)[1] for number in done if number in box.delivered]
        size = sum(len(mail.body.encode()) for mail in removed)
        self._add(process.pid, -size, -len(removed))
        box.waiting = deque(mail for mail in box.waiting if mail.number not in done)
        self._done += done
        if self._flush is None:
            loop = asyncio.get_running_loop()
            self._flush = loop.call_later(limits.MAIL_DONE_S, self.flush)

    def flush(self) -> None:
        """Delete acknowledged messages from disk, many at once, so that no message is delayed."""
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        if self._done:
            rows = [(_DONE, (number,)) for number in self._done]
            self._store.submit(self._storage()[0], rows, lambda _: None, frees=True)
            self._wipe_later(limits.MAIL_WIPE_S)
        self._done.clear()

    def _wipe_later(self, pause_s: float) -> None:
        if self._wipe_at is None:
            loop = asyncio.get_running_loop()
            self._wipe_at = loop.call_later(pause_s, self._wipe, pause_s)

    def _wipe(self, pause_s: float) -> None:
        """Empty the log; after a failure, as when another program reads it, retry later."""

        def wiped(error: SyscallError | None) -> None:
            if error is not None:
                owner = self._owner
                log.warning("acknowledged messages of %s stay in its WAL file: %s", owner, error)
                self._wipe_later(min(2 * pause_s, limits.SWEEP_LAST_S))

        if self._wipe_at is not None:
            self._wipe_at.cancel()
            self._wipe_at = None
        self._store.submit_truncate_log(self._storage()[0], wiped)

    def erase_acknowledged(self) -> None:
        """Delete acknowledged messages from disk now."""
        self.flush()
        if self._wipe_at is not None:
            self._wipe(limits.MAIL_WIPE_S)

    def close(self) -> None:
        """Delete acknowledged messages from disk, and return the unused numbers."""
        self.erase_acknowledged()
        if self._open is not None:
            self._open[1].close()

    async def drop(self, process: Process) -> None:
        """The process is removed: delete its messages."""
        box = self._boxes.pop(process.pid, None)
        if box is None:
            return
        self.messages -= len(box.waiting) + len(box.delivered)
        self._bytes -= box.bytes
        self._count -= len(box.waiting) + len(box.delivered) + box.writing
        while box.readers:
            self._wake(box)
        statement = ("DELETE FROM mail WHERE pid = ?", (process.pid,))
        if self._open is not None:
            await self._store.write(self._open[0], [statement], frees=True)
            self._wipe_later(limits.MAIL_WIPE_S)

    def interrupt(self, process: Process) -> None:
        """The process has ended: wake all its readers, which then raise ESRCH."""
        box = self._boxes.get(process.pid)
        while box is not None and box.readers:
            self._wake(box)
