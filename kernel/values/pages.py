"""The pages of a process: read, written, searched, pinned, mapped, forgotten."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated

from .. import limits
from .words import Index, Kind, Labels, Pid, Shape, Span

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
    WINDOW = "window"  # a call sees it
    STORE = "store"  # it comes back when it is needed


@dataclass(frozen=True, slots=True)
class ReadMem:
    """Pages by number; `key` and times choose among them."""

    pid: Pid
    first: Index = 0  # page number
    count: _Count = 1000
    key: _Key = ""
    since: _Time | None = None
    until: _Time | None = None
    texts: bool = True  # False: the pages' texts are left out


@dataclass(frozen=True, slots=True)
class Page:
    number: int
    message: int  # pages of one message share this number
    owner: str
    kind: Kind
    author: str  # who wrote it, as the kernel knows: a user, app:NAME, or the model that said it
    time: float  # Unix seconds: when it was said, as its writer says; 0: not known
    session: str
    key: str
    tokens: int  # exact, by the process's tokenizer
    text: str
    labels: list[str]
    pinned: bool
    where: Where
    uses: int  # times a request brought it back
    source: str  # what it was mapped from
    speaker: str = ""  # who said it, as its writer says: shown, searched for, and not checked
    written: float = 0.0  # Unix seconds: when the kernel wrote it first


@dataclass(frozen=True, slots=True)
class Pages:
    pages: list[Page]
    next: int | None  # first page of the rest, if the reply was cut


@dataclass(frozen=True, slots=True)
class WriteMem:
    """A new page, or several for a long text; or instead of page `page`, or of what `key` has."""

    pid: Pid
    text: Annotated[str, Span(1, limits.MESSAGE_CHARS)]
    page: Index | None = None
    key: _Key = ""
    # The kernel sets who wrote it, and that it is a note. What follows is shown as it is said here.
    speaker: _Author = ""  # who said it; empty: who wrote it
    time: _Time | None = None  # when; None: now
    session: _Session = ""  # empty: of a page that is replaced, what it had
    labels: Labels = field(default_factory=list[str])  # beside those of what is replaced


@dataclass(frozen=True, slots=True)
class Written:
    pages: list[int]  # numbers


@dataclass(frozen=True, slots=True)
class SearchMem:
    """Pages by what they say. Filters are all to be met."""

    pid: Pid
    question: Annotated[str, Span(1, limits.QUESTION_CHARS)]
    count: Annotated[int, Span(1, limits.HITS)] = 10
    tokens: Annotated[int, Span(0, limits.WINDOW_MAX)] = 0  # the best that fit; 0: no such limit
    author: _Author = ""  # or speaker
    since: _Time | None = None
    until: _Time | None = None
    label: Annotated[str, Span(0, limits.NAME_CHARS)] = ""
    kinds: Annotated[list[Kind], Span(0, 16)] = field(default_factory=list[Kind])  # empty: all
    texts: bool = True  # False: the pages' texts are left out
    way: Annotated[str, Shape("|words|meaning|recency|both", "words, meaning, recency or both")] = (
        "both"
    )
    outside: bool = False  # only pages outside the window


@dataclass(frozen=True, slots=True)
class Hit:
    page: Page
    score: float
    parts: dict[str, float]  # what the score is made of
    same: list[int] = field(default_factory=list[int])  # other pages with this text, lower ranked


@dataclass(frozen=True, slots=True)
class Hits:
    hits: list[Hit]  # the best first
    note: str  # why it is not what it could be: words only, not all indexed yet
    took_s: float


@dataclass(frozen=True, slots=True)
class Pin:
    """Pages that stay in the window, or need not any more."""

    pid: Pid
    first: Index
    count: _Count = 1
    pinned: bool = True


@dataclass(frozen=True, slots=True)
class Evict:
    """Pages that leave the window now; they come back when they are needed."""

    pid: Pid
    first: Index
    count: _Count = 1


@dataclass(frozen=True, slots=True)
class Mmap:
    """A document, a folder or another process's pages as pages of a process, stored once."""

    pid: Pid
    source: _Source
    first: Index = 0  # of the other process's pages
    count: Index = 0  # 0: all from there on
    writable: bool = True  # a change makes a page of one's own, never of the file; False: EACCES


@dataclass(frozen=True, slots=True)
class Mapped:
    first: int  # number of its first page
    count: int
    source: str
    skipped: list[str]  # of a folder: how many links and hidden files, what holds no text and why


@dataclass(frozen=True, slots=True)
class Munmap:
    pid: Pid
    first: Index  # a page of the mapping


@dataclass(frozen=True, slots=True)
class Share:
    """Give pages to another process of the same owner, which sees them as they are now."""

    pid: Pid
    to: Pid
    first: Index
    count: _Count = 1
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Forget:
    """Erase pages for everybody who has them, with all that was derived of them."""

    pid: Pid
    first: Index = 0
    count: Annotated[int, Span(0, 10**6)] = 1
    key: _Key = ""  # instead of numbers


@dataclass(frozen=True, slots=True)
class Forgotten:
    pages: int
    processes: list[int]  # that had them
    note: str = ""  # what is still to be done, and why


@dataclass(frozen=True, slots=True)
class TraceMem:
    pid: Pid
    page: Index


@dataclass(frozen=True, slots=True)
class Move:
    """A page came into the window, or left it."""

    time: float
    call: int  # that it was part of; 0: none
    what: str  # written, beside (the window), replaced, shared, evicted, recalled, (un)pinned
    why: str
    parts: dict[str, float]  # of the score that brought it back


@dataclass(frozen=True, slots=True)
class Trace:
    page: Page
    moves: list[Move]  # the oldest first


@dataclass(frozen=True, slots=True)
class Fsck:
    rebuild: bool = False  # text index, vectors and Chroma anew from the pages


@dataclass(frozen=True, slots=True)
class Checked:
    pages: int
    spaces: int
    vectors: int
    waiting: int  # pages whose vectors are still to come
    embedder: str
    chroma: str  # how it is
    faults: list[str]  # what was found wrong
    mended: list[str]
    refused: list[str] = field(default_factory=list[str])  # pages without a vector, and why
