"""The context of a syscall in flight: the first argument of every handler."""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

from ..access.identity import Caller
from ..owners.owner import Owner
from ..process.table import Process


class CallContext(NamedTuple):
    """The caller of a syscall, and how to stream to it."""

    caller: Caller
    data: Owner  # of the caller's user: open in CALLS_ON_USER_DATA, else perhaps closed
    number: int  # of its begin entry in the journal; 0 for calls without begin and end
    begun: Awaitable[None] | None  # completes when that entry is written
    send: Callable[[object], None]  # never waits
    keeps_up: Callable[[], bool]  # False: the reader is slow
    writable: Callable[[], Awaitable[None]]  # waits for a slow reader
    own_part_only: bool = (
        False  # in lists and the journal, only rows of the caller's own application
    )
    pid: int = 0  # in its journal events; for `generate` on a model: of the process made for it


class Summariser(Protocol):
    """Summarises the pages that leave windows."""

    def call_begins(self, process: Process) -> None:
        """The process has a call now: a summary of its pages must not compete with it."""

    def call_ended(self, process: Process, evicted: Sequence[int]) -> None:
        """The call has evicted these pages from the window of its process."""

    def pages_forgotten(self, owner: str) -> None:
        """Pages of an owner were erased: no summary may be made of what was read before."""
