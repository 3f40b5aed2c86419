"""Which refusals are listed in the journal, and which are only counted.

A caller that retries in a loop must not fill the journal. A repeated refusal is counted, and refers
to the event of the first one. Different refusals are rate-limited with token buckets: one for each
subject, and one for all subjects of a user together. Pure: the clock is an argument.
"""

from collections import Counter
from dataclasses import dataclass, field

from ..abi import limits

RefusalKey = tuple[str, str, str, str]  # equal refusals: subject, syscall, object, reason


@dataclass(slots=True)
class _Bucket:
    """A token bucket."""

    events: float  # that may be written
    at: float  # the time of `events`


@dataclass(slots=True)
class _UserRate:
    """The state of one user, or of all unauthenticated connections."""

    unlisted: Counter[str] = field(default_factory=Counter[str])  # only counted, by subject
    # By subject; "": of the user.
    buckets: dict[str, _Bucket] = field(default_factory=dict[str, _Bucket])
    pace: _Bucket | None = None  # of all refusals, listed or not: pauses the connection
    listed: dict[RefusalKey, tuple[int, float]] = field(  # number of the event, and its time
        default_factory=dict[RefusalKey, tuple[int, float]]
    )


class Refusals:
    """The refusals of all users."""

    def __init__(self) -> None:
        self._users: dict[str, _UserRate] = {}

    def repeated(self, user: str, key: RefusalKey, now: float) -> int:
        """The event that lists the same refusal, so that this one is only counted; 0: none does."""
        rates = self._users.setdefault(user, _UserRate())
        number, at = rates.listed.get(key, (0, 0.0))
        if not number or now - at >= limits.REFUSAL_SAME_S:
            return 0
        rates.unlisted[key[0]] += 1
        return number

    def admits(self, user: str, subject: str, now: float) -> bool:
        """Whether another event may be written. If not, the refusal is only counted."""
        rates = self._users.setdefault(user, _UserRate())
        if len(rates.buckets) > limits.REFUSAL_SUBJECTS:
            rates.buckets.clear()
            rates.buckets[""] = _Bucket(0.0, now)  # the user's bucket must not be refilled by this
        # Without a subject it is "-": "" is the bucket of the user.
        of_subject = _filled(rates.buckets, subject or "-", limits.REFUSAL_ROWS, now)
        of_user = _filled(rates.buckets, "", limits.USER_REFUSAL_ROWS, now)
        if of_subject.events < 1 or of_user.events < 1:
            known = subject in rates.unlisted or len(rates.unlisted) < limits.REFUSAL_SUBJECTS
            rates.unlisted[subject if known else ""] += 1
            return False
        of_subject.events -= 1
        of_user.events -= 1
        return True

    def must_pause(self, user: str, now: float) -> bool:
        """Take one refusal from the pace of a user. True: the connection must pause, because the
        user is refused faster than refusals may be listed."""
        rates = self._users.setdefault(user, _UserRate())
        rates.pace = rates.pace or _Bucket(float(limits.USER_REFUSAL_ROWS), now)
        _fill(rates.pace, limits.USER_REFUSAL_ROWS, now)
        if rates.pace.events < 1:
            return True
        rates.pace.events -= 1
        return False

    def wrote(self, user: str, key: RefusalKey, number: int, now: float) -> None:
        """Record that a refusal was listed."""
        listed = self._users.setdefault(user, _UserRate()).listed
        if len(listed) >= limits.REFUSALS_SAME:
            del listed[next(iter(listed))]
        listed.pop(key, None)
        listed[key] = number, now

    def take_counts(self) -> list[tuple[str, str, int]]:
        """Take user, subject and number of the refusals that were only counted."""
        found = [
            (user, subject, count)
            for user, rates in self._users.items()
            for subject, count in rates.unlisted.items()
        ]
        for rates in self._users.values():
            rates.unlisted.clear()
        return found


def _filled(buckets: dict[str, _Bucket], key: str, most: int, now: float) -> _Bucket:
    """A bucket, refilled up to now."""
    bucket = buckets.setdefault(key, _Bucket(float(most), now))
    _fill(bucket, most, now)
    return bucket


def _fill(bucket: _Bucket, most: int, now: float) -> None:
    bucket.events = min(float(most), bucket.events + (now - bucket.at) * most / limits.REFUSAL_S)
    bucket.at = now
