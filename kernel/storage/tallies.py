"""Calls of class C: no event for each, but one hourly counter for each kind of call.

The rows of one user are bounded: further calls are counted without their objects.
"""

import asyncio
import time
from collections import Counter

from ..abi import limits
from .database import Row, Schema, Statement
from .identifiers import TABLE
from .store import Store

SCHEMA = Schema(
    "counters",
    (
        """CREATE TABLE counters(hour INTEGER, subject TEXT, syscall TEXT, object TEXT, rule TEXT,
             calls INTEGER NOT NULL, PRIMARY KEY(hour, subject, syscall, object, rule))""",
        TABLE,  # of call numbers: in this database, as segments are deleted
    ),
)
PROBE = "SELECT (SELECT sum(calls) FROM counters), (SELECT sum(next) FROM identifiers)"
_COUNT = """INSERT INTO counters VALUES(?,?,?,?,?,?) ON CONFLICT
            DO UPDATE SET calls = calls + excluded.calls"""
Key = tuple[str, str, str, str]  # subjects, syscall, object, rule


class Tallies:
    """Counts in memory, and writes the counters within COUNTER_S."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.database, self.replaced = store.open_or_replace("counters.db", SCHEMA, PROBE)
        self._counts: Counter[Key] = Counter()
        self._hour = 0
        self._kinds: dict[str, set[Key]] = {}  # counted in this hour, by user
        self._timer: asyncio.TimerHandle | None = None

    def count(self, subject: str, syscall: str, object_: str, rule: str) -> None:
        """Count a call of class C."""
        key = (subject, syscall, object_, rule)
        if key not in self._counts:
            key = self._key(key)
        self._counts[key] += 1
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(limits.COUNTER_S, self.flush)

    def _key(self, key: Key) -> Key:
        """The row to count in: above COUNTER_ROWS, one for all objects of a user's syscall."""
        hour = int(time.time() // 3600)
        if hour != self._hour:
            self._hour = hour
            self._kinds.clear()
        user, _, _ = key[0].partition(" ")
        kinds = self._kinds.setdefault(user, set())
        if key in kinds:
            return key
        if len(kinds) >= limits.COUNTER_ROWS:
            return user, key[1], "/", ""
        kinds.add(key)
        return key

    def flush(self) -> None:
        """Write the counters now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        hour = int(time.time() // 3600)
        rows: list[Statement] = [
            (_COUNT, (hour, *key, calls)) for key, calls in self._counts.items()
        ]
        self._counts.clear()
        if rows:
            rows.append(("DELETE FROM counters WHERE hour < ?", (hour - limits.COUNTER_HOURS,)))
            self._store.submit(self.database, rows, lambda _: None)

    def recorded(self, since: float) -> list[Row]:
        """Subjects, syscall, object, 0 for errno, calls. Blocks: call it in a thread."""
        sql = """SELECT subject, syscall, object, 0, sum(calls) FROM counters
                 WHERE hour >= ? GROUP BY subject, syscall, object LIMIT ?"""
        return self._store.peek("counters.db", sql, (int(since // 3600), limits.RECORDED))

    async def drain(self) -> None:
        """Wait until everything counted so far can be read."""
        self.flush()
        await self._store.write(self.database, [], durable=False, frees=True)
