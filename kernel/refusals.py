"""Which refusals get a row of their own in the journal, and how many are only counted.

A caller that asks in a loop must not fill the journal. The same refusal as a moment ago is counted
under the number of its row; of different ones, a subject gets so many rows at once and so many a
second, and a user so many with all subjects together. Pure: the clock is an argument.
"""

from collections import Counter
from dataclasses import dataclass, field

from . import limits

Question = tuple[str, str, str, str]  # subject, syscall, object, why


@dataclass(slots=True)
class _Bucket:
    """Rows that may be written now, and when that was known."""

    rows: float
    at: float


@dataclass(slots=True)
class _User:
    """What is remembered of one user, or of all strangers."""

    rows: Counter[str] = field(default_factory=Counter[str])  # refused, not written: by subject
    buckets: dict[str, _Bucket] = field(default_factory=dict[str, _Bucket])  # "": of the user
    pace: _Bucket | None = None  # of refusals, listed or not
    written: dict[Question, tuple[int, float]] = field(  # number of the row, and when
        default_factory=dict[Question, tuple[int, float]]
    )


class Refusals:
    """Of all users."""

    def __init__(self) -> None:
        self._users: dict[str, _User] = {}

    def repeated(self, owner: str, question: Question, now: float) -> int:
        """The number of the row that tells the same; 0 when there is none. Counts the refusal."""
        user = self._users.setdefault(owner, _User())
        number, at = user.written.get(question, (0, 0.0))
        if not number or now - at >= limits.REFUSAL_SAME_S:
            return 0
        user.rows[question[0]] += 1
        return number

    def admits(self, owner: str, subject: str, now: float) -> bool:
        """Whether another row may be written. Counts the refusal when not."""
        user = self._users.setdefault(owner, _User())
        if len(user.buckets) > limits.REFUSAL_SUBJECTS:
            user.buckets.clear()
            user.buckets[""] = _Bucket(0.0, now)  # no fresh start for the user
        mine = _filled(user.buckets, subject or "-", limits.REFUSAL_ROWS, now)
        whole = _filled(user.buckets, "", limits.USER_REFUSAL_ROWS, now)
        if mine.rows < 1 or whole.rows < 1:
            known = subject in user.rows or len(user.rows) < limits.REFUSAL_SUBJECTS
            user.rows[subject if known else ""] += 1
            return False
        mine.rows -= 1
        whole.rows -= 1
        return True

    def hurries(self, owner: str, now: float) -> bool:
        """Whether a user is refused more often than refusals could be listed. Counts one."""
        user = self._users.setdefault(owner, _User())
        user.pace = user.pace or _Bucket(float(limits.USER_REFUSAL_ROWS), now)
        _fill(user.pace, limits.USER_REFUSAL_ROWS, now)
        if user.pace.rows < 1:
            return True
        user.pace.rows -= 1
        return False

    def wrote(self, owner: str, question: Question, number: int, now: float) -> None:
        """A refusal has a row of its own."""
        written = self._users.setdefault(owner, _User()).written
        if len(written) >= limits.REFUSALS_SAME:
            del written[next(iter(written))]
        written.pop(question, None)
        written[question] = number, now

    def counted(self) -> list[tuple[str, str, int]]:
        """Owner, subject and how many were only counted since the last time."""
        found = [
            (owner, subject, many)
            for owner, user in self._users.items()
            for subject, many in user.rows.items()
        ]
        for user in self._users.values():
            user.rows.clear()
        return found


def _filled(buckets: dict[str, _Bucket], key: str, most: int, now: float) -> _Bucket:
    """A bucket with what has come in since it was last asked for."""
    bucket = buckets.setdefault(key, _Bucket(float(most), now))
    _fill(bucket, most, now)
    return bucket


def _fill(bucket: _Bucket, most: int, now: float) -> None:
    bucket.rows = min(float(most), bucket.rows + (now - bucket.at) * most / limits.REFUSAL_S)
    bucket.at = now
