"""Calls that may have crashed their engine: which must run alone, and which are refused.

A call is identified by a keyed hash of its inputs to the engine, so that a repeated call has the
same identity. Calls in flight when an engine crashes become suspects. A suspect runs alone: if it
ends normally, its mark is removed; if the engine crashes again, the call is poison and is refused
for POISON_S. So a call that only ran beside a poison is never refused. An engine that was killed
from outside makes no suspects; one that was killed for lack of memory makes suspects, but no
poison.

`Marks` is a plain table with the time as an argument; `Quarantine` stores one on disk, so that a
poison does not crash the engine again after a restart of the kernel. Prompts are not stored here.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import blake2b

from ..abi import limits
from ..abi.errors import Errno, SyscallError
from ..abi.values import Sampling
from ..driver import Cause, Death, Prompt
from ..storage.database import Schema, Statement, Value
from ..storage.store import Store

log = logging.getLogger(__name__)
SCHEMA = Schema(
    "suspects",
    (
        """CREATE TABLE secret(key BLOB NOT NULL); INSERT INTO secret VALUES(randomblob(32));
           CREATE TABLE marks(call BLOB PRIMARY KEY, poison INTEGER NOT NULL, since REAL NOT NULL,
             reason TEXT NOT NULL)""",
        """ALTER TABLE marks ADD COLUMN model TEXT NOT NULL DEFAULT '';
           ALTER TABLE marks ADD COLUMN owner TEXT NOT NULL DEFAULT ''""",
    ),
)
# As in Marks: deletes the oldest marks of the owner who has the most.
_TRIM = """DELETE FROM marks WHERE call IN (
              SELECT call FROM marks WHERE owner = (SELECT owner FROM marks GROUP BY owner
                ORDER BY count(*) DESC LIMIT 1) ORDER BY since
              LIMIT max(0, (SELECT count(*) FROM marks) - ?))"""
_REASON_CHARS = 200
_ID_DIGITS = 12  # of a call's hash, shown as its id


@dataclass(frozen=True, slots=True)
class SuspectCall:
    """A call that was in an engine when it died."""

    call: bytes  # its hash
    model: str
    owner: str  # of its process


@dataclass(frozen=True, slots=True)
class SuspectMark:
    """The mark of a suspect or poison call."""

    poison: bool  # False: a suspect
    since: float  # Unix seconds
    reason: str  # of the engine's death
    model: str = ""
    owner: str = ""  # of the process that made the call


@dataclass(slots=True)
class Marks:
    """Marks by the hash of a call, the oldest first; at most `most`, each for `life_s`.

    When there are too many, the oldest mark of the owner with the most marks is removed.
    """

    most: int = limits.MARKS
    life_s: float = limits.POISON_S
    by_call: dict[bytes, SuspectMark] = field(default_factory=dict[bytes, SuspectMark])

    def get(self, call: bytes, now: float) -> SuspectMark | None:
        mark = self.by_call.get(call)
        return mark if mark is not None and now - mark.since < self.life_s else None

    def died(
        self, resident: Sequence[SuspectCall], parked: Sequence[SuspectCall],
        death: Death, now: float,
    ) -> list[bytes]:  # fmt: skip
        """Mark the calls of an engine that died, resident in slots or parked.

        Returns the calls whose mark is new or has changed.
        """
        self._expire(now)
        if death.cause is Cause.OUTSIDE:
            return []
        known = self.get(resident[0].call, now) if len(resident) == 1 else None
        if known is not None:  # it ran alone, because it was a suspect
            poison = known.poison or death.cause is Cause.CRASH
            self._mark(resident[0], SuspectMark(poison, now, death.reason))
            return [resident[0].call]
        calls = dict.fromkeys((*resident, *parked))
        fresh = [one for one in calls if one.call not in self.by_call]
        for one in fresh:
            self._mark(one, SuspectMark(False, now, death.reason))
        return [one.call for one in fresh if one.call in self.by_call]

    def ended(self, call: bytes) -> bool:
        """The call ended and its engine did not crash. True if this removed the mark."""
        mark = self.by_call.get(call)
        if mark is None or mark.poison:
            return False
        del self.by_call[call]
        return True

    def lift(self, calls: Sequence[bytes]) -> None:
        """Remove the marks of these calls."""
        for call in calls:
            self.by_call.pop(call, None)

    def _mark(self, suspect: SuspectCall, mark: SuspectMark) -> None:
        self.by_call.pop(suspect.call, None)
        self.by_call[suspect.call] = replace(mark, model=suspect.model, owner=suspect.owner)
        if len(self.by_call) > self.most:
            ((owner, _),) = Counter(one.owner for one in self.by_call.values()).most_common(1)
            del self.by_call[next(c for c, one in self.by_call.items() if one.owner == owner)]

    def _expire(self, now: float) -> None:
        self.by_call = {c: m for c, m in self.by_call.items() if now - m.since < self.life_s}


class Quarantine:
    """The marks of this machine."""

    def __init__(self, store: Store) -> None:
        self._store = store
        probe = "SELECT key, (SELECT sum(since) FROM marks) FROM secret"
        self._database, _ = store.open_or_replace("suspects.db", SCHEMA, probe)
        self._secret = _bytes(store.read(self._database, "SELECT key FROM secret")[0][0])
        self._marks = Marks()
        rows = store.read(self._database, "SELECT * FROM marks ORDER BY since")
        for call, poison, since, reason, model, owner in rows:
            mark = SuspectMark(bool(poison), float(since or 0), str(reason), str(model), str(owner))
            self._marks.by_call[_bytes(call)] = mark

    def hash(self, image: str, prompt: Prompt, sampling: Sampling) -> bytes:
        """The identity of a call: its model, its prompt, and what selects code in the engine.

        Numbers that only change probabilities, and the seed, are left out: with them, each retry
        would be another call.
        """
        inputs = [
            image, prompt.raw, [(m.role, m.content) for m in prompt.messages], sampling.stop,
            sampling.grammar, sampling.schema, blake2b(sampling.bias).hexdigest(),
            sampling.logprobs, sampling.temperature > 0, sampling.lookup,
        ]  # fmt: skip
        digest = blake2b(json.dumps(inputs).encode(), key=self._secret, digest_size=16)
        digest.update(prompt.identity)
        return digest.digest()

    def is_suspect(self, call: bytes) -> bool:
        """Whether the call must run alone."""
        return self._marks.get(call, time.time()) is not None

    def poison(self, call: bytes) -> SyscallError | None:
        """EPOISON for a call that is refused."""
        mark = self._marks.get(call, time.time())
        if mark is None or not mark.poison:
            return None
        until = _stamp(mark.since + limits.POISON_S)
        return SyscallError(
            Errno.EPOISON,
            f"the engine died at {_stamp(mark.since)} while this call was alone in it, and this "
            f"call was in an engine that died before: {mark.reason}",
            f"change its prompt, or `llmasos poison lift {name(call)}` allows it again; otherwise "
            f"it is refused until {until}",
        )

    def died(
        self, resident: Sequence[SuspectCall], parked: Sequence[SuspectCall], death: Death
    ) -> None:
        """An engine died with these calls in it: mark them, in memory and on disk."""
        first = death.reason.splitlines()[0][:_REASON_CHARS] if death.reason else ""
        marked = self._marks.died(resident, parked, replace(death, reason=first), time.time())
        sql = "INSERT OR REPLACE INTO marks VALUES(?,?,?,?,?,?)"
        rows = [(call, self._marks.by_call[call]) for call in marked]
        self._write([
            (sql, (call, m.poison, m.since, m.reason, m.model, m.owner)) for call, m in rows
        ])  # fmt: skip

    def marks(self) -> dict[bytes, SuspectMark]:
        """The marks in force, by the hash of the call; the oldest first."""
        now = time.time()
        return {c: m for c, m in self._marks.by_call.items() if now - m.since < self._marks.life_s}

    async def lift(self, calls: Sequence[bytes]) -> None:
        """Remove the marks of these calls, on disk first. ENOSPC, EIO."""
        statements: list[Statement] = [("DELETE FROM marks WHERE call = ?", (c,)) for c in calls]
        await self._store.write(self._database, statements, frees=True)
        self._marks.lift(calls)

    def ended(self, call: bytes) -> bool:
        """The call ended and its engine did not crash. True if this removed the mark."""
        cleared = self._marks.ended(call)
        if cleared:
            self._write([("DELETE FROM marks WHERE call = ?", (call,))])
        return cleared

    async def wait_written(self) -> None:
        """Return when every mark so far is on disk."""
        await self._store.write(self._database, [], durable=False, frees=True)

    def _write(self, statements: Sequence[Statement]) -> None:
        """Queue a write; the end of a call is reported only after `wait_written`."""
        if not statements:
            return
        self._store.submit(
            self._database, [*statements, (_TRIM, (limits.MARKS,))], _written, frees=True
        )


def name(call: bytes) -> str:
    """The id of a call that messages and commands use."""
    return call.hex()[:_ID_DIGITS]


def _bytes(value: Value) -> bytes:
    return value if isinstance(value, bytes) else b""


def _written(error: SyscallError | None) -> None:
    if error is not None:
        log.warning("cannot write quarantine marks: %s", error)


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
