"""The kernel's side of parked calls: they continue in the next process when the engine's one dies.

The process reports the state of each call that it parks, and where its context is once it is in
shared memory. What is here is sent to the next process as it is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmasos.drivers.frames import Frame

from . import frames
from .answers import CheckedText
from .shared_memory import Region, SharedMemory


@dataclass(slots=True)
class ParkedCall:
    """A parked call, as its process reported it."""

    domain: str
    fields: list[Any]  # of PARKED, after its type
    region: Region | None = None  # its context in shared memory
    granted: int = 0  # tokens granted and not yet reported, when the process died
    text: CheckedText | None = None  # its answer, if that is checked when it is complete
    tainted: bool = False  # its domain was purged since
    cancelled: bool = False  # perhaps without its process
    dropped: bool = False  # its context was given up: its tokens are computed again

    def restore(self) -> Frame:
        """RESTORE for the next process."""
        region = None if self.region is None else list(self.region)
        return [frames.RESTORE, *self.fields, region, self.granted, self.tainted]


class ParkedCalls:
    """The parked calls of one engine, with the shared memory of all its processes."""

    def __init__(self) -> None:
        self._calls: dict[int, ParkedCall] = {}
        self.memory: SharedMemory | None = None  # before the first process

    def open(self) -> None:
        """There will be a process."""
        if self.memory is None:
            self.memory = SharedMemory.create()

    @property
    def numbers(self) -> frozenset[int]:
        return frozenset(self._calls)

    def items(self) -> Iterator[tuple[int, ParkedCall]]:
        return iter(self._calls.items())

    def parked(self, fields: list[Any]) -> None:
        """PARKED was received."""
        self._calls[fields[0]] = ParkedCall(fields[2], fields)

    def shared(self, call: int, region: Region) -> None:
        """SHARED was received."""
        found = self._calls.get(call)
        if found is not None and not (found.tainted or found.dropped):
            found.region = region

    def drop_context(self, call: int) -> None:
        """Its process was told to give its context up."""
        found = self._calls.get(call)
        if found is not None:
            found.dropped, found.region = True, None

    def drop(self, call: int) -> None:
        """The call has ended, or is not parked any more. Its process frees its context."""
        self._calls.pop(call, None)

    def purge(self, domain: str) -> None:
        """A part of the domain's data was erased: its contexts are not used any more."""
        for one in self._calls.values():
            if one.domain == domain:
                one.tainted, one.region = True, None

    def cancel(self, call: int) -> None:
        """End the call as soon as there is a process."""
        if call in self._calls:
            self._calls[call].cancelled = True

    def clear(self) -> None:
        """All calls have ended."""
        self._calls.clear()

    def free_unused(self) -> None:
        """Free the memory that no parked call uses. Only while there is no process."""
        if self.memory is not None:
            self.memory.free_others(
                [one.region for one in self._calls.values() if one.region is not None]
            )

    def close(self) -> None:
        """The engine is not used any more."""
        self.clear()
        if self.memory is not None:
            self.memory.close()
            self.memory = None
