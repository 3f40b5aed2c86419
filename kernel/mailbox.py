"""Messages between processes: bounded mailboxes, in order, that survive kill -9.

A body stands in its receiver's owner's directory and nowhere else. A message is seen by its
receiver and acknowledged to its sender when it is written (class B). It stays on disk until the
receiver says that it is done, or asks for the next one on the same connection (which is written a
moment later). Whoever hangs up or dies before that leaves it to the next who asks, with the same
number. The body of a message that was dealt with stays in the write-ahead log until that is
emptied, which happens some seconds later, and after each start.
"""

import asyncio
import json
import logging
import time
from collections import Counter, deque
from dataclasses import dataclass, field, replace

from . import limits
from .database import Database, Schema, damaged
from .errors import Errno, SyscallError
from .identifiers import TABLE, Identifiers
from .process import Process, check_alive
from .store import Store
from .values import Mail, Recv, Send

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
    """Of one process."""

    waiting: deque[Mail] = field(default_factory=deque[Mail])
    coming: int = 0  # messages that are being written
    bytes: int = 0  # of all bodies that wait, are being written or were handed out
    readers: deque["asyncio.Future[None]"] = field(
        default_factory=lambda: deque["asyncio.Future[None]"]()
    )
    taken: dict[int, tuple[int, Mail]] = field(  # handed out: by number, to which connection
        default_factory=dict[int, tuple[int, Mail]]
    )


