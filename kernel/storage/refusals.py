"""Which refusals are listed in the journal, and which are only counted.

A caller that retries in a loop must not fill the journal. A repeated refusal is counted, and refers
to the row of the first one. Different refusals are rate-limited with token buckets: one for each
subject, and one for all subjects of a user together. Pure: the clock is an argument.
"""

from collections import Counter
from dataclasses import dataclass, field

from ..abi import limits

Question = tuple[str, str, str, str]  # subject, syscall, object, reason


@dataclass(slots=True)
class _Bucket:
    """A token bucket."""

    rows: float  # that may be written
    at: float  # the time of `rows`


@dataclass(slots=True)
class _UserRate:
    """The state of one user, or of all unauthenticated connections."""

    unlisted: Counter[str] = field(default_factory=Counter[str])  # only counted, by subject
    buckets: dict[str, _Bucket] = field(default_factory=dict[str, _Bucket])  # "": of the user
    pace: _Bucket | None = None  # of all refusals, listed or not
    listed: dict[Question, tuple[int, float]] = field(  # number of the row, and its time
        default_factory=dict[Question, tuple[int, float]]
    )


class Refusals:
    """The refusals of all users."""

    def __init__(self) -> None:
        self._users: dict[str, _UserRate] = {}

    def repeated(self, owner: str, question: Question, now: float) -> int:
        """The row of the same refusal, which is counted then; 0 when there is no recent one."""
        user = self._users.setdefault(owner, _UserRate())
        number, at = user.listed.get(question, (0, 0.0))
        if not number or now - at >= limits.REFUSAL_SAME_S:
            return 0
        user.unlisted[question[0]] += 1
        return number

    def admits(self, owner: str, subject: str, now: float) -> bool:
        """Whether another row may be written. If not, the refusal is counted."""
        user = self._users.setdefault(owner, _UserRate())
        if len(user.buckets) > limits.REFUSAL_SUBJECTS:
            user.buckets.clear()
            user.buckets[""] = _Bucket(0.0, now)  # the user's bucket must not be refilled by this
        of_subject = _filled(user.buckets, subject or "-", limits.REFUSAL_ROWS, now)
        of_user = _filled(user.buckets, "", limits.USER_REFUSAL_ROWS, now)
        if of_subject.rows < 1 or of_user.rows < 1:
            known = subject in user.unlisted or len(user.unlisted) < limits.REFUSAL_SUBJECTS
            user.unlisted[subject if known else ""] += 1
            return False
        of_subject.rows -= 1
        of_user.rows -= 1
        return True

    def limits_rate(self, owner: str, now: float) -> bool:
        """Count a refusal. True: a user is refused faster than refusals may be listed."""
        user = self._users.setdefault(owner, _UserRate())
        user.pace = user.pace or _Bucket(float(limits.USER_REFUSAL_ROWS), now)
        _fill(user.pace, limits.USER_REFUSAL_ROWS, now)
        if user.pace.rows < 1:
            return True
        user.pace.rows -= 1
        return False

    def wrote(self, owner: str, question: Question, number: int, now: float) -> None:
        """Record that a refusal was listed."""
        listed = self._users.setdefault(owner, _UserRate()).listed
        if len(listed) >= limits.REFUSALS_SAME:
            del listed[next(iter(listed))]
        listed.pop(question, None)
        listed[question] = number, now

    def counted(self) -> list[tuple[str, str, int]]:
        """Owner, subject and number of refusals that were only counted since the last call."""
        found = [
            (owner, subject, count)
            for owner, user in self._users.items()
            for subject, count in user.unlisted.items()
        ]
        for user in self._users.values():
            user.unlisted.clear()
        return found


def _filled(buckets: dict[str, _Bucket], key: str, most: int, now: float) -> _Bucket:
    """A bucket, refilled up to now."""
    bucket = buckets.setdefault(key, _Bucket(float(most), now))
    _fill(bucket, most, now)
    return bucket


def _fill(bucket: _Bucket, most: int, now: float) -> None:
    bucket.rows = min(float(most), bucket.rows + (now - bucket.at) * most / limits.REFUSAL_S)
    bucket.at = now
