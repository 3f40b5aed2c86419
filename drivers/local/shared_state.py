"""A saved context in shared memory. Imported in child processes only."""

from collections.abc import Iterator
from dataclasses import dataclass

from llmasos.kernel.abi.errors import DeviceFault

from .shared_memory import (
    HEADER_BYTES,
    ContextHeader,
    Region,
    SharedMemory,
    checksum,
    decoded,
    mismatch,
)


@dataclass(slots=True)
class SharedState:
    """Implements SavedState: bytes in shared memory."""

    memory: SharedMemory
    region: Region
    header: ContextHeader  # what it has to be
    trusted: bool  # this process has made it

    @property
    def nbytes(self) -> int:
        return self.header.size

    def pieces(self) -> Iterator[memoryview]:
        raise DeviceFault("the context is in shared memory already")

    def free(self) -> None:
        self.memory.free(self.region)

    def problem(self) -> str:
        """Why it must not be loaded; empty: it is what it has to be."""
        if self.trusted:
            return ""
        try:
            with self.memory.map(self.region) as mapped:
                found = decoded(mapped[:HEADER_BYTES])
                if found is None:
                    return "its header is damaged"
                if reason := mismatch(found, self.header):
                    return reason
            self.trusted = checksum(self.payload()) == found.checksum
        except DeviceFault as error:
            return error.message
        return "" if self.trusted else "its checksum is wrong"

    def payload(self) -> memoryview:
        """Its bytes, mapped until this is not used any more."""
        return memoryview(self.memory.map(self.region))[HEADER_BYTES:][: self.header.size]