class Mailboxes:
    """Of the machine."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._boxes: dict[int, Mailbox] = {}
        self._numbers: dict[str, Identifiers] = {}  # by owner
        self._readers: dict[int, set[int]] = {}  # pids of whose messages a connection has some
        self._done: dict[str, list[int]] = {}  # dealt with, and still on disk: by owner
        self._flush: asyncio.TimerHandle | None = None
        self._wipes: dict[str, asyncio.TimerHandle] = {}  # of the log, by owner
        self._bytes: Counter[str] = Counter()  # of bodies, by owner
        self._counts: Counter[str] = Counter()  # of messages, the same
        self.held = 0  # messages in all mailboxes
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
        """A database that cannot be read is its owner's misfortune, and nobody else's."""
        try:
            waiting = self._waiting(self._database(owner))
        except (SyscallError, ValueError, TypeError) as error:
            name = _name(owner)
            path = self._store.directory / name
            fault = error if isinstance(error, SyscallError) else damaged(path, error)
            self._store.withhold(name, owner, fault)
            return
        self._wipe_later(owner, limits.MAIL_WIPE_S)  # the last run may have been killed
        for pid, mail in waiting:
            self._box(pid).waiting.append(mail)
            self._grown(pid, owner, len(mail.body.encode()))
            self.held += 1

    def _waiting(self, database: Database) -> list[tuple[int, Mail]]:
        """Messages on disk, and for whom."""
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
        """The message's number, and how many wait now. EAGAIN when the mailbox is full."""
        database = self._database(to.owner)
        await self._numbers[to.owner].ready()
        check_alive(to)
        box = self._box(to.pid)
        held = len(box.waiting) + len(box.taken) + box.coming
        if held >= limits.MAIL:
            raise SyscallError(
                Errno.EAGAIN,
                f"{held} messages wait for process {to.pid}, {limits.MAIL} are allowed",
                "try again when it has received some", pid=to.pid,
            )  # fmt: skip
        size = len(request.body.encode())
        self._check_room(to, box, size)
        self._check_count(to)
        number = self._numbers[to.owner].next()
        mail = Mail(number, request.sender, author, time.time(), request.body, request.labels, 0)
        labels = json.dumps(mail.labels)
        row = (number, to.pid, mail.sender, author, mail.time, mail.body, labels)
        box.coming += 1
        self._grown(to.pid, to.owner, size)

        def written(error: SyscallError | None) -> None:
            box.coming -= 1
            if self._boxes.get(to.pid) is not box:
                return  # the process is gone, and its mail with it
            if error is not None:
                self._grown(to.pid, to.owner, -size, -1)
                return
            box.waiting.append(mail)
            self.held += 1
            self._wake(box)

        # Its receiver is woken before its sender goes on to the journal.
        await self._store.write(database, [(_INSERT, row)], durable=False, first=written)
        return number, len(box.waiting)

    def _check_room(self, to: Process, box: Mailbox, size: int) -> None:
        """EAGAIN: so many bytes wait already."""
        for held, most, whose in (
            (box.bytes, limits.MAILBOX_BYTES, f"process {to.pid}"),
            (self._bytes[to.owner], limits.OWNER_MAIL_BYTES, f"processes of {to.owner}"),
        ):
            if held + size > most:
                words = f"messages of {held} bytes wait for {whose}, {most} are allowed"
                hint = f"`llmasos recv {to.pid}` takes one out"
                raise SyscallError(Errno.EAGAIN, words, hint, pid=to.pid)

    def _check_count(self, to: Process) -> None:
        """EAGAIN: so many messages wait for the owner's processes, however short they are."""
        held = self._counts[to.owner]
        if held >= limits.OWNER_MAIL:
            words = (
                f"{held} messages wait for processes of {to.owner}, {limits.OWNER_MAIL} are allowed"
            )
            hint = f"`llmasos recv {to.pid}` takes one out"
            raise SyscallError(Errno.EAGAIN, words, hint, pid=to.pid)

    def _grown(self, pid: int, owner: str, size: int, count: int = 1) -> None:
        """So many more messages wait, with so many bytes together; or fewer."""
        self._box(pid).bytes += size
        self._bytes[owner] += size
        self._counts[owner] += count

    async def receive(self, process: Process, request: Recv, connection: int) -> Mail:
        """The oldest message; waits for one. ETIMEDOUT. It holds nothing while it waits."""
        box = self._box(process.pid)
        mine = [n for n, (to, _) in box.taken.items() if to == connection]
        # What another connection holds is that one's to deal with.
        early = [mail.number for mail in box.waiting if mail.number <= request.done]
        said = {*early, *(n for n in mine if n <= request.done)}
        self._settle(process, box, {*mine, *said} if request.take else said)
        if request.done:  # who says so waits until it is written
            self.flush()
            await self._store.write(self._database(process.owner), [], durable=False, frees=True)
        if not request.take:
            return Mail(0, 0, "", 0.0, "", [], len(box.waiting))
        try:
            async with asyncio.timeout(request.timeout_s):
                await self._wait(process, box)
        except TimeoutError:
            words, hint = f"no message waits for process {process.pid}", ""
            if request.timeout_s:
                words = f"no message for process {process.pid} within {request.timeout_s:g} s"
                hint = f"`llmasos recv {process.pid}` waits until one comes"
            raise SyscallError(Errno.ETIMEDOUT, words, hint, pid=process.pid) from None
        mail = box.waiting.popleft()
        box.taken[mail.number] = connection, mail
        self._readers.setdefault(connection, set()).add(process.pid)
        if box.waiting:
            self._wake(box)
        return replace(mail, waiting=len(box.waiting))

    def hangup(self, connection: int) -> None:
        """What was handed to a connection that is gone, and not dealt with, is for the next one."""
        for pid in self._readers.pop(connection, ()):
            box = self._boxes.get(pid)
            if box is None:
                continue
            back = sorted(n for n, (to, _) in box.taken.items() if to == connection)
            box.waiting.extendleft(box.taken.pop(number)[1] for number in reversed(back))
            if box.waiting:
                self._wake(box)

    async def _wait(self, process: Process, box: Mailbox) -> None:
        """Until there is a message for this reader; the first to ask is the first to be served."""
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
                elif box.waiting:  # it was woken and leaves: the next one may have it
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

    def _settle(self, process: Process, box: Mailbox, done: set[int]) -> None:
        """What was dealt with leaves the mailbox now, and the disk a moment later."""
        if not done:
            return
        self.held -= len(done)
        gone = [mail for mail in box.waiting if mail.number in done]
        gone += [box.taken.pop(number)[1] for number in done if number in box.taken]
        size = sum(len(mail.body.encode()) for mail in gone)
        self._grown(process.pid, process.owner, -size, -len(gone))
        box.waiting = deque(mail for mail in box.waiting if mail.number not in done)
        self._done.setdefault(process.owner, []).extend(done)
        if self._flush is None:
            loop = asyncio.get_running_loop()
            self._flush = loop.call_later(limits.MAIL_DONE_S, self.flush)

    def flush(self) -> None:
        """Let what was dealt with leave the disk: many at once, so that no message waits for it."""
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
        """Empty the log; after a failure, as when another program reads it, again and later."""

        def wiped(error: SyscallError | None) -> None:
            if error is not None:
                log.warning("messages of %s that were dealt with are in its log: %s", owner, error)
                self._wipe_later(owner, min(2 * pause_s, limits.SWEEP_LAST_S))

        self._wipes.pop(owner).cancel()
        try:
            self._store.submit_empty(self._database(owner), wiped)
        except SyscallError as error:  # it is damaged, and not used in this run
            wiped(error)

    def close(self) -> None:
        """The machine goes down: what was dealt with leaves the disk now."""
        self.flush()
        for owner in list(self._wipes):
            self._wipe(owner, limits.MAIL_WIPE_S)

    async def drop(self, process: Process) -> None:
        """The process is gone: nobody will ask."""
        box = self._boxes.pop(process.pid, None)
        if box is None:
            return
        self.held -= len(box.waiting) + len(box.taken)
        self._bytes[process.owner] -= box.bytes
        self._counts[process.owner] -= len(box.waiting) + len(box.taken) + box.coming
        while box.readers:
            self._wake(box)
        statement = ("DELETE FROM mail WHERE pid = ?", (process.pid,))
        await self._store.write(self._database(process.owner), [statement], frees=True)
        self._wipe_later(process.owner, limits.MAIL_WIPE_S)

    def interrupt(self, process: Process) -> None:
        """Whoever waits hears that the process has ended."""
        box = self._boxes.get(process.pid)
        while box is not None and box.readers:
            self._wake(box)


def _name(owner: str) -> str:
    return f"owners/{owner}/mail.db"
