"""Calls that may have killed their engine: who must run alone, and who may not run any more.

A call is known by a keyed hash of what it makes an engine do, so that it is known again when it
is asked again. Calls in flight when an engine dies become suspects. A suspect runs alone: when it
ends, it is cleared; when the engine dies under it, it is poison and refused for POISON_S. So
whoever only ran beside a poison is never refused.

`Marks` is a plain table with a clock as argument; `Suspects` keeps one on disk, because a kernel
that starts again must not be killed again. Texts do not stand here.
"""

import json
import logging
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b

from . import limits
from .database import Schema, Statement, Value
from .driver import Prompt
from .errors import Errno, SyscallError
from .journal import QUEUE
from .store import Store
from .values import Sampling

log = logging.getLogger(__name__)
SCHEMA = Schema(
    "suspects",
    (
        """CREATE TABLE secret(key BLOB NOT NULL); INSERT INTO secret VALUES(randomblob(32));
           CREATE TABLE marks(call BLOB PRIMARY KEY, poison INTEGER NOT NULL, since REAL NOT NULL,
             reason TEXT NOT NULL)""",
    ),
)
_REASON_CHARS = 200


@dataclass(frozen=True, slots=True)
class Mark:
    """What is held against a call."""

    poison: bool
    since: float  # Unix seconds
    reason: str  # of the engine's death


@dataclass(slots=True)
class Marks:
    """Marks by the hash of a call, the oldest first; at most `most`, each for `life_s`."""

    most: int = limits.MARKS
    life_s: float = limits.POISON_S
    held: dict[bytes, Mark] = field(default_factory=dict[bytes, Mark])

    def get(self, call: bytes, now: float) -> Mark | None:
        mark = self.held.get(call)
        return mark if mark is not None and now - mark.since < self.life_s else None

    def died(
        self, inside: Sequence[bytes], parked: Sequence[bytes], reason: str, now: float
    ) -> list[bytes]:
        """An engine died with these calls in slots and beside them; returns what is marked now."""
        self._expire(now)
        known = self.get(inside[0], now) if len(inside) == 1 else None
        if known is not None:  # it was alone, because it was a suspect
            self._mark(inside[0], Mark(True, now, reason))
            return [inside[0]]
        fresh = [call for call in dict.fromkeys((*inside, *parked)) if call not in self.held]
        for call in fresh:
            self._mark(call, Mark(False, now, reason))
        return [call for call in fresh if call in self.held]

    def ended(self, call: bytes) -> bool:
        """It ended, and the engine lives. True when that clears it."""
        mark = self.held.get(call)
        if mark is None or mark.poison:
            return False
        del self.held[call]
        return True

    def _mark(self, call: bytes, mark: Mark) -> None:
        self.held.pop(call, None)
        self.held[call] = mark
        if len(self.held) > self.most:
            del self.held[next(iter(self.held))]

    def _expire(self, now: float) -> None:
        self.held = {c: m for c, m in self.held.items() if now - m.since < self.life_s}


class Suspects:
    """The marks of this machine."""

    def __init__(self, store: Store) -> None:
        self._store = store
        probe = "SELECT key, (SELECT sum(since) FROM marks) FROM secret"
        self._database, _ = store.replaceable("suspects.db", SCHEMA, probe, queue=QUEUE)
        self._secret = _bytes(store.read(self._database, "SELECT key FROM secret")[0][0])
        self._marks = Marks()
        rows = store.read(self._database, "SELECT * FROM marks ORDER BY since")
        for call, poison, since, reason in rows:
            mark = Mark(bool(poison), float(since or 0), str(reason))
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
            f"change its prompt, or the model's file; mounting again does not help, and the same "
            f"call is refused until {until}",
        )

    def died(self, inside: Sequence[bytes], parked: Sequence[bytes], reason: str) -> None:
        """An engine died, with these calls in it."""
        first = reason.splitlines()[0][:_REASON_CHARS] if reason else ""
        marked = self._marks.died(inside, parked, first, time.time())
        sql = "INSERT OR REPLACE INTO marks VALUES(?,?,?,?)"
        held = [(call, self._marks.held[call]) for call in marked]
        self._write([(sql, (call, m.poison, m.since, m.reason)) for call, m in held])

    def ended(self, call: bytes) -> bool:
        """A call ended and its engine lives: true when that cleared it."""
        cleared = self._marks.ended(call)
        if cleared:
            self._write([("DELETE FROM marks WHERE call = ?", (call,))])
        return cleared

    def _write(self, statements: Sequence[Statement]) -> None:
        """Queued where the calls' ends are, and before them: written before those are told."""
        if not statements:
            return
        newest = "SELECT call FROM marks ORDER BY since DESC LIMIT ?"
        bound: Statement = (f"DELETE FROM marks WHERE call NOT IN ({newest})", (limits.MARKS,))
        self._store.submit(self._database, [*statements, bound], _written, frees=True)


def _bytes(value: Value) -> bytes:
    return value if isinstance(value, bytes) else b""


def _written(error: SyscallError | None) -> None:
    if error is not None:
        log.warning("suspects were not written down: %s", error)


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
