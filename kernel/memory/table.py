"""Page tables: the mapping from the page numbers of a process to stored pages.

No I/O: the caller that changes a table also writes the change to disk. The numbers of a process are
ranges of spaces, its own space among them; a mark replaces one page of a range, removes it or pins
it. The window is the list of messages that the last call saw.

`Tables` has the tables of one owner. A change is applied in memory while its write is in flight,
under the table's lock, and undone when the write fails. Operations that decide whether a stored
page is still in use (sharing, mapping, replacing, erasing) also hold `ownership`, taken first.
"""

from bisect import bisect_right
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import anyio

from ..abi.errors import Errno, SyscallError
from ..abi.values import Role
from .schema import page_id, space_of

# A message of a window: its role, and its pages and those recalled for it, as numbers and ids.
MessageKey = tuple[Role, tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]
GONE = 0  # as a mark's page: the page was forgotten, or never written


@dataclass(slots=True)
class Range:
    """Consecutive page numbers that map to consecutive places of a space."""

    first: int
    count: int
    space: int
    place: int
    writable: bool = True
    source: str = ""  # what is mapped; "": no mapping, the pages were written here or in the parent

    @property
    def end(self) -> int:
        return self.first + self.count

    def page(self, number: int) -> int:
        return page_id(self.space, self.place + number - self.first)


@dataclass(frozen=True, slots=True)
class PageMark:
    """The state of one page number that differs from its range; forks share it."""

    page: int | None = None  # replaces the range's page; GONE: no page; None: the range's
    pinned: bool = False
    used: float = 0.0  # Unix seconds: when it was last recalled
    uses: int = 0  # how often it was recalled


@dataclass(slots=True)
class Piece:
    """A message in the window: the pages of it that are there, and pages recalled before it."""

    message: int
    role: Role
    pages: list[int]
    recalled: list[int] = field(default_factory=list[int])  # for this message

    def numbers(self) -> list[int]:
        return [*self.recalled, *self.pages]


@dataclass(frozen=True, slots=True)
class KeptWindow:
    """The window as the engine keeps it: in the newest prompt of this process, or of its parent."""

    prompt: int  # its number
    raw: bool
    keys: Sequence[MessageKey]  # of its first messages
    answered: bool = False  # the last key is that of the answer to it


@dataclass(frozen=True, slots=True)
class Title:
    """The title of a conversation, and when it was last used."""

    pages: int  # the table's `next` when the title was read
    number: int  # of the page that the title is from
    page: int  # the id of this page; 0: there is no title
    text: str
    used: float  # Unix seconds: when the newest page was written


