"""The marks of calls that crashed their engines: list and lift."""

from dataclasses import dataclass

from ..abi import values as v
from ..abi.errors import Errno, SyscallError
from ..abi.limits import POISON_S
from ..scheduling import quarantine
from ..scheduling.loader import Loader
from ..scheduling.quarantine import SuspectMark
from .call import CallContext


@dataclass(frozen=True, slots=True)
class PoisonSyscalls:
    """The handlers, and the parts of the kernel that they use."""

    loader: Loader

    def poison_list(self, call: CallContext, request: v.Nothing) -> v.Poisons:
        return _poisons(self.loader.quarantine.marks())

    async def poison_lift(self, call: CallContext, request: v.PoisonLift) -> v.Poisons:
        """Remove marks; returns the removed ones."""
        if bool(request.id) == request.all:
            raise SyscallError(Errno.EINVAL, "poison_lift needs either an id or all")
        marks = self.loader.quarantine.marks()
        chosen = {c: mark for c, mark in marks.items() if c.hex().startswith(request.id)}
        if not chosen and request.id:
            hint = "`llmasos poison list` lists the ids"
            raise SyscallError(Errno.ENOENT, f"no quarantined call {request.id}", hint)
        if len(chosen) > 1 and not request.all:
            message = f"{len(chosen)} ids begin with {request.id}"
            raise SyscallError(Errno.EINVAL, message, "give more digits of the id")
        await self.loader.quarantine.lift(list(chosen))
        self.loader.apply_quarantine()
        return _poisons(chosen)


def _poisons(marks: dict[bytes, SuspectMark]) -> v.Poisons:
    return v.Poisons([
        v.PoisonInfo(quarantine.name(call), mark.model, mark.owner, mark.poison, mark.since,
                     mark.since + POISON_S, mark.reason)
        for call, mark in marks.items()
    ])  # fmt: skip
