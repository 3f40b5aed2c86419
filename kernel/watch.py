"""Events and output to whoever follows: one bounded queue a follower.

A follower that falls behind loses the oldest events and finds a gap marker in their place; the
journal still has them. Nobody who follows slows what is followed.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Generic, TypeVar

from . import limits
from .errors import Errno, SyscallError
from .values import Event

T = TypeVar("T")


class Follower(Generic[T]):
    """What one follower has not read yet."""

    def __init__(self, wants: Callable[[T], bool], most: int = limits.WATCH_EVENTS) -> None:
        self.wants = wants
        self.missed = 0
        self._queue: deque[T] = deque(maxlen=most)
        self._ready = asyncio.Event()
        self._closed = False

    def push(self, item: T) -> None:
        if len(self._queue) == self._queue.maxlen:
            self.missed += 1
        self._queue.append(item)
        self._ready.set()

    def drop(self) -> None:
        """What was not read yet is not shown any more."""
        self.missed += len(self._queue)
        self._queue.clear()

    def close(self) -> None:
        """No more will come: `batch` returns what is left, then nothing."""
        self._closed = True
        self._ready.set()

    async def batch(self, most: int) -> list[T]:
        """One item or more, at most `most`; none once closed and read. Cancel point."""
        while not self._queue and not self._closed:
            self._ready.clear()
            await self._ready.wait()
        return [self._queue.popleft() for _ in range(min(most, len(self._queue)))]


class Followers(Generic[T]):
    """Everybody who follows one source."""

    def __init__(self) -> None:
        self._followers: set[Follower[T]] = set()

    def tell(self, item: T) -> None:
        for follower in self._followers:
            if follower.wants(item):
                follower.push(item)

    def drop(self) -> None:
        for follower in self._followers:
            follower.drop()

    def add(self, follower: Follower[T]) -> None:
        self._followers.add(follower)

    def remove(self, follower: Follower[T]) -> None:
        self._followers.discard(follower)

    def close(self) -> None:
        for follower in self._followers:
            follower.close()


class Following:
    """How many calls of each user follow something: every event takes time for each of them."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()

    @contextmanager
    def one(self, user: str) -> Generator[None]:
        """One more call, to its end. EAGAIN."""
        taken, most = self._calls[user], limits.USER_FOLLOWERS
        if taken >= most:
            words = f"{taken} calls of {user} follow the journal or a process, {most} are allowed"
            raise SyscallError(Errno.EAGAIN, words, "end some of `llmasos logs -f` and `attach`")
        self._calls[user] += 1
        try:
            yield
        finally:
            self._calls[user] -= 1


def gap(missed: int, cursor: int) -> Event:
    """The marker for events that a follower was too slow for; `cursor`: the last it was told."""
    note = f"{missed} events were not shown here; read them with since={cursor}"
    return Event(cursor, 0.0, "gap", 0, "", 0, "", "", 0, note)
