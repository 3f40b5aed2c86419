"""Threads for blocking work, shared fairly between users.

Each user runs a few jobs at once, and all users together a limited number. Further jobs of a user
wait in that user's queue. A free thread goes to the job at the head of a queue that has waited
longest, so one user cannot occupy all threads.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

Result = TypeVar("Result")


class FairThreads:
    """Threads for one kind of work: at most `per_user` of a user and `total` of all users."""

    def __init__(self, per_user: int, total: int) -> None:
        self._per_user = per_user
        self._total = CapacityLimiter(total)
        self._users: dict[str, tuple[CapacityLimiter, int]] = {}  # limiter, jobs running or waiting

    async def run(self, user: str, work: Callable[..., Result], *values: object) -> Result:
        """Call a function in a thread when this user has a free slot. Cancel point before it."""
        async with self.user_slot(user):
            return await to_thread.run_sync(work, *values, limiter=self._total)

    @asynccontextmanager
    async def slot(self, user: str) -> AsyncGenerator[None]:
        """Hold a slot of the user and one of the total, for work that needs no thread."""
        async with self.user_slot(user), self._total:
            yield

    @asynccontextmanager
    async def user_slot(self, user: str) -> AsyncGenerator[None]:
        """Hold a slot of the user only."""
        limiter, count = self._users.get(user) or (CapacityLimiter(self._per_user), 0)
        self._users[user] = limiter, count + 1
        try:
            async with limiter:
                yield
        finally:
            limiter, count = self._users[user]
            if count == 1:
                del self._users[user]
            else:
                self._users[user] = limiter, count - 1
