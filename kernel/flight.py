"""A call in flight: what the connection keeps of it, and its lines in the journal."""

import logging
from dataclasses import dataclass, replace

import anyio

from .abi import Durability, Syscall
from .errors import Denied, Errno, SyscallError, exhausted
from .identity import Caller
from .journal import Entry
from .permit import Permit

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Flight:
    """A call on its way."""

    scope: anyio.CancelScope
    permit: Permit
    pid: int  # that it is about
    counted: int  # bytes of its request, in the load of its user
    refusal: Denied | None = None  # it was allowed, and is not any more


def entry_of(caller: Caller, request: object, given: Permit) -> Entry:
    return Entry(
        "call", getattr(request, "pid", 0), caller.owner, syscall=given.action,
        object=given.object, subject=given.told,
    )  # fmt: skip


def is_work(row: Syscall) -> bool:
    """Worth waiting for when the machine goes down: `wait` waits for what may never come."""
    return row.durability is not Durability.C and row.name != "wait"


def as_kind(entry: Entry, kind: str, call: int = 0, error: SyscallError | None = None) -> Entry:
    return replace(entry, kind=kind, call=call, errno=int(error.errno) if error else 0)


def unforeseen(name: str, error: Exception) -> SyscallError:
    """EIO, and a traceback in the log; EAGAIN for want of a descriptor."""
    refusal = exhausted(error)
    if refusal is not None:
        return refusal
    log.exception("%s failed in a way nobody foresaw", name)
    return inside(name)


def inside(name: str) -> SyscallError:
    return SyscallError(
        Errno.EIO, f"{name} failed inside the kernel", "`llmasos daemon logs` has the traceback"
    )
