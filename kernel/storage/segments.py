"""The files of one stream of the journal: numbered databases, the oldest deleted first.

A segment that cannot be read is renamed, and the others stay in use.
"""

import logging
from contextlib import suppress
from pathlib import Path

from ..abi import limits
from ..abi.errors import Damaged
from .database import Database, Row, Schema, Value
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
_SIZE_CHECK_EVENTS = 256  # events between two checks of the size
_SEGMENTS_MIN = 2  # never fewer, whatever the limit: after a crash the newest may be empty


class Segments:
    """The segments of one stream, in one folder below the state directory."""

    def __init__(self, store: Store, folder: str) -> None:
        self._store, self._folder = store, folder
        self._path = store.directory / folder
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._database: Database | None = None
        self._until_check = _SIZE_CHECK_EVENTS
        for number in self.numbers():
            self._check(number)
        self._number = max(self.numbers(), default=1)

    @property
    def database(self) -> Database:
        """The newest segment, to write to. EIO or ENOSPC when it cannot be opened."""
        if self._database is None:
            self._database = self._open(self._number)
        return self._database

    @property
    def opened(self) -> bool:
        """Whether this run has opened the newest segment for writing."""
        return self._database is not None

    def is_full(self, most: int) -> bool:
        """Whether the newest segment has `most` bytes. Checked every _SIZE_CHECK_EVENTS calls."""
        self._until_check -= 1
        if self._until_check > 0:
            return False
        self._until_check = _SIZE_CHECK_EVENTS
        return self._database is not None and self._database.bytes >= most

    def numbers(self) -> list[int]:
        return sorted(int(file.stem) for file in self._path.glob("*.db") if file.stem.isdigit())

    @property
    def bytes(self) -> int:
        """The size of all segments, without renamed damaged ones."""
        return sum(self._size(number) for number in self.numbers())

    def _size(self, number: int) -> int:
        total = 0
        for end in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):  # SQLite may delete -wal and -shm at any time
                total += Path(f"{self._path}/{number:08d}.db{end}").stat().st_size
        return total

    def rows(self, number: int, sql: str, values: tuple[Value, ...] = ()) -> list[Row]:
        """Rows of one segment; none when it is deleted or damaged. Blocks: call it in a thread."""
        try:
            return self._store.peek(self._name(number), sql, values)
        except Damaged as error:
            log.error("cannot read %s: %s", self._name(number), error.message)
            return []

    def rotate(self) -> None:
        """Create a new segment. EIO or ENOSPC: the old one stays in use."""
        self._database = self._open(self._number + 1)
        self._number += 1
        # The previous segment may still have queued writes; older ones have none.
        for number in self.numbers()[:-2]:
            self._store.close_database(self._name(number))

    def drop(self) -> bool:
        """Delete the oldest segment. False: there are no more than _SEGMENTS_MIN."""
        numbers = self.numbers()
        if len(numbers) <= _SEGMENTS_MIN:
            return False
        self._store.delete_database(self._name(numbers[0]))
        return True

    def _check(self, number: int) -> None:
        """Rename a segment that cannot be read."""
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
    """The bytes that a stream may take: half of `total` for the first, equal parts of the other
    half for the others."""
    half = total // 2
    return half if first else half // max(limits.JOURNAL_SHARES, others)
