"""`llmasos mem`: what a process remembers, where it stands, and why; nothing is changed here."""

import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence

from llmasos.kernel import values as v
from llmasos.kernel.errors import Errno, SyscallError
from llmasos.userland.line import Line

from . import exits, memmap
from .door import connect
from .show import cell, clip, cut, document, iso, moment, note, speak
from .talk import clean

_HEAD = ("PAGE", "WHERE", "KIND", "SAID BY", "TIME (UTC)", "TOKENS", "USES", "TEXT")
_NAME = 10  # columns of an author
_EXCERPT = 76  # columns of a text that stands alone
_MOVES = {
    "evicted": "left the window",
    "recalled": "came back",
    "beside": "stored beside the window",
}


def walk(line: Line, pid: int, *, key: str = "", texts: bool = True) -> Iterator[v.Page]:
    """All pages of a process, or those of a key; a reply holds READ_MEM_BYTES."""
    first: int | None = 0
    while first is not None:
        reply = line.call("read_mem", v.ReadMem(pid, first, key=key, texts=texts), v.Pages)
        yield from reply.pages
        first = reply.next


def mem(arguments: Namespace) -> int:
    with connect() as line:
        texts = arguments.json or arguments.view != "map"
        pages = list(walk(line, arguments.pid, texts=texts))
        ps = v.Ps(arguments.pid, ended=True)
        window = line.call("ps", ps, v.Processes).processes[0].window
        waiting = line.call("stat", v.Nothing(), v.Stat).pages_waiting
    if arguments.json:
        document({"pid": arguments.pid, "window": window, "waiting": waiting, "pages": pages})
    elif arguments.view == "text":
        _texts(pages)
    elif arguments.view == "map":
        memmap.show(pages)
        note(_totals(pages, window, waiting))
    else:
        now = time.time()
        cut(_HEAD, [_row(page, now) for page in pages])
        note(_totals(pages, window, waiting))
    return exits.OK


def _row(page: v.Page, now: float) -> tuple[object, ...]:
    # The author, who wrote it into the memory, stands in `mem why` and in the JSON.
    who = clip(page.speaker or page.author, _NAME)
    return (
        page.number, where(page), page.kind, who, moment(page.time, now),
        page.tokens, page.uses, keyed(page),
    )  # fmt: skip


def keyed(page: v.Page) -> str:
    """A page's text, its key before it; a document's is its author already."""
    shown = page.key and page.kind is not v.Kind.DOCUMENT
    return f"[{page.key}] {page.text}" if shown else page.text


def where(page: v.Page) -> str:
    marks = {"map": page.source, "pin": page.pinned}
    return "+".join([page.where, *(word for word, there in marks.items() if there)])


def _totals(pages: Sequence[v.Page], window: int, waiting: int) -> str:
    here = [page for page in pages if page.where is v.Where.WINDOW]
    of = f" of {window}" if window else ""
    pinned = sum(page.pinned for page in pages)
    parts = [
        f"{count(len(pages), 'page')}, {_tokens(pages)} tokens",
        f"in the window {len(here)}, {_tokens(here)}{of} tokens",
        *([f"pinned {pinned}"] if pinned else []),
        *([f"of all processes, {count(waiting, 'page')} wait for vectors"] if waiting else []),
    ]
    return "; ".join(parts)


def _tokens(pages: Sequence[v.Page]) -> int:
    return sum(page.tokens for page in pages)


def count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _texts(pages: Sequence[v.Page]) -> None:
    """Messages as a person reads them; pages of one message are joined."""
    before: tuple[int, str] | None = None
    for page in pages:
        message = (page.message, page.source)  # those of a document are counted anew
        if message != before:
            speak(("\n" if before is not None else "") + f"[{page.kind}]\n")
            before = message
        speak(page.text)
    speak("\n" if pages else "")


# --- one page ---------------------------------------------------------------------------------
def read(arguments: Namespace) -> int:
    what, key = arguments.what, arguments.key or ""
    if bool(what) is bool(key):
        raise exits.Usage("name a page or a key", "as in `llmasos mem read 3:0`")
    with connect() as line:
        if what.isascii() and what.isdigit():
            pages = _numbered(line, arguments.pid, int(what))
        else:
            pages = _keyed(line, arguments.pid, what or key)
    if arguments.json:
        text = "".join(page.text for page in pages)
        document({"pid": arguments.pid, "pages": pages, "text": text})
        return exits.OK
    for page in pages:
        speak(page.text)
    if sys.stdout.isatty() and not pages[-1].text.endswith("\n"):
        speak("\n")
    return exits.OK


