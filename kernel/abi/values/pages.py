"""Values for the pages of a process: read, write, search, pin, map, forget."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated

from .. import limits
from .fields import Index, Kind, Labels, Pid, Shape, Span

_Count = Annotated[int, Span(1, 1000)]
_Time = Annotated[float, Span(0, 10**11)]  # Unix seconds
_Author = Annotated[str, Span(0, limits.NAME_CHARS)]
_Key = Annotated[str, Span(0, limits.KEY_CHARS)]
_Source = Annotated[
    str,
    Shape(r"/files/.{1,380}|/proc/[1-9][0-9]{0,15}/mem", "/files/PATH or /proc/PID/mem"),
]
_Session = Annotated[str, Span(0, limits.NAME_CHARS)]


class Where(StrEnum):
    WINDOW = "window"  # part of the next call
    STORE = "store"  # recalled when needed


@dataclass(frozen=True, slots=True)
class ReadMem:
    """Pages by number, filtered by `key` and times."""

    pid: Pid
    first: Index = 0  # page number
    count: _Count = 1000
    key: _Key = ""
    since: _Time | None = None
    until: _Time | None = None
    texts: bool = True  # False: without the pages' texts


@dataclass(frozen=True, slots=True)
class Page:
    number: int
    message: int  # the same for all pages of one message
    owner: str
    kind: Kind
    author: str  # the writer, set by the kernel: a user, app:NAME, or the model
    time: float  # Unix seconds: time of the content, set by its writer; 0: unknown
    session: str
    key: str
    tokens: int  # exact, of the process's tokenizer
    text: str
    labels: list[str]
    pinned: bool
    where: Where
    uses: int  # number of requests that recalled it
    source: str  # it was mapped from
    speaker: str = ""  # set by its writer: displayed and searched, but not verified
    written: float = 0.0  # Unix seconds: when the kernel first wrote it


@dataclass(frozen=True, slots=True)
class Pages:
    pages: list[Page]
    next: int | None  # first page of the rest, if the reply was cut


@dataclass(frozen=True, slots=True)
class WriteMem:
    """Write a new page, or several for a long text; or replace `page`, or the pages with `key`."""

    pid: Pid
    text: Annotated[str, Span(1, limits.MESSAGE_CHARS)]
    page: Index | None = None
    key: _Key = ""
    # The kernel sets author and kind (note). The fields below are not verified.
    speaker: _Author = ""  # empty: the author
    time: _Time | None = None  # Unix seconds; None: now
    session: _Session = ""  # empty: that of the replaced page
    labels: Labels = field(default_factory=list[str])  # added to those of the replaced pages


@dataclass(frozen=True, slots=True)
class Written:
    pages: list[int]  # numbers


@dataclass(frozen=True, slots=True)
class SearchMem:
    """Search pages by their text. A page must match all filters."""

    pid: Pid
    question: Annotated[str, Span(1, limits.QUESTION_CHARS)]
    count: Annotated[int, Span(1, limits.HITS)] = 10
    tokens: Annotated[int, Span(0, limits.WINDOW_MAX)] = 0  # of all hits at most; 0: no limit
    author: _Author = ""  # or speaker
    since: _Time | None = None
    until: _Time | None = None
    label: Annotated[str, Span(0, limits.NAME_CHARS)] = ""
    kinds: Annotated[list[Kind], Span(0, 16)] = field(default_factory=list[Kind])  # empty: all
    texts: bool = True  # False: without the pages' texts
    way: Annotated[str, Shape("|words|meaning|recency|both", "words, meaning, recency or both")] = (
        "both"
    )
    outside: bool = False  # only pages outside the window


@dataclass(frozen=True, slots=True)
class Hit:
    page: Page
    score: float
    parts: dict[str, float]  # the summands of the score
    same: list[int] = field(default_factory=list[int])  # other pages with this text, lower ranked


@dataclass(frozen=True, slots=True)
class Hits:
    hits: list[Hit]  # best first
    note: str  # why results may be incomplete: lexical search only, not all pages indexed
    took_s: float


@dataclass(frozen=True, slots=True)
class Pin:
    """Pin pages in the window, or unpin them."""

    pid: Pid
    first: Index
    count: _Count = 1
    pinned: bool = True


@dataclass(frozen=True, slots=True)
class Evict:
    """Remove pages from the window; they are recalled when needed."""

    pid: Pid
    first: Index
    count: _Count = 1


@dataclass(frozen=True, slots=True)
class Mmap:
    """Map a document, a folder or another process's pages into a process. The data is shared."""

    pid: Pid
    source: _Source
    first: Index = 0  # of the other process's pages
    count: Index = 0  # 0: all from `first` on
    writable: bool = True  # a write creates a private copy of the page; False: EACCES


@dataclass(frozen=True, slots=True)
class SkippedFile:
    """A file of a folder that is not mapped."""

    name: str  # relative to the folder
    why: str  # the same words for each file with this reason
    detail: str = ""  # of this file


@dataclass(frozen=True, slots=True)
class Mapped:
    first: int  # number of the first page
    count: int
    source: str
    # Of a folder: what is not mapped.
    skipped: list[SkippedFile] = field(default_factory=list[SkippedFile])
    more: int = 0  # skipped files that are not listed
    links: int = 0
    hidden: int = 0  # files and folders


@dataclass(frozen=True, slots=True)
class Munmap:
    pid: Pid
    first: Index  # a page of the mapping


@dataclass(frozen=True, slots=True)
class Share:
    """Share pages with another process of the same owner: a snapshot of their contents now."""

    pid: Pid
    to: Pid
    first: Index
    count: _Count = 1
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Forget:
    """Erase pages in every process that has them, with everything derived from them."""

    pid: Pid
    first: Index = 0
    count: Annotated[int, Span(0, 10**6)] = 1
    key: _Key = ""  # instead of numbers


@dataclass(frozen=True, slots=True)
class Forgotten:
    pages: int
    processes: list[int]  # pids that had them
    note: str = ""  # what is still pending, and why


@dataclass(frozen=True, slots=True)
class TraceMem:
    pid: Pid
    page: Index


@dataclass(frozen=True, slots=True)
class Move:
    """A page entered the window or left it."""

    time: float
    call: int  # that caused it; 0: none
    # written, beside (the window), replaced, author_replaced (by another author's text), shared,
    # evicted, recalled, (un)pinned
    what: str
    why: str
    parts: dict[str, float]  # the summands of the score of a recalled page


@dataclass(frozen=True, slots=True)
class Trace:
    page: Page
    moves: list[Move]  # oldest first


@dataclass(frozen=True, slots=True)
class Fsck:
    rebuild: bool = False  # rebuild text index, vectors and Chroma from the pages


@dataclass(frozen=True, slots=True)
class Checked:
    pages: int
    spaces: int
    vectors: int
    waiting: int  # pages without a vector yet
    embedder: str
    chroma: str  # its state
    faults: list[str]  # errors found
    mended: list[str]  # repairs
    refused: list[str] = field(default_factory=list[str])  # pages without a vector, and why
