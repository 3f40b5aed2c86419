"""The syscalls about pages and messages, as methods of the client."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypedDict, TypeVar, Unpack

from llmasos.kernel import values as v

T = TypeVar("T")


class ReadOptions(TypedDict, total=False):
    """Which pages are read."""

    first: int  # number
    count: int
    key: str
    since: float | None  # Unix seconds
    until: float | None
    texts: bool  # False: the pages' texts are left out


class WriteOptions(TypedDict, total=False):
    """What is said of a page that is written."""

    page: int | None  # in the place of this one
    key: str  # as what this stands for
    speaker: str  # who said it, which nobody checks; empty: you
    time: float | None  # Unix seconds: when; None: now
    session: str
    labels: list[str]


class SearchOptions(TypedDict, total=False):
    """Which pages are looked at, and how many are told."""

    count: int
    tokens: int  # the best that fit; 0: no such limit
    author: str  # or speaker
    since: float | None
    until: float | None
    label: str
    kinds: list[v.Kind]
    texts: bool  # False: the pages' texts are left out
    way: str  # both, words, meaning, recency
    outside: bool  # only pages outside the window


def _named(path: os.PathLike[str]) -> str:
    """A file of this machine in the kernel's names."""
    return f"/files{os.path.abspath(path)}"


class MemoryCalls(ABC):
    """What AsyncLLMasOS can do with pages and mailboxes."""

    @abstractmethod
    async def _call(self, name: str, request: object, reply: type[T]) -> T: ...

    async def read_mem(self, pid: int, **options: Unpack[ReadOptions]) -> v.Pages:
        """Pages of a process; `next` is the `first` of the rest when the reply was cut. ESRCH."""
        return await self._call("read_mem", v.ReadMem(pid, **options), v.Pages)

    async def write_mem(self, pid: int, text: str, **options: Unpack[WriteOptions]) -> list[int]:
        """Write a text as pages; their numbers. They are outside the window until they are needed.

        ENOENT for a page that is not there, EACCES for one that is mapped read-only, E2BIG.
        """
        asked = v.WriteMem(pid, text, **options)
        return (await self._call("write_mem", asked, v.Written)).pages

    async def search_mem(self, pid: int, question: str, **options: Unpack[SearchOptions]) -> v.Hits:
        """Pages that answer best, by words and meaning; `note` says what was not possible."""
        return await self._call("search_mem", v.SearchMem(pid, question, **options), v.Hits)

    async def pin(self, pid: int, first: int, count: int = 1, *, pinned: bool = True) -> v.Nothing:
        """Keep pages in the window, or let them leave again.

        ENOENT; E2BIG when they would take more than half of it.
        """
        return await self._call("pin", v.Pin(pid, first, count, pinned), v.Nothing)

    async def evict(self, pid: int, first: int, count: int = 1) -> v.Nothing:
        """Take pages out of the window now. ENOENT, EBUSY for one that is pinned."""
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
        """Map a document or a folder, or another process's pages; nothing is stored twice.

        `source` is a Path of this machine, or in the kernel's names "/files/PATH" or
        "/proc/PID/mem"; `first` and `count` choose among the pages of a process (0: all).

        A change of a page makes one of its own, never of the file; `writable=False` refuses it. A
        document that has changed takes the place of what this process had mapped of it, with what
        was written there. ENOENT, EACCES, E2BIG; EINVAL for what is no text.
        """
        name = source if isinstance(source, str) else _named(source)
        asked = v.Mmap(pid, name, first, count, writable)
        return await self._call("mmap", asked, v.Mapped)

    async def munmap(self, pid: int, first: int) -> v.Nothing:
        """Take the mapping away that this page is of. ENOENT."""
        return await self._call("munmap", v.Munmap(pid, first), v.Nothing)

    async def share(
        self, pid: int, to: int, first: int, count: int = 1, *, writable: bool = False
    ) -> v.Mapped:
        """Give pages to another process, which sees them as they are now. ENOENT, EACCES."""
        return await self._call("share", v.Share(pid, to, first, count, writable), v.Mapped)

    async def forget(
        self, pid: int, first: int = 0, count: int = 1, *, key: str = ""
    ) -> v.Forgotten:
        """Erase pages for everybody who has them, with every copy derived of them. ENOENT, EIO."""
        return await self._call("forget", v.Forget(pid, first, count, key), v.Forgotten)

    async def trace_mem(self, pid: int, page: int) -> v.Trace:
        """When a page was in the window, why it left, and what brought it back. ENOENT."""
        return await self._call("trace_mem", v.TraceMem(pid, page), v.Trace)

    async def fsck(self, *, rebuild: bool = False) -> v.Checked:
        """Check the indexes of your pages; `rebuild` makes them anew. EIO."""
        return await self._call("fsck", v.Fsck(rebuild), v.Checked)

    async def send(
        self, pid: int, body: str, *, sender: int = 0, labels: Sequence[str] = ()
    ) -> v.Sent:
        """Send a message to a process. EAGAIN when its mailbox is full."""
        return await self._call("send", v.Send(pid, body, sender, list(labels)), v.Sent)

    async def recv(
        self, pid: int, timeout_s: float | None = None, *, done: int = 0, take: bool = True
    ) -> v.Mail:
        """The oldest message of a process's mailbox; waits for one. ETIMEDOUT.

        Asking for the next one says that the last is dealt with; `done` says it by number, and
        `take=False` says only that. A message that was not dealt with comes again.
        """
        return await self._call("recv", v.Recv(pid, timeout_s, done, take), v.Mail)
