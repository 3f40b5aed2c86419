"""Users and their keys: who may come, and as whom."""

from .. import values as v
from ..errors import Errno, SyscallError
from ..machine import Machine
from .call import Call


async def user_add(m: Machine, call: Call, request: v.UserAdd) -> v.UserInfo:
    if not m.users.knows(request.name):
        await m.evict(request.name)  # calls of a removed one that ended late
    info = await m.users.add(request)
    await m.reidentify()
    return info


def user_list(m: Machine, call: Call, request: v.Nothing) -> v.Users:
    return v.Users(m.users.all())


async def user_remove(m: Machine, call: Call, request: v.UserRemove) -> v.Nothing:
    _not_the_owner(m, request.name)
    await m.users.remove(request.name)
    await m.reidentify()
    await m.evict(request.name)
    return v.Nothing()


async def user_role(m: Machine, call: Call, request: v.UserChange) -> v.UserInfo:
    _not_the_owner(m, request.name)
    info = await m.users.change(request.name, request.role)
    await m.reidentify()
    return info


async def key_create(m: Machine, call: Call, request: v.KeyCreate) -> v.KeyCreated:
    return await m.users.create_key(request)


def key_list(m: Machine, call: Call, request: v.KeyList) -> v.Keys:
    return m.users.keys(request.user, request.after)


async def key_revoke(m: Machine, call: Call, request: v.KeyRevoke) -> v.Nothing:
    await m.users.revoke(request.id)
    await m.review()
    return v.Nothing()


def _not_the_owner(m: Machine, name: str) -> None:
    """Whose socket it is can read its files anyway: pretending otherwise would be a lie."""
    if name == m.owner:
        words = f"{name} owns this machine's socket and stays its owner"
        raise SyscallError(Errno.EINVAL, words, "`llmasos users list` shows the others")
