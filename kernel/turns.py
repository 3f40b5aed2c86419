"""Work in threads that blocks: each user has a few turns at once, and all of them together some.

Who asks for many waits in a queue of its own, and the next free thread goes to whoever has waited
longest among the first ones of these queues. So nobody can fill the threads.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

Result = TypeVar("Result")


class Turns:
    """Threads for one kind of work."""

    def __init__(self, each: int, together: int) -> None:
        self._each = each
        self._together = CapacityLimiter(together)
        self._users: dict[str, tuple[CapacityLimiter, int]] = {}  # and how many work or wait

    async def run(self, user: str, work: Callable[..., Result], *values: object) -> Result:
        """Call a function in a thread, when it is this user's turn. Cancel point before it."""
        async with self.turn(user):
            return await to_thread.run_sync(work, *values, limiter=self._together)

    @asynccontextmanager
    async def place(self, user: str) -> AsyncGenerator[None]:
        """One of the things that all do at once: for work that needs no thread."""
        async with self.turn(user), self._together:
            yield

    @asynccontextmanager
    async def turn(self, user: str) -> AsyncGenerator[None]:
        """One of the things that this user does at once."""
        limiter, count = self._users.get(user) or (CapacityLimiter(self._each), 0)
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
