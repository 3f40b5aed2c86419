"""Messages between processes: bounded mailboxes, in order, that survive kill -9.

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
from collections import Counter, deque
from dataclasses import dataclass, field, replace

from ..abi import limits
from ..abi.errors import Errno, SyscallError
from ..abi.values import Mail, Recv, Send
from ..storage.database import Database, Schema, damaged
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


class Mailboxes:
    """The mailboxes of the machine."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._boxes: dict[int, Mailbox] = {}
        self._numbers: dict[str, Identifiers] = {}  # by owner
        self._readers: dict[int, set[int]] = {}  # connection -> pids whose messages it was given
        self._done: dict[str, list[int]] = {}  # acknowledged, and still on disk: by owner
        self._flush: asyncio.TimerHandle | None = None
        self._wipes: dict[str, asyncio.TimerHandle] = {}  # of the log, by owner
        self._bytes: Counter[str] = Counter()  # of bodies, by owner
        self._counts: Counter[str] = Counter()  # of messages, by owner
        self.messages = 0  # in all mailboxes
        for path in (store.directory / "owners").glob("*/mail.db"):
            self._load(path.parent.name)

    def _database(self, owner: str) -> Database:
        database = self._store.open(_name(owner), SCHEMA)
        if owner not in self._numbers:
            sql = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence"
            last = int(self._store.read(database, sql)[0][0] or 0)
            self._numbers[owner] = Identifiers(
                self._store, database, "mail", block=limits.MAIL_BLOCK, last=last
            )
        return database

    def _load(self, owner: str) -> None:
        """Load an owner's messages; a database that cannot be read affects this owner only."""
        try:
            waiting = self._waiting(self._database(owner))
        except (SyscallError, ValueError, TypeError) as error:
            name = _name(owner)
            path = self._store.directory / name
            fault = error if isinstance(error, SyscallError) else damaged(path, error)
            self._store.disable(name, owner, fault)
            return
        self._wipe_later(owner, limits.MAIL_WIPE_S)  # the last run may have been killed
        for pid, mail in waiting:
            self._box(pid).waiting.append(mail)
            self._count(pid, owner, len(mail.body.encode()))
            self.messages += 1

    def _waiting(self, database: Database) -> list[tuple[int, Mail]]:
        """The messages on disk, each with the pid of its receiver."""
        found: list[tuple[int, Mail]] = []
        for row in self._store.read(database, "SELECT * FROM mail ORDER BY number"):
            number, pid, sender, author, when, body, labels = row
            mail = Mail(
                int(number or 0), int(sender or 0), str(author), float(when or 0), str(body),
                json.loads(str(labels)), 0,
            )  # fmt: skip
            found.append((int(pid or 0), mail))
        return found

    def _box(self, pid: int) -> Mailbox:
        return self._boxes.setdefault(pid, Mailbox())

    async def send(self, to: Process, request: Send, author: str) -> tuple[int, int]:
        """The number of the message, and how many are waiting now. EAGAIN: the mailbox is full."""
        database = self._database(to.owner)
        await self._numbers[to.owner].ready()
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
        number = self._numbers[to.owner].next()
        mail = Mail(number, request.sender, author, time.time(), request.body, request.labels, 0)
        labels = json.dumps(mail.labels)
        row = (number, to.pid, mail.sender, author, mail.time, mail.body, labels)
        box.writing += 1
        self._count(to.pid, to.owner, size)

        def written(error: SyscallError | None) -> None:
            box.writing -= 1
            if self._boxes.get(to.pid) is not box:
                return  # the process was removed with its mail
            if error is not None:
                self._count(to.pid, to.owner, -size, -1)
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
            (self._bytes[to.owner], limits.OWNER_MAIL_BYTES, f"processes of {to.owner}"),
        ):
            if stored + size > most:
                message = f"messages of {stored} bytes wait for {whose}, {most} are allowed"
                hint = f"`llmasos recv {to.pid}` takes one out"
                raise SyscallError(Errno.EAGAIN, message, hint, pid=to.pid)

    def _check_count(self, to: Process) -> None:
        """EAGAIN: too many messages wait for the owner's processes, of whatever size."""
        count = self._counts[to.owner]
        if count >= limits.OWNER_MAIL:
            message = (
                f"{count} messages wait for processes of {to.owner}, "
                f"{limits.OWNER_MAIL} are allowed"
            )
            hint = f"`llmasos recv {to.pid}` takes one out"
            raise SyscallError(Errno.EAGAIN, message, hint, pid=to.pid)

    def _count(self, pid: int, owner: str, size: int, count: int = 1) -> None:
        """Add messages and their bytes to the counters; negative values subtract."""
        self._box(pid).bytes += size
        self._bytes[owner] += size
        self._counts[owner] += count

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
            await self._store.write(self._database(process.owner), [], durable=False, frees=True)
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
        self._count(process.pid, process.owner, -size, -len(removed))
        box.waiting = deque(mail for mail in box.waiting if mail.number not in done)
        self._done.setdefault(process.owner, []).extend(done)
        if self._flush is None:
            loop = asyncio.get_running_loop()
            self._flush = loop.call_later(limits.MAIL_DONE_S, self.flush)

    def flush(self) -> None:
        """Delete acknowledged messages from disk, many at once, so that no message is delayed."""
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        for owner, numbers in self._done.items():
            rows = [(_DONE, (number,)) for number in numbers]
            self._store.submit(self._database(owner), rows, lambda _: None, frees=True)
            self._wipe_later(owner, limits.MAIL_WIPE_S)
        self._done.clear()

    def _wipe_later(self, owner: str, pause_s: float) -> None:
        if owner not in self._wipes:
            loop = asyncio.get_running_loop()
            self._wipes[owner] = loop.call_later(pause_s, self._wipe, owner, pause_s)

    def _wipe(self, owner: str, pause_s: float) -> None:
        """Empty the log; after a failure, as when another program reads it, retry later."""

        def wiped(error: SyscallError | None) -> None:
            if error is not None:
                log.warning("acknowledged messages of %s stay in its WAL file: %s", owner, error)
                self._wipe_later(owner, min(2 * pause_s, limits.SWEEP_LAST_S))

        self._wipes.pop(owner).cancel()
        try:
            self._store.submit_truncate_log(self._database(owner), wiped)
        except SyscallError as error:  # damaged, and not used in this run
            wiped(error)

    def close(self) -> None:
        """The machine shuts down: delete acknowledged messages from disk now."""
        self.flush()
        for owner in list(self._wipes):
            self._wipe(owner, limits.MAIL_WIPE_S)

    async def drop(self, process: Process) -> None:
        """The process is removed: delete its messages."""
        box = self._boxes.pop(process.pid, None)
        if box is None:
            return
        self.messages -= len(box.waiting) + len(box.delivered)
        self._bytes[process.owner] -= box.bytes
        self._counts[process.owner] -= len(box.waiting) + len(box.delivered) + box.writing
        while box.readers:
            self._wake(box)
        statement = ("DELETE FROM mail WHERE pid = ?", (process.pid,))
        await self._store.write(self._database(process.owner), [statement], frees=True)
        self._wipe_later(process.owner, limits.MAIL_WIPE_S)

    def interrupt(self, process: Process) -> None:
        """The process has ended: wake all its readers, which then raise ESRCH."""
        box = self._boxes.get(process.pid)
        while box is not None and box.readers:
            self._wake(box)


def _name(owner: str) -> str:
    return f"owners/{owner}/mail.db"
