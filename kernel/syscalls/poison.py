"""Calls that crashed their engines: what is held against them, and how that ends."""

from .. import suspect
from .. import values as v
from ..errors import Errno, SyscallError
from ..limits import POISON_S
from ..machine import Machine
from ..suspect import Mark
from .call import Call


def poison_list(m: Machine, call: Call, request: v.Nothing) -> v.Poisons:
    return _told(m.scheduler.suspects.marks())


async def poison_lift(m: Machine, call: Call, request: v.PoisonLift) -> v.Poisons:
    """Returns what was held against them."""
    if bool(request.id) == request.all:
        raise SyscallError(Errno.EINVAL, "poison_lift: give an id, or all")
    marks = m.scheduler.suspects.marks()
    chosen = {c: mark for c, mark in marks.items() if c.hex().startswith(request.id)}
    if not chosen and request.id:
        hint = "`llmasos poison list` shows them"
        raise SyscallError(Errno.ENOENT, f"nothing is held against a call {request.id}", hint)
    if len(chosen) > 1 and not request.all:
        words = f"{len(chosen)} calls begin with {request.id}"
        raise SyscallError(Errno.EINVAL, words, "give more of the id")
    await m.scheduler.suspects.lift(list(chosen))
    m.scheduler.judge()
    return _told(chosen)


def _told(marks: dict[bytes, Mark]) -> v.Poisons:
    return v.Poisons([
        v.PoisonInfo(suspect.name(call), mark.model, mark.owner, mark.poison, mark.since,
                     mark.since + POISON_S, mark.reason)
        for call, mark in marks.items()
    ])  # fmt: skip
