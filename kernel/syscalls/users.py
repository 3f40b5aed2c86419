"""Users, their roles and their keys."""

from ..abi import values as v
from ..abi.errors import Errno, SyscallError
from ..machine import Machine
from .call import CallContext


async def user_add(m: Machine, call: CallContext, request: v.UserAdd) -> v.UserInfo:
    if not m.users.exists(request.name):
        await m.remove_processes(request.name)  # left by a removed user of this name
    info = await m.users.add(request)
    await m.apply_role_changes()
    return info


def user_list(m: Machine, call: CallContext, request: v.Nothing) -> v.Users:
    return v.Users(m.users.all())


async def user_remove(m: Machine, call: CallContext, request: v.UserRemove) -> v.Nothing:
    _not_the_owner(m, request.name)
    await m.users.remove(request.name)
    await m.apply_role_changes()
    await m.remove_processes(request.name)
    return v.Nothing()


async def user_role(m: Machine, call: CallContext, request: v.UserChange) -> v.UserInfo:
    _not_the_owner(m, request.name)
    info = await m.users.change(request.name, request.role)
    await m.apply_role_changes()
    return info


async def key_create(m: Machine, call: CallContext, request: v.KeyCreate) -> v.KeyCreated:
    return await m.users.create_key(request)


def key_list(m: Machine, call: CallContext, request: v.KeyList) -> v.Keys:
    return m.users.keys(request.user, request.after)


async def key_revoke(m: Machine, call: CallContext, request: v.KeyRevoke) -> v.Nothing:
    await m.users.revoke(request.id)
    await m.reauthorise_all()
    return v.Nothing()


def _not_the_owner(m: Machine, name: str) -> None:
    """EINVAL: the user who owns the socket can read the machine's files in any case."""
    if name == m.owner:
        message = f"{name} owns this machine's socket: it stays owner and cannot be removed"
        raise SyscallError(Errno.EINVAL, message, "`llmasos users list` lists the other users")
