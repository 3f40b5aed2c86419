"""Users, their roles and their keys."""

from dataclasses import dataclass

from ..abi import values as v
from ..abi.errors import Errno, SyscallError
from ..access.reauthorisation import Clients, PolicyChanges
from ..access.users import UserTable
from ..lifecycle import Lifecycle
from .call import CallContext


@dataclass(frozen=True, slots=True)
class UserSyscalls:
    """The handlers, and the parts of the kernel that they use."""

    machine_owner: str
    users: UserTable
    changes: PolicyChanges
    clients: Clients
    lifecycle: Lifecycle

    async def user_add(self, call: CallContext, request: v.UserAdd) -> v.UserInfo:
        if not self.users.exists(request.name):
            await self.lifecycle.remove_of(request.name)  # left by a removed user of this name
        info = await self.users.add(request)
        await self.changes.apply_roles()
        return info

    def user_list(self, call: CallContext, request: v.Nothing) -> v.Users:
        return v.Users(self.users.all())

    async def user_remove(self, call: CallContext, request: v.UserRemove) -> v.Nothing:
        self._not_the_owner(request.name)
        await self.users.remove(request.name)
        await self.changes.apply_roles()
        await self.lifecycle.remove_of(request.name)
        return v.Nothing()

    async def user_role(self, call: CallContext, request: v.UserChange) -> v.UserInfo:
        self._not_the_owner(request.name)
        info = await self.users.change(request.name, request.role)
        await self.changes.apply_roles()
        return info

    async def key_create(self, call: CallContext, request: v.KeyCreate) -> v.KeyCreated:
        return await self.users.create_key(request)

    def key_list(self, call: CallContext, request: v.KeyList) -> v.Keys:
        return self.users.keys(request.user, request.after)

    async def key_revoke(self, call: CallContext, request: v.KeyRevoke) -> v.Nothing:
        await self.users.revoke(request.id)
        await self.clients.reauthorise()
        return v.Nothing()

    def _not_the_owner(self, name: str) -> None:
        """EINVAL: the user who owns the socket can read the machine's files in any case."""
        if name == self.machine_owner:
            message = f"{name} owns this machine's socket: it stays owner and cannot be removed"
            raise SyscallError(Errno.EINVAL, message, "`llmasos users list` lists the other users")
