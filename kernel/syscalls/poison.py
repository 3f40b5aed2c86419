"""The marks of calls that crashed their engines: list and lift."""

from ..abi import values as v
from ..abi.errors import Errno, SyscallError
from ..abi.limits import POISON_S
from ..machine import Machine
from ..scheduling import quarantine
from ..scheduling.quarantine import SuspectMark
from .call import CallContext


def poison_list(m: Machine, call: CallContext, request: v.Nothing) -> v.Poisons:
    return _poisons(m.loader.quarantine.marks())


async def poison_lift(m: Machine, call: CallContext, request: v.PoisonLift) -> v.Poisons:
    """Remove marks; returns the removed ones."""
    if bool(request.id) == request.all:
        raise SyscallError(Errno.EINVAL, "poison_lift needs either an id or all")
    marks = m.loader.quarantine.marks()
    chosen = {c: mark for c, mark in marks.items() if c.hex().startswith(request.id)}
    if not chosen and request.id:
        hint = "`llmasos poison list` lists the ids"
        raise SyscallError(Errno.ENOENT, f"no quarantined call {request.id}", hint)
    if len(chosen) > 1 and not request.all:
        message = f"{len(chosen)} ids begin with {request.id}"
        raise SyscallError(Errno.EINVAL, message, "give more digits of the id")
    await m.loader.quarantine.lift(list(chosen))
    m.loader.apply_quarantine()
    return _poisons(chosen)


def _poisons(marks: dict[bytes, SuspectMark]) -> v.Poisons:
    return v.Poisons([
        v.PoisonInfo(quarantine.name(call), mark.model, mark.owner, mark.poison, mark.since,
                     mark.since + POISON_S, mark.reason)
        for call, mark in marks.items()
    ])  # fmt: skip
