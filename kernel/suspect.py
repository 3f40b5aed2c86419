"""Calls that may have killed their engine: who must run alone, and who may not run any more.

A call is known by a keyed hash of what it makes an engine do, so that it is known again when it
is asked again. Calls in flight when an engine crashes become suspects. A suspect runs alone: when
it ends, it is cleared; when the engine crashes under it, it is poison and refused for POISON_S. So
whoever only ran beside a poison is never refused. An engine that was killed from outside accuses
nobody; one that was killed for want of memory makes suspects, but no poison.

`Marks` is a plain table with a clock as argument; `Suspects` keeps one on disk, because a kernel
that starts again must not be killed again. Texts do not stand here.
"""

import json
import logging
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import blake2b

from . import limits
from .database import Schema, Statement, Value
from .driver import Cause, Death, Prompt
from .errors import Errno, SyscallError
from .store import Store
from .values import Sampling

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
# As Marks: the oldest of the owner who has most goes.
_FEWER = """DELETE FROM marks WHERE call IN (
              SELECT call FROM marks WHERE owner = (SELECT owner FROM marks GROUP BY owner
                ORDER BY count(*) DESC LIMIT 1) ORDER BY since
              LIMIT max(0, (SELECT count(*) FROM marks) - ?))"""
_REASON_CHARS = 200
_ID_DIGITS = 12  # of a call's hash, that people name it by


@dataclass(frozen=True, slots=True)
class Accused:
    """A call that was in an engine that died."""

    call: bytes  # its hash
    model: str
    owner: str  # of its process


@dataclass(frozen=True, slots=True)
class Mark:
    """What is held against a call."""

    poison: bool
    since: float  # Unix seconds
    reason: str  # of the engine's death
    model: str = ""
    owner: str = ""  # of the process whose call it was


@dataclass(slots=True)
class Marks:
    """Marks by the hash of a call, the oldest first; at most `most`, each for `life_s`.

    When there are too many, the oldest of the owner who has most of them goes.
    """

    most: int = limits.MARKS
    life_s: float = limits.POISON_S
    held: dict[bytes, Mark] = field(default_factory=dict[bytes, Mark])

    def get(self, call: bytes, now: float) -> Mark | None:
        mark = self.held.get(call)
        return mark if mark is not None and now - mark.since < self.life_s else None

    def died(
        self, inside: Sequence[Accused], parked: Sequence[Accused], death: Death, now: float
    ) -> list[bytes]:
        """An engine died with these calls in slots and beside them; returns what is marked now."""
        self._expire(now)
        if death.cause is Cause.OUTSIDE:
            return []
        known = self.get(inside[0].call, now) if len(inside) == 1 else None
        if known is not None:  # it was alone, because it was a suspect
            poison = known.poison or death.cause is Cause.CRASH
            self._mark(inside[0], Mark(poison, now, death.reason))
            return [inside[0].call]
        fresh = [one for one in dict.fromkeys((*inside, *parked)) if one.call not in self.held]
        for one in fresh:
            self._mark(one, Mark(False, now, death.reason))
        return [one.call for one in fresh if one.call in self.held]

    def ended(self, call: bytes) -> bool:
        """It ended, and the engine lives. True when that clears it."""
        mark = self.held.get(call)
        if mark is None or mark.poison:
            return False
        del self.held[call]
        return True

    def lift(self, calls: Sequence[bytes]) -> None:
        """Nothing is held against these calls any more."""
        for call in calls:
            self.held.pop(call, None)

    def _mark(self, accused: Accused, mark: Mark) -> None:
        self.held.pop(accused.call, None)
        self.held[accused.call] = replace(mark, model=accused.model, owner=accused.owner)
        if len(self.held) > self.most:
            ((most, _),) = Counter(one.owner for one in self.held.values()).most_common(1)
            del self.held[next(call for call, one in self.held.items() if one.owner == most)]

    def _expire(self, now: float) -> None:
        self.held = {c: m for c, m in self.held.items() if now - m.since < self.life_s}


