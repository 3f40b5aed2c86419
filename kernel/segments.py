"""The files of one stream of the journal: numbered databases, the oldest deleted first.

A segment that cannot be read is set aside under another name, so that the others are still used.
"""

import logging
from contextlib import suppress
from pathlib import Path

from . import limits
from .database import Database, Row, Schema, Value
from .errors import Damaged
from .store import Store

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
_PROBE = "SELECT min(seq), max(seq) FROM events"
_LOOK_EVERY = 256  # events between two looks at the size
_KEPT = 2  # segments that stay whatever the limit: a crash may come before a new one's first row


class Segments:
    """Of one stream, in one folder below the state directory."""

    def __init__(self, store: Store, folder: str) -> None:
        self._store, self._folder = store, folder
        self._path = store.directory / folder
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._database: Database | None = None
        self._until_look = _LOOK_EVERY
        for number in self.numbers():
            self._look(number)
        self._number = max(self.numbers(), default=1)

    @property
    def database(self) -> Database:
        """The newest segment, to write to. EIO or ENOSPC when there can be none."""
        if self._database is None:
            self._database = self._open(self._number)
        return self._database

    @property
    def opened(self) -> bool:
        """Whether something was written in this run."""
        return self._database is not None

    def is_full(self, most: int) -> bool:
        """Whether the newest segment has so many bytes; looked at once in so many events."""
        self._until_look -= 1
        if self._until_look > 0:
            return False
        self._until_look = _LOOK_EVERY
        return self._database is not None and self._database.bytes >= most

    def numbers(self) -> list[int]:
        return sorted(int(file.stem) for file in self._path.glob("*.db") if file.stem.isdigit())

    @property
    def bytes(self) -> int:
        """Of all segments; what was set aside does not count."""
        return sum(self._size(number) for number in self.numbers())

    def _size(self, number: int) -> int:
        total = 0
        for end in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):  # SQLite removes its own meanwhile
                total += Path(f"{self._path}/{number:08d}.db{end}").stat().st_size
        return total

    def rows(self, number: int, sql: str, values: tuple[Value, ...] = ()) -> list[Row]:
        """Of one segment; none when it is gone or damaged. Blocks: call it in a thread."""
        try:
            return self._store.peek(self._name(number), sql, values)
        except Damaged as error:
            log.error("%s cannot be read: %s", self._name(number), error.message)
            return []

    def rotate(self) -> None:
        """Begin a new segment. EIO or ENOSPC: the old one goes on."""
        self._database = self._open(self._number + 1)
        self._number += 1
        # The segment just left may still have writes queued: those before it are at rest.
        for number in self.numbers()[:-2]:
            self._store.shut(self._name(number))

    def drop(self) -> bool:
        """Delete the oldest segment; False when there are not more than have to stay."""
        numbers = self.numbers()
        if len(numbers) <= _KEPT:
            return False
        self._store.forget(self._name(numbers[0]))
        return True

    def _look(self, number: int) -> None:
        """Set a segment aside that cannot be read."""
        name = self._name(number)
        try:
            self._store.peek(name, _PROBE)
        except Damaged as error:
            self._store.damages.set_aside(name, error)

    def _open(self, number: int) -> Database:
        return self._store.open(self._name(number), SCHEMA, queue=self._folder)

    def _name(self, number: int) -> str:
        return f"{self._folder}/{number:08d}.db"


def share(total: int, *, first: bool, others: int) -> int:
    """The bytes that a stream may take: half of all for the first, equal parts for the others."""
    half = total // 2
    return half if first else half // max(limits.JOURNAL_SHARES, others)
