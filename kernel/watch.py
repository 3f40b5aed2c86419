"""Events and output for followers: one bounded queue per follower.

A slow follower loses the oldest events and gets a gap marker in their place; the journal still has
them. A follower never slows its source.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Generic, TypeVar

from .abi import limits
from .abi.errors import Errno, SyscallError
from .abi.values import Event

T = TypeVar("T")


class Follower(Generic[T]):
    """The items that one follower has not read yet."""

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
        """Discard the items that were not read yet."""
        self.missed += len(self._queue)
        self._queue.clear()

    def close(self) -> None:
        """The source has ended: `batch` returns what is left, then nothing."""
        self._closed = True
        self._ready.set()

    async def batch(self, most: int) -> list[T]:
        """One item or more, at most `most`; none once closed and read. Cancel point."""
        while not self._queue and not self._closed:
            self._ready.clear()
            await self._ready.wait()
        return [self._queue.popleft() for _ in range(min(most, len(self._queue)))]


class Followers(Generic[T]):
    """The followers of one source."""

    def __init__(self) -> None:
        self._followers: set[Follower[T]] = set()

    def publish(self, item: T) -> None:
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


class FollowLimits:
    """Limits the calls of each user that follow something: each of them costs time per event."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()

    @contextmanager
    def call(self, user: str) -> Generator[None]:
        """Count one call until the end of the block. EAGAIN."""
        count, most = self._calls[user], limits.USER_FOLLOWERS
        if count >= most:
            message = f"{count} calls of {user} follow the journal or a process, {most} are allowed"
            hint = "end a running `llmasos logs -f` or `llmasos attach`"
            raise SyscallError(Errno.EAGAIN, message, hint)
        self._calls[user] += 1
        try:
            yield
        finally:
            self._calls[user] -= 1


def gap(missed: int, cursor: int) -> Event:
    """The marker for events that a slow follower missed; `cursor`: the last one it received."""
    note = f"{missed} events are missing here; read them with since={cursor}"
    return Event(cursor, 0.0, "gap", 0, "", 0, "", "", 0, note)