class Suspects:
    """The marks of this machine."""

    def __init__(self, store: Store) -> None:
        self._store = store
        probe = "SELECT key, (SELECT sum(since) FROM marks) FROM secret"
        self._database, _ = store.replaceable("suspects.db", SCHEMA, probe)
        self._secret = _bytes(store.read(self._database, "SELECT key FROM secret")[0][0])
        self._marks = Marks()
        rows = store.read(self._database, "SELECT * FROM marks ORDER BY since")
        for call, poison, since, reason, model, owner in rows:
            mark = Mark(bool(poison), float(since or 0), str(reason), str(model), str(owner))
            self._marks.held[_bytes(call)] = mark

    def hash(self, image: str, prompt: Prompt, sampling: Sampling) -> bytes:
        """What is the same when a call is asked again: its model, prompt, and ways in the engine.

        Numbers that only move probabilities, and the seed, are left out: they would make another
        call of each attempt.
        """
        ways = [
            image, prompt.raw, [(m.role, m.content) for m in prompt.messages], sampling.stop,
            sampling.grammar, sampling.schema, blake2b(sampling.bias).hexdigest(),
            sampling.logprobs, sampling.temperature > 0,
        ]  # fmt: skip
        digest = blake2b(json.dumps(ways).encode(), key=self._secret, digest_size=16)
        digest.update(array("q", prompt.tokens).tobytes())
        return digest.digest()

    def suspect(self, call: bytes) -> bool:
        """Whether it must run alone."""
        return self._marks.get(call, time.time()) is not None

    def poison(self, call: bytes) -> SyscallError | None:
        """EPOISON for a call that is not let in any more."""
        mark = self._marks.get(call, time.time())
        if mark is None or not mark.poison:
            return None
        until = _stamp(mark.since + limits.POISON_S)
        return SyscallError(
            Errno.EPOISON,
            f"this call was alone in its engine when it died at {_stamp(mark.since)}, and in one "
            f"that died before: {mark.reason}",
            f"change its prompt, or let it run again: `llmasos poison lift {name(call)}`; else it "
            f"is refused until {until}",
        )

    def died(self, inside: Sequence[Accused], parked: Sequence[Accused], death: Death) -> None:
        """An engine died, with these calls in it."""
        first = death.reason.splitlines()[0][:_REASON_CHARS] if death.reason else ""
        marked = self._marks.died(inside, parked, replace(death, reason=first), time.time())
        sql = "INSERT OR REPLACE INTO marks VALUES(?,?,?,?,?,?)"
        held = [(call, self._marks.held[call]) for call in marked]
        self._write([
            (sql, (call, m.poison, m.since, m.reason, m.model, m.owner)) for call, m in held
        ])  # fmt: skip

    def marks(self) -> dict[bytes, Mark]:
        """What is held against calls now, by their hashes; the oldest first."""
        now = time.time()
        return {c: m for c, m in self._marks.held.items() if now - m.since < self._marks.life_s}

    async def lift(self, calls: Sequence[bytes]) -> None:
        """Nothing is held against these calls any more: on disk first. ENOSPC, EIO."""
        statements: list[Statement] = [("DELETE FROM marks WHERE call = ?", (c,)) for c in calls]
        await self._store.write(self._database, statements, frees=True)
        self._marks.lift(calls)

    def ended(self, call: bytes) -> bool:
        """A call ended and its engine lives: true when that cleared it."""
        cleared = self._marks.ended(call)
        if cleared:
            self._write([("DELETE FROM marks WHERE call = ?", (call,))])
        return cleared

    async def settle(self) -> None:
        """Return when every mark so far is on disk."""
        await self._store.write(self._database, [], durable=False, frees=True)

    def _write(self, statements: Sequence[Statement]) -> None:
        """Queued; `settle` waits for it before the calls' ends are told."""
        if not statements:
            return
        self._store.submit(
            self._database, [*statements, (_FEWER, (limits.MARKS,))], _written, frees=True
        )


def name(call: bytes) -> str:
    """What people call a call by."""
    return call.hex()[:_ID_DIGITS]


def _bytes(value: Value) -> bytes:
    return value if isinstance(value, bytes) else b""


def _written(error: SyscallError | None) -> None:
    if error is not None:
        log.warning("suspects were not written down: %s", error)


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