def _numbered(line: Line, pid: int, number: int) -> list[v.Page]:
    pages = line.call("read_mem", v.ReadMem(pid, number, 1), v.Pages).pages
    if pages and pages[0].number == number:
        return pages
    raise _missing(pid, f"page {number}")


def _keyed(line: Line, pid: int, key: str) -> list[v.Page]:
    pages = list(walk(line, pid, key=clean(key, "the key")))
    if not pages:
        raise _missing(pid, f"key {key!r}")
    return pages


def _missing(pid: int, what: str) -> SyscallError:
    words = f"process {pid} has no {what}"
    return SyscallError(Errno.ENOENT, words, f"`llmasos mem {pid}` lists its pages", pid=pid)


def named(arguments: Namespace) -> int:
    """The one page that is meant."""
    if arguments.page is None:
        raise exits.Usage("which page is meant is missing", "as 3:12, or 3 12")
    number: int = arguments.page
    return number


def why(arguments: Namespace) -> int:
    pid, number = arguments.pid, named(arguments)
    with connect() as line:
        trace = line.call("trace_mem", v.TraceMem(pid, number), v.Trace)
    if arguments.json:
        document({"pid": pid, "page": trace.page, "moves": trace.moves})
        return exits.OK
    page = trace.page
    author = f" by {cell(page.author)}" if page.author else ""
    if page.speaker not in ("", page.author):
        author += f" for {cell(page.speaker)}"
    print(f"page {number} of process {pid}: {page.kind}{author}, {count(page.tokens, 'token')}")
    print(f"  {cell(clip(page.text, _EXCERPT))}\n")
    for move in trace.moves:
        print(f"{iso(move.time)}  {cell(_told(move))}")
    print(f"{'now':24}  {_now(page)}")
    return exits.OK


def _told(move: v.Move) -> str:
    call = f" in call {move.call}" if move.call else ""
    what = f"{_MOVES.get(move.what, move.what)}{call}"
    if move.what == "shared":
        return f"{what} {move.why}"
    if not move.parts:
        return f"{what}: {move.why}" if move.why else what
    score = sum(move.parts.values())
    return f"{what} for {move.why}, score {score:.2f}: {made_of(move.parts)}"


def _now(page: v.Page) -> str:
    pinned = ", pinned" if page.pinned else ""
    if page.where is v.Where.WINDOW:
        return f"in the window{pinned}"
    return f"in the store{pinned}; a request that needs it brings it back"


# --- many pages -------------------------------------------------------------------------------
def search(arguments: Namespace) -> int:
    request = v.SearchMem(
        arguments.pid, clean(" ".join(arguments.question), "the question"), arguments.count,
        arguments.tokens, clean(arguments.author, "the author"), arguments.since,
        arguments.until, clean(arguments.label, "the label"),
        [v.Kind(kind) for kind in arguments.kinds], way="words" if arguments.words else "both",
        outside=arguments.outside,
    )  # fmt: skip
    with connect() as line:
        found = line.call("search_mem", request, v.Hits)
    if arguments.json:
        document({"pid": arguments.pid, **_fields(found)})
        return exits.OK
    if found.hits:
        rows = [
            (_with_copies(hit), f"{hit.score:.2f}", made_of(hit.parts), where(hit.page),
             keyed(hit.page))
            for hit in found.hits
        ]  # fmt: skip
        cut(("PAGE", "SCORE", "MADE OF", "WHERE", "TEXT"), rows)
    else:
        note("no page was found" + " that fits" * bool(arguments.tokens))
    if found.note:
        note(found.note)
    return exits.OK


def _with_copies(hit: v.Hit) -> str:
    """The page's number, and how many others have its text."""
    return f"{hit.page.number} +{len(hit.same)}" if hit.same else str(hit.page.number)


def _fields(found: v.Hits) -> dict[str, object]:
    return {"hits": found.hits, "note": found.note, "took_s": found.took_s}


def made_of(parts: Mapping[str, float]) -> str:
    """A score's parts, the greatest first; those that round to nothing are left out."""
    shown = sorted(parts.items(), key=lambda one: -abs(one[1]))
    told = [one for one in shown if abs(one[1]) >= 0.005] or shown[:1]
    return ", ".join(f"{name} {part:.2f}" for name, part in told)
