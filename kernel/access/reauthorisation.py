"""Changes of rules and of roles, and the check of all connections and calls in flight after them.

A change is shielded from cancellation, so that none is applied by half.
"""

from typing import Protocol

import anyio
from anyio import CancelScope, to_thread

from ..storage.journal import Entry, Journal
from ..yield_point import YieldPoint
from .decisions import Policy
from .evaluator import Evaluator
from .users import UserTable


class Client(Protocol):
    """A connection, or a job of the kernel that makes calls."""

    def reauthorise(self) -> None:
        """Permissions have changed: end now what is no longer allowed."""

    def belongs_to(self, pid: int) -> bool:
        """Whether this is a connection of the program of this process."""
        ...


class Clients:
    """Every client whose calls are authorised."""

    def __init__(self) -> None:
        self._clients: set[Client] = set()

    def add(self, client: Client) -> None:
        self._clients.add(client)

    def remove(self, client: Client) -> None:
        self._clients.discard(client)

    def of_process(self, pid: int) -> list[Client]:
        """The clients that belong to a process."""
        return [client for client in self._clients if client.belongs_to(pid)]

    async def reauthorise(self) -> None:
        """Check the permissions of every client and of its calls in flight again."""
        yield_point = YieldPoint(shield=True)
        for client in list(self._clients):
            if client in self._clients:  # it may have closed meanwhile
                client.reauthorise()
            await yield_point()


class PolicyChanges:
    """Changes of the user rules and of the roles of users. `lock` is held during each of them."""

    def __init__(
        self, policy: Policy, users: UserTable, journal: Journal, clients: Clients
    ) -> None:
        self._policy, self._users, self._journal = policy, users, journal
        self._clients = clients
        self.lock = anyio.Lock()

    async def replace_user_rules(
        self, text: str, evaluator: Evaluator, *, undo: bool = False
    ) -> None:
        """Replace the user rules, on disk first. The caller holds the lock.

        `evaluator`: of this text, built since the lock is held.
        """
        file = self._policy.user_rules
        with CancelScope(shield=True):
            if text != await to_thread.run_sync(file.read) or undo:
                await to_thread.run_sync(file.restore if undo else file.write, text)
            await self._policy.put_into_force(evaluator, text)
            self._journal.append(Entry("policy", note=f"epoch {self._policy.epoch}"))
            await self._clients.reauthorise()

    async def apply_roles(self) -> None:
        """Users or their roles have changed: update the policy."""
        with CancelScope(shield=True):
            # Removed users are disconnected before the slow rebuild.
            await self._clients.reauthorise()
            async with self.lock:
                self._policy.set_members(self._users.roles())
                # A file that is being edited can wait.
                await self._policy.reload(self._policy.text)
            await self._clients.reauthorise()
