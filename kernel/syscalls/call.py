"""The context of a syscall in flight: the first argument of every handler."""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

from ..access.identity import Caller
from ..owners.owner import Owner
from ..process.table import Process


class CallContext(NamedTuple):
    """The caller of a syscall, and how to stream to it."""

    caller: Caller
    owner: Owner  # the caller's data: open in calls of OWNER_CALLS, else perhaps closed
    number: int  # of its begin entry in the journal; 0 for calls without begin and end
    begun: Awaitable[None] | None  # completes when that entry is written
    send: Callable[[object], None]  # never waits
    keeps_up: Callable[[], bool]  # False: the reader is slow
    writable: Callable[[], Awaitable[None]]  # waits for a slow reader
    own: bool = False  # in lists and the journal, only rows of the caller's own application
    pid: int = 0  # that its events have: of its request, or of the process of a single answer


class Summariser(Protocol):
    """Summarises the pages that leave windows."""

    def call_begins(self, process: Process) -> None:
        """The process has a call now: a summary of its pages must not compete with it."""

    def call_ended(self, process: Process, evicted: Sequence[int]) -> None:
        """The call has evicted these pages from the window of its process."""

    def pages_forgotten(self, owner: str) -> None:
        """Pages of an owner were erased: no summary may be made of what was read before."""
