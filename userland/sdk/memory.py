"""The syscalls about pages and messages, as methods of the client."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypedDict, TypeVar, Unpack

from llmasos.kernel.abi import values as v

T = TypeVar("T")


class ReadOptions(TypedDict, total=False):
    """Which pages `read_mem` returns."""

    first: int  # number of the first page
    count: int
    key: str
    since: float | None  # Unix seconds
    until: float | None
    texts: bool  # False: leave out the pages' texts


class WriteOptions(TypedDict, total=False):
    """Attributes of the pages that `write_mem` writes."""

    page: int | None  # replace this page
    key: str  # a name to read the page by; replaces the page that has it
    speaker: str  # who said it, not verified; empty: you
    time: float | None  # Unix seconds; None: now
    session: str
    labels: list[str]


class SearchOptions(TypedDict, total=False):
    """Which pages `search_mem` considers, and how many it returns."""

    count: int  # pages at most
    tokens: int  # tokens at most, best pages first; 0: no limit
    author: str  # or speaker
    since: float | None  # Unix seconds
    until: float | None
    label: str
    kinds: list[v.Kind]
    texts: bool  # False: leave out the pages' texts
    way: str  # both, words, meaning, recency
    outside: bool  # only pages outside the window


def _named(path: os.PathLike[str]) -> str:
    """The kernel's name of a file on this machine."""
    return f"/files{os.path.abspath(path)}"


class MemoryCalls(ABC):
    """The methods of AsyncLLMasOS for pages and mailboxes."""

    @abstractmethod
    async def _call(self, name: str, request: object, reply: type[T]) -> T: ...

    async def read_mem(self, pid: int, **options: Unpack[ReadOptions]) -> v.Pages:
        """Pages of a process. `next` is the `first` of the next call; None at the end. ESRCH."""
        return await self._call("read_mem", v.ReadMem(pid, **options), v.Pages)

    async def write_mem(self, pid: int, text: str, **options: Unpack[WriteOptions]) -> list[int]:
        """Write a text as pages and return their numbers. They enter the window on demand.

        ENOENT for a page that does not exist, EACCES for a page mapped read-only, E2BIG.
        """
        asked = v.WriteMem(pid, text, **options)
        return (await self._call("write_mem", asked, v.Written)).pages

    async def search_mem(self, pid: int, question: str, **options: Unpack[SearchOptions]) -> v.Hits:
        """The pages that match the question best, by words and meaning, best first.

        `note` says what was not searched and why. ESRCH.
        """
        return await self._call("search_mem", v.SearchMem(pid, question, **options), v.Hits)

    async def pin(self, pid: int, first: int, count: int = 1, *, pinned: bool = True) -> v.Nothing:
        """Pin pages in the window; `pinned=False` unpins them.

        ENOENT; E2BIG when pinned pages would take more than half of the window.
        """
        return await self._call("pin", v.Pin(pid, first, count, pinned), v.Nothing)

    async def evict(self, pid: int, first: int, count: int = 1) -> v.Nothing:
        """Evict pages from the window. ENOENT; EBUSY for a pinned page."""
        return await self._call("evict", v.Evict(pid, first, count), v.Nothing)

    async def mmap(
        self,
        pid: int,
        source: str | os.PathLike[str],
        *,
        first: int = 0,
        count: int = 0,
        writable: bool = True,
    ) -> v.Mapped:
        """Map a document, a folder, or another process's pages. Nothing is stored twice.

        `source` is a Path on this machine, or the kernel's name "/files/PATH" or "/proc/PID/mem".
        `first` and `count` select pages of a process (`count` 0: all).

        Writing to a mapped page makes a private copy and never changes the file; `writable=False`
        forbids it. Mapping a changed document again replaces the earlier mapping, including what
        was written to it. ENOENT, EACCES, E2BIG; EINVAL for a file that is not text.
        """
        name = source if isinstance(source, str) else _named(source)
        asked = v.Mmap(pid, name, first, count, writable)
        return await self._call("mmap", asked, v.Mapped)

    async def munmap(self, pid: int, first: int) -> v.Nothing:
        """Remove the mapping that contains the page `first`. ENOENT."""
        return await self._call("munmap", v.Munmap(pid, first), v.Nothing)

    async def share(
        self, pid: int, to: int, first: int, count: int = 1, *, writable: bool = False
    ) -> v.Mapped:
        """Share pages, in their current state, with the process `to`. ENOENT, EACCES."""
        return await self._call("share", v.Share(pid, to, first, count, writable), v.Mapped)

    async def forget(
        self, pid: int, first: int = 0, count: int = 1, *, key: str = ""
    ) -> v.Forgotten:
        """Erase pages in every process that has them, with every copy derived from them.

        By number, or by `key`. ENOENT, EIO.
        """
        return await self._call("forget", v.Forget(pid, first, count, key), v.Forgotten)

    async def trace_mem(self, pid: int, page: int) -> v.Trace:
        """When a page was in the window, why it was evicted and what brought it back. ENOENT."""
        return await self._call("trace_mem", v.TraceMem(pid, page), v.Trace)

    async def fsck(self, *, rebuild: bool = False) -> v.Checked:
        """Check the indexes of your pages; `rebuild` builds them again. EIO."""
        return await self._call("fsck", v.Fsck(rebuild), v.Checked)

    async def send(
        self, pid: int, body: str, *, sender: int = 0, labels: Sequence[str] = ()
    ) -> v.Sent:
        """Send a message to a process. EAGAIN when its mailbox is full."""
        return await self._call("send", v.Send(pid, body, sender, list(labels)), v.Sent)

    async def recv(
        self, pid: int, timeout_s: float | None = None, *, done: int = 0, take: bool = True
    ) -> v.Mail:
        """Wait for the oldest message in a process's mailbox. ETIMEDOUT after `timeout_s` seconds.

        The next call acknowledges the previous message. `done` acknowledges a message by number;
        with `take=False` the call does only that. An unacknowledged message is delivered again.
        """
        return await self._call("recv", v.Recv(pid, timeout_s, done, take), v.Mail)
