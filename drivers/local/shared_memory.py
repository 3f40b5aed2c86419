"""Memory for saved contexts that outlives the process of an engine.

It is a memory file without a name: the kernel creates one for each engine, each process of the
engine inherits its descriptor, and the system frees it when the last of them closes it. A region is
used once and then freed, so the size of the file only grows; what was freed takes no memory. Each
region begins with a header that says which engine made its contents, from which file and tokens,
and with their checksum. Used on both sides of the link.
"""

import json
import mmap
import os
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import NamedTuple

from llmasos.kernel.abi.errors import DeviceFault

HEADER_BYTES = 1024
_FORMAT = 1


class Region(NamedTuple):
    """A part of the file: whole pages."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class ContextHeader:
    """What a saved context is. It is loaded only where all of this is as expected."""

    file: str  # fingerprint of the model's file
    engine: str  # its name and version
    settings: str  # digest of those that change results
    tokens: str  # digest of its tokens
    count: int  # of its tokens
    size: int  # bytes after the header
    checksum: int  # CRC-32 of these bytes
    format: int = _FORMAT

    def encode(self) -> bytes:
        """HEADER_BYTES bytes."""
        return json.dumps(asdict(self)).encode().ljust(HEADER_BYTES)


def decoded(data: bytes) -> ContextHeader | None:
    """The header in these bytes; None when it is damaged."""
    try:
        header = ContextHeader(**json.loads(data))
    except (ValueError, TypeError):
        return None
    return header


def mismatch(found: ContextHeader, expected: ContextHeader) -> str:
    """Why a context is not the expected one; empty: it is. The checksum is not compared."""
    reasons = {
        "format": "it has another format",
        "file": "it is of another file",
        "engine": "it is of another engine or version",
        "settings": "it is of an engine with other settings",
        "tokens": "it is of other tokens",
        "count": "it is of other tokens",
        "size": "it has another size",
    }
    for field, reason in reasons.items():
        if getattr(found, field) != getattr(expected, field):
            return reason
    return ""


class SharedMemory:
    """The file. One process at a time allocates."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def create(cls) -> "SharedMemory | None":
        """A new file; None where the system has none without a name."""
        if not hasattr(os, "memfd_create") or not hasattr(mmap, "MADV_REMOVE"):
            return None
        return cls(os.memfd_create("llmasos-contexts"))

    @property
    def used_bytes(self) -> int:
        """The memory that it takes."""
        return os.fstat(self.fd).st_blocks * 512

    def allocate(self, size: int) -> Region:
        """A new region at the end. DeviceFault when the system refuses."""
        begin = os.fstat(self.fd).st_size
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            os.ftruncate(self.fd, begin + size)
        except OSError as error:
            raise DeviceFault(f"no shared memory of {size} bytes: {error.strerror}") from error
        return Region(begin, size)

    def map(self, region: Region) -> mmap.mmap:
        """Its bytes. DeviceFault when it is not a part of the file."""
        offset, size = region
        if min(offset, size - 1) < 0 or offset + size > os.fstat(self.fd).st_size:
            raise DeviceFault(f"no region of {size} bytes at {offset}")
        try:
            return mmap.mmap(self.fd, size, offset=offset)
        except (OSError, ValueError) as error:
            raise DeviceFault(f"cannot map {size} bytes of shared memory: {error}") from error

    def free(self, region: Region) -> None:
        """Give its memory back, if there is a descriptor for that. Its bytes are 0 from then on."""
        with suppress(DeviceFault, OSError), self.map(region) as mapped:
            mapped.madvise(mmap.MADV_REMOVE)

    def free_others(self, kept: Iterable[Region]) -> None:
        """Give the memory of all other regions back."""
        at = 0
        for region in sorted([*kept, Region(os.fstat(self.fd).st_size, 0)]):
            if region.offset > at:
                self.free(Region(at, region.offset - at))
            at = region.offset + region.size

    def close(self) -> None:
        """This process uses it no more."""
        os.close(self.fd)


def checksum(data: bytes | bytearray | memoryview, before: int = 0) -> int:
    """The CRC-32 of bytes, after bytes whose CRC-32 is `before`: 2 GB a second."""
    return zlib.crc32(data, before)