@dataclass(slots=True)
class PageTable:
    """The address space of a process."""

    pid: int
    owner: str
    space: int  # its own space: new pages go there
    next: int = 0  # the next page number
    place: int = 0  # the next place in its own space
    messages: int = 0
    tokens: int = 0
    ranges: list[Range] = field(default_factory=list[Range])  # in ascending order of numbers
    marks: dict[int, PageMark] = field(default_factory=dict[int, PageMark])
    window: list[Piece] = field(default_factory=list[Piece])
    sizes: dict[int, int] = field(default_factory=dict[int, int])  # tokens, pages in the window
    window_tokens: int = 0  # known before the window is read
    title: Title | None = None  # read at the first `ps`
    kept: KeptWindow | None = None  # of this boot; None: the engine keeps nothing

    # --- numbers and pages ----------------------------------------------------------------------
    def at(self, number: int) -> Range | None:
        """The range that contains a number."""
        at = bisect_right(self.ranges, number, key=lambda one: one.first) - 1
        found = self.ranges[at] if at >= 0 else None
        return found if found is not None and number < found.end else None

    def page(self, number: int) -> int | None:
        """The id of the page with a number; None when there is none."""
        mark = self.marks.get(number)
        if mark is not None and mark.page is not None:
            return mark.page or None
        found = self.at(number)
        return found.page(number) if found is not None else None

    def pages(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Numbers and page ids from `first` to before `end`, in order."""
        for one in self.ranges:
            for number in range(max(first, one.first), min(end, one.end)):
                page = self.page(number)
                if page is not None:
                    yield number, page

    def number(self, page: int) -> int | None:
        """The first number of a page; None when this process does not have the page."""
        return next(self.numbers(page), None)

    def numbers(self, page: int) -> Iterator[int]:
        """Every number of a page: it may be mapped more than once."""
        space, place = space_of(page)
        for one in self.ranges:
            if one.space == space and one.place <= place < one.place + one.count:
                number = one.first + place - one.place
                if self.page(number) == page:
                    yield number
        yield from (number for number, mark in self.marks.items() if mark.page == page)

    def find(self, pages: set[int]) -> list[tuple[int, int]]:
        """Every number of each of these pages, with the page id, in order of numbers.

        The time grows with the pages to find and the marks, not with the pages of the process.
        """
        found = {(n, mark.page) for n, mark in self.marks.items() if mark.page in pages}
        by_space: dict[int, list[Range]] = {}
        for one in self.ranges:
            by_space.setdefault(one.space, []).append(one)
        for page in pages:
            space, place = space_of(page)
            for one in by_space.get(space, ()):
                number = one.first + place - one.place
                if one.first <= number < one.end and self.page(number) == page:
                    found.add((number, page))
        return sorted((number, page) for number, page in found if page)

    def changed(self, one: Range) -> bool:
        """Whether a page of this range was replaced or forgotten."""
        return any(m.page is not None and one.first <= n < one.end for n, m in self.marks.items())

    def replacements(self) -> Iterator[int]:
        """Ids of the pages that replace a page of a range."""
        return (mark.page for mark in self.marks.values() if mark.page)

    def spaces(self) -> set[int]:
        """The spaces that it has pages of, and its own space."""
        mapped = {one.space for one in self.ranges}
        return {self.space, *mapped, *(space_of(page)[0] for page in self.replacements())}

    def places_used(self, space: int) -> Iterator[tuple[int, int]]:
        """The places of a space that it uses: first and end of each run."""
        for one in self.ranges:
            if one.space != space:
                continue
            at = one.first
            for number in sorted(n for n, mark in self.marks.items() if mark.page is not None):
                if at <= number < one.end:
                    yield one.place + at - one.first, one.place + number - one.first
                    at = number + 1
            yield one.place + at - one.first, one.place + one.count
        for page in self.replacements():
            if space_of(page)[0] == space:
                yield space_of(page)[1], space_of(page)[1] + 1

    def require(self, number: int) -> int:
        """The id of the page with a number. ENOENT."""
        page = self.page(number)
        if page is None:
            message = f"process {self.pid} has no page {number}"
            hint = f"it has {self.next} page numbers; `llmasos mem {self.pid}` lists its pages"
            raise SyscallError(Errno.ENOENT, message, hint, pid=self.pid)
        return page

    def parts(self) -> list[Range]:
        """The parts of spaces that it uses, without overlaps; adjacent parts are merged."""
        found: list[Range] = []
        replacements = [Range(0, 1, *space_of(page)) for page in self.replacements()]
        for one in sorted([*self.ranges, *replacements], key=lambda one: (one.space, one.place)):
            last = found[-1] if found else None
            adjacent = last is not None and last.space == one.space
            if last is not None and adjacent and one.place <= last.place + last.count:
                last.count = max(last.count, one.place + one.count - last.place)
            else:
                found.append(Range(0, one.count, one.space, one.place))
        return found

    # --- changes --------------------------------------------------------------------------------
    def append(self, count: int) -> list[tuple[int, int]]:
        """Allocate page numbers at the end and places in its own space: numbers and ids."""
        last = self.ranges[-1] if self.ranges else None
        adjacent = (
            last is not None and last.space == self.space and last.end == self.next
            and last.place + last.count == self.place and last.writable and not last.source
        )  # fmt: skip
        if last is not None and adjacent:
            last.count += count
        else:
            self.ranges.append(Range(self.next, count, self.space, self.place))
        room = [
            (self.next + index, page_id(self.space, self.place + index)) for index in range(count)
        ]
        self.next += count
        self.place += count
        return room

    def allocate_replacement(self) -> int:
        """Allocate a place in its own space without a number, for a replacement: the id."""
        self.place += 1
        return page_id(self.space, self.place - 1)

    def map(self, space: int, place: int, count: int, *, writable: bool, source: str) -> Range:
        """Allocate page numbers at the end for pages that are stored already."""
        mapped = Range(self.next, count, space, place, writable, source)
        self.ranges.append(mapped)
        self.next += count
        return mapped

    def mapping(self, number: int) -> Range:
        """The mapping that contains a number. ENOENT."""
        found = self.at(number)
        if found is None or not found.source:
            message = f"nothing is mapped at page {number} of process {self.pid}"
            hint = f"`llmasos mem {self.pid}` lists its pages"
            raise SyscallError(Errno.ENOENT, message, hint, pid=self.pid)
        return found

    def unmap(self, found: Range) -> list[int]:
        """Remove a mapping; returns the ids of the pages that replaced pages of it."""
        self.ranges.remove(found)
        inside = [number for number in self.marks if found.first <= number < found.end]
        replaced = [page for number in inside if (page := self.marks.pop(number).page)]
        self.evict(range(found.first, found.end))
        return replaced

    def state(self, *, whole: bool) -> "PageState":
        """A snapshot for `restore`. `whole` False: only what an append changes."""
        last = self.ranges[-1].count if self.ranges else 0
        return PageState(
            (self.next, self.place, self.messages, self.tokens, self.window_tokens),
            len(self.ranges), last, self.window, dict(self.sizes),
            self.copy(0, 0) if whole else None,
        )  # fmt: skip

    def restore(self, state: "PageState") -> None:
        """Undo all changes since the snapshot."""
        self.next, self.place, self.messages, self.tokens, self.window_tokens = state.numbers
        self.window, self.sizes = state.window, state.sizes
        if state.whole is not None:
            self.ranges, self.marks = state.whole.ranges, state.whole.marks
            return
        del self.ranges[state.ranges :]
        if self.ranges:
            self.ranges[-1].count = state.last

    def mark(self, number: int) -> PageMark:
        return self.marks.get(number) or PageMark()

    def set_page(self, number: int, page: int | None) -> None:
        """Another page for a number, GONE for none, None for that of its range."""
        self.marks[number] = replace(self.mark(number), page=page)

    def pinned(self, number: int) -> bool:
        mark = self.marks.get(number)
        return mark is not None and mark.pinned

    # --- the window -----------------------------------------------------------------------------
    def resident(self) -> set[int]:
        """Numbers of the pages in the window."""
        return {number for piece in self.window for number in piece.numbers()}

    def count_window(self) -> None:
        """Update `window_tokens`; drop the sizes of pages that have left the window."""
        self.sizes = {n: self.sizes[n] for n in self.resident() if n in self.sizes}
        self.window_tokens = sum(self.sizes.values())

    def evict(self, numbers: Sequence[int] | range) -> None:
        """Take pages out of the window."""
        self.window = without(self.window, set(numbers))

    def copy(self, pid: int, space: int) -> "PageTable":
        """A table for a child: the same pages; from now on each writes to its own space."""
        return PageTable(
            pid, self.owner, space, self.next, 0, self.messages, self.tokens,
            [Range(r.first, r.count, r.space, r.place, r.writable, r.source) for r in self.ranges],
            self.marks.copy(),
            [Piece(p.message, p.role, [*p.pages], [*p.recalled]) for p in self.window],
            dict(self.sizes), self.window_tokens, kept=self.kept,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class PageState:
    """A snapshot of a table before a change."""

    numbers: tuple[int, int, int, int, int]  # next, place, messages, tokens, window_tokens
    ranges: int  # how many
    last: int  # count of the last one
    window: list[Piece]
    sizes: dict[int, int]
    whole: PageTable | None


def without(window: Sequence[Piece], numbers: set[int]) -> list[Piece]:
    """A window without some pages; a message without any page left is removed."""
    left: list[Piece] = []
    for piece in window:
        pages = [number for number in piece.pages if number not in numbers]
        recalled = [number for number in piece.recalled if number not in numbers]
        if pages or recalled:
            left.append(Piece(piece.message, piece.role, pages, recalled))
    return left


class Tables:
    """The page tables of one owner's processes."""

    def __init__(self) -> None:
        self._by_pid: dict[int, PageTable] = {}
        self._by_space: dict[int, set[int]] = {}  # space: pids
        self._spaces: dict[int, set[int]] = {}  # pid: spaces
        self._locks: dict[int, anyio.Lock] = {}  # by pid
        self.ownership = anyio.Lock()  # held while deciding whether a stored page is still in use

    def get(self, pid: int) -> PageTable | None:
        return self._by_pid.get(pid)

    def all(self) -> list[PageTable]:
        return list(self._by_pid.values())

    def add(self, table: PageTable) -> PageTable:
        self._by_pid[table.pid] = table
        self.index(table)
        return table

    def remove(self, pid: int) -> PageTable | None:
        """Remove the table of a process that was reaped, or whose fork failed."""
        table = self._by_pid.pop(pid, None)
        if table is not None:
            self.index(table)
        self._spaces.pop(pid, None)
        return table

    # --- tables by space --------------------------------------------------------------------------
    def index(self, table: PageTable) -> None:
        """Update the index of tables by space after a change of a table."""
        before = self._spaces.get(table.pid, set())
        after = table.spaces() if table.pid in self._by_pid else set[int]()
        for space in before - after:
            pids = self._by_space[space]
            pids.discard(table.pid)
            if not pids:
                del self._by_space[space]
        for space in after - before:
            self._by_space.setdefault(space, set()).add(table.pid)
        self._spaces[table.pid] = after

    def using(self, space: int) -> list[PageTable]:
        """The tables that have pages of a space, or write to it."""
        return [self._by_pid[pid] for pid in sorted(self._by_space.get(space, ()))]

    # --- locks ------------------------------------------------------------------------------------
    def lock(self, pid: int) -> anyio.Lock:
        return self._locks.setdefault(pid, anyio.Lock())

    def unlock(self, pids: Iterable[int]) -> None:
        """Drop the locks of processes that were reaped."""
        for pid in pids:
            self._locks.pop(pid, None)

    @asynccontextmanager
    async def changing(self, table: PageTable, *, whole: bool = True) -> AsyncGenerator[None]:
        """Hold the table's lock for one change; undo the change when the body raises.

        `whole` False: the change is an append only. ESRCH: the process was reaped meanwhile.
        """
        async with self.lock(table.pid):
            if self._by_pid.get(table.pid) is not table:
                message = f"process {table.pid} was removed"
                raise SyscallError(Errno.ESRCH, message, "`llmasos ps` lists processes")
            before = table.state(whole=whole)
            try:
                yield
            except BaseException:
                table.restore(before)
                raise
            finally:
                if whole:
                    self.index(table)
