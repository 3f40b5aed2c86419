"""Page tables: which stored page stands behind which number of a process.

Pure, apart from being changed: what is on disk is written by whoever changes a table, in the same
turn. A process's numbers are ranges of spaces, its own among them; a mark replaces one page of a
range, takes it away, or pins it. What a call saw last is the table's window.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..errors import Errno, SyscallError
from ..values import Role
from .schema import page_id, space_of

GONE = 0  # as a mark's page: it was forgotten, or never written


@dataclass(slots=True)
class Range:
    """Numbers that stand for a part of a space, in its order."""

    first: int
    count: int
    space: int
    place: int
    writable: bool = True
    source: str = ""  # what was mapped; "": nothing, it was written here or in the parent

    @property
    def end(self) -> int:
        return self.first + self.count

    def page(self, number: int) -> int:
        return page_id(self.space, self.place + number - self.first)


@dataclass(slots=True)
class Mark:
    """What is particular about one page of a process."""

    page: int | None = None  # instead of the range's; GONE: none
    pinned: bool = False
    used: float = 0.0  # Unix seconds: when a request last brought it back
    uses: int = 0  # times


@dataclass(slots=True)
class Piece:
    """A message as it stands in the window: maybe not all of it, maybe with pages before it."""

    message: int
    role: Role
    pages: list[int]
    recalled: list[int] = field(default_factory=list[int])  # that came with it

    def numbers(self) -> list[int]:
        return [*self.recalled, *self.pages]


@dataclass(frozen=True, slots=True)
class Title:
    """What a conversation is called, and when it was used last."""

    pages: int  # numbers that the table had when it was read
    number: int  # of the page that it is from
    page: int  # its id; 0: no user has said anything
    words: str
    used: float  # Unix seconds: when the newest page was written


@dataclass(slots=True)
class Table:
    """The address space of a process."""

    pid: int
    owner: str
    space: int  # where it writes
    next: int = 0  # number
    place: int = 0  # the next one of its space
    messages: int = 0
    tokens: int = 0
    ranges: list[Range] = field(default_factory=list[Range])  # by number
    marks: dict[int, Mark] = field(default_factory=dict[int, Mark])
    window: list[Piece] = field(default_factory=list[Piece])
    sizes: dict[int, int] = field(default_factory=dict[int, int])  # tokens of the pages in it
    held: int = 0  # tokens in it; known before the window is read
    title: Title | None = None  # read when `ps` asks for it

    # --- numbers and pages ----------------------------------------------------------------------
    def at(self, number: int) -> Range | None:
        """The range that a number is in."""
        at = bisect_right(self.ranges, number, key=lambda one: one.first) - 1
        found = self.ranges[at] if at >= 0 else None
        return found if found is not None and number < found.end else None

    def page(self, number: int) -> int | None:
        """The stored page behind a number; None when there is none."""
        mark = self.marks.get(number)
        if mark is not None and mark.page is not None:
            return mark.page or None
        found = self.at(number)
        return found.page(number) if found is not None else None

    def pages(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Numbers and their pages, in order."""
        for one in self.ranges:
            for number in range(max(first, one.first), min(end, one.end)):
                page = self.page(number)
                if page is not None:
                    yield number, page

    def number(self, page: int) -> int | None:
        """The first number that stands for a page; None when this process does not have it."""
        return next(self.numbers(page), None)

    def numbers(self, page: int) -> Iterator[int]:
        """Every number that stands for a page: it may be mapped twice."""
        space, place = space_of(page)
        for one in self.ranges:
            if one.space == space and one.place <= place < one.place + one.count:
                number = one.first + place - one.place
                if self.page(number) == page:
                    yield number
        yield from (number for number, mark in self.marks.items() if mark.page == page)

    def find(self, pages: set[int]) -> list[tuple[int, int]]:
        """Every number that stands for one of some pages, and the page, in order.

        It takes as long as there are pages to find and marks, not pages of the process.
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
        """Whether a page of a range was replaced or forgotten here."""
        return any(m.page is not None and one.first <= n < one.end for n, m in self.marks.items())

    def asides(self) -> Iterator[int]:
        """Pages that stand for a number of a range instead of its own."""
        return (mark.page for mark in self.marks.values() if mark.page)

    def spaces(self) -> set[int]:
        """Those that it has pages of, and its own."""
        mapped = {one.space for one in self.ranges}
        return {self.space, *mapped, *(space_of(page)[0] for page in self.asides())}

    def holds(self, space: int) -> Iterator[tuple[int, int]]:
        """Places of a space that it reaches: first and end of each part."""
        for one in self.ranges:
            if one.space != space:
                continue
            at = one.first
            for number in sorted(n for n, mark in self.marks.items() if mark.page is not None):
                if at <= number < one.end:
                    yield one.place + at - one.first, one.place + number - one.first
                    at = number + 1
            yield one.place + at - one.first, one.place + one.count
        for page in self.asides():
            if space_of(page)[0] == space:
                yield space_of(page)[1], space_of(page)[1] + 1

    def must(self, number: int) -> int:
        """The page behind a number. ENOENT."""
        page = self.page(number)
        if page is None:
            words = f"process {self.pid} has no page {number}"
            hint = f"it has {self.next} numbers; `llmasos mem {self.pid}` lists its pages"
            raise SyscallError(Errno.ENOENT, words, hint, pid=self.pid)
        return page

    def reaches(self) -> list[Range]:
        """The parts of spaces that it has, each once; neighbours are one."""
        found: list[Range] = []
        asides = [Range(0, 1, *space_of(page)) for page in self.asides()]
        for one in sorted([*self.ranges, *asides], key=lambda one: (one.space, one.place)):
            last = found[-1] if found else None
            goes_on = last is not None and last.space == one.space
            if last is not None and goes_on and one.place <= last.place + last.count:
                last.count = max(last.count, one.place + one.count - last.place)
            else:
                found.append(Range(0, one.count, one.space, one.place))
        return found

    # --- changes --------------------------------------------------------------------------------
    def append(self, count: int) -> list[tuple[int, int]]:
        """Room for pages at the end: their numbers and ids."""
        last = self.ranges[-1] if self.ranges else None
        goes_on = (
            last is not None and last.space == self.space and last.end == self.next
            and last.place + last.count == self.place and last.writable and not last.source
        )  # fmt: skip
        if last is not None and goes_on:
            last.count += count
        else:
            self.ranges.append(Range(self.next, count, self.space, self.place))
        room = [
            (self.next + index, page_id(self.space, self.place + index)) for index in range(count)
        ]
        self.next += count
        self.place += count
        return room

    def aside(self) -> int:
        """Room for a page that stands for a number already in use: its id."""
        self.place += 1
        return page_id(self.space, self.place - 1)

    def map(self, space: int, place: int, count: int, *, writable: bool, source: str) -> Range:
        """Numbers at the end for pages that are stored already."""
        mapped = Range(self.next, count, space, place, writable, source)
        self.ranges.append(mapped)
        self.next += count
        return mapped

    def mapping(self, number: int) -> Range:
        """The mapping that a number is in. ENOENT."""
        found = self.at(number)
        if found is None or not found.source:
            words = f"nothing is mapped at page {number} of process {self.pid}"
            hint = f"`llmasos mem {self.pid}` shows what is"
            raise SyscallError(Errno.ENOENT, words, hint, pid=self.pid)
        return found

    def unmap(self, found: Range) -> list[int]:
        """Take a mapping away. The pages of one's own that stood for some of its."""
        self.ranges.remove(found)
        inside = [number for number in self.marks if found.first <= number < found.end]
        own = [page for number in inside if (page := self.marks.pop(number).page)]
        self.leave(range(found.first, found.end))
        return own

    def state(self, *, whole: bool) -> "State":
        """What a change may have to go back to; `whole`: not only what an append changes."""
        last = self.ranges[-1].count if self.ranges else 0
        return State(
            (self.next, self.place, self.messages, self.tokens, self.held), len(self.ranges), last,
            self.window, dict(self.sizes), self.copy(0, 0) if whole else None,
        )  # fmt: skip

    def restore(self, state: "State") -> None:
        """As if nothing had been changed."""
        self.next, self.place, self.messages, self.tokens, self.held = state.numbers
        self.window, self.sizes = state.window, state.sizes
        if state.whole is not None:
            self.ranges, self.marks = state.whole.ranges, state.whole.marks
            return
        del self.ranges[state.ranges :]
        if self.ranges:
            self.ranges[-1].count = state.last

    def mark(self, number: int) -> Mark:
        return self.marks.setdefault(number, Mark())

    def pinned(self, number: int) -> bool:
        mark = self.marks.get(number)
        return mark is not None and mark.pinned

    # --- the window -----------------------------------------------------------------------------
    def resident(self) -> set[int]:
        """Numbers of the pages in the window."""
        return {number for piece in self.window for number in piece.numbers()}

    def weigh(self) -> None:
        """Count the window's tokens; sizes of pages that have left it are not kept."""
        self.sizes = {n: self.sizes[n] for n in self.resident() if n in self.sizes}
        self.held = sum(self.sizes.values())

    def leave(self, numbers: Sequence[int] | range) -> None:
        """Take pages out of the window."""
        self.window = without(self.window, set(numbers))

    def copy(self, pid: int, space: int) -> "Table":
        """A child's: the same pages, written apart from now on."""
        return Table(
            pid, self.owner, space, self.next, 0, self.messages, self.tokens,
            [Range(r.first, r.count, r.space, r.place, r.writable, r.source) for r in self.ranges],
            {n: Mark(m.page, m.pinned, m.used, m.uses) for n, m in self.marks.items()},
            [Piece(p.message, p.role, [*p.pages], [*p.recalled]) for p in self.window],
            dict(self.sizes), self.held,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class State:
    """A table before a change."""

    numbers: tuple[int, int, int, int, int]  # next, place, messages, tokens, held
    ranges: int  # how many
    last: int  # count of the last one
    window: list[Piece]
    sizes: dict[int, int]
    whole: Table | None


def without(window: Sequence[Piece], numbers: set[int]) -> list[Piece]:
    """A window without some pages; a message none of whose pages is left goes."""
    left: list[Piece] = []
    for piece in window:
        pages = [number for number in piece.pages if number not in numbers]
        recalled = [number for number in piece.recalled if number not in numbers]
        if pages or recalled:
            left.append(Piece(piece.message, piece.role, pages, recalled))
    return left


def dump(window: Sequence[Piece]) -> str:
    """A window as it stands on disk."""
    return json.dumps([[p.message, p.role, p.pages, p.recalled] for p in window])


def load(text: str) -> list[Piece]:
    return [Piece(message, Role(role), pages, recalled) for message, role, pages, recalled in
            json.loads(text)]  # fmt: skip
