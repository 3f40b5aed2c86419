"""`llmasos mem`: lists, reads, traces and searches pages. The verbs here change nothing."""

import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.client import BlockingClient

from . import exits, memmap
from .connection import connect
from .generation import clean
from .show import cell, clip, iso, note, print_json, short_time, table_clipped, write_text

_HEAD = ("PAGE", "WHERE", "KIND", "SAID BY", "TIME (UTC)", "TOKENS", "USES", "TEXT")
_NAME = 10  # columns of a speaker or an author
_EXCERPT = 76  # columns of a text on its own line
_MOVES = {
    "evicted": "left the window",
    "recalled": "recalled",
    "beside": "stored beside the window",
    "author_replaced": "replaced, under another author",
}


def walk(
    client: BlockingClient, pid: int, *, key: str = "", texts: bool = True
) -> Iterator[v.Page]:
    """All pages of a process, or those of a key; one reply holds at most READ_MEM_BYTES."""
    first: int | None = 0
    while first is not None:
        reply = client.call("read_mem", v.ReadMem(pid, first, key=key, texts=texts), v.Pages)
        yield from reply.pages
        first = reply.next


def mem(arguments: Namespace) -> int:
    with connect() as client:
        texts = arguments.json or arguments.view != "map"
        pages = list(walk(client, arguments.pid, texts=texts))
        ps = v.Ps(arguments.pid, ended=True)
        window = client.call("ps", ps, v.Processes).processes[0].window
        waiting = client.call("stat", v.Nothing(), v.Stat).pages_waiting
    if arguments.json:
        print_json({"pid": arguments.pid, "window": window, "waiting": waiting, "pages": pages})
    elif arguments.view == "text":
        _print_texts(pages)
    elif arguments.view == "map":
        memmap.show(pages)
        note(_totals(pages, window, waiting))
    else:
        now = time.time()
        table_clipped(_HEAD, [_row(page, now) for page in pages])
        note(_totals(pages, window, waiting))
    return exits.OK


def _row(page: v.Page, now: float) -> tuple[object, ...]:
    # The speaker, as the writer states it, else the author, which the kernel records. `mem why` and
    # the JSON have both.
    who = clip(page.speaker or page.author, _NAME)
    return (
        page.number, where(page), page.kind, who, short_time(page.time, now),
        page.tokens, page.uses, text_with_key(page),
    )  # fmt: skip


def text_with_key(page: v.Page) -> str:
    """The text of a page after its key. The key of a document is its name, as its speaker is."""
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


def _print_texts(pages: Sequence[v.Page]) -> None:
    """Print whole messages; pages of one message are joined."""
    before: tuple[int, str] | None = None
    for page in pages:
        message = (page.message, page.source)  # message numbers restart in each source
        if message != before:
            write_text(("\n" if before is not None else "") + f"[{page.kind}]\n")
            before = message
        write_text(page.text)
    write_text("\n" if pages else "")


# --- one page ---------------------------------------------------------------------------------
def read(arguments: Namespace) -> int:
    what, key = arguments.what, arguments.key or ""
    if bool(what) is bool(key):
        raise exits.UsageError("expected a page or a key", "as in `llmasos mem read 3:0`")
    with connect() as client:
        if what.isascii() and what.isdigit():
            pages = _page_of_number(client, arguments.pid, int(what))
        else:
            pages = _pages_of_key(client, arguments.pid, what or key)
    if arguments.json:
        text = "".join(page.text for page in pages)
        print_json({"pid": arguments.pid, "pages": pages, "text": text})
        return exits.OK
    for page in pages:
        write_text(page.text)
    if sys.stdout.isatty() and not pages[-1].text.endswith("\n"):
        write_text("\n")
    return exits.OK


def _page_of_number(client: BlockingClient, pid: int, number: int) -> list[v.Page]:
    pages = client.call("read_mem", v.ReadMem(pid, number, 1), v.Pages).pages
    if pages and pages[0].number == number:
        return pages
    raise _not_found(pid, f"page {number}")


def _pages_of_key(client: BlockingClient, pid: int, key: str) -> list[v.Page]:
    pages = list(walk(client, pid, key=clean(key, "the key")))
    if not pages:
        raise _not_found(pid, f"key {key!r}")
    return pages


def _not_found(pid: int, what: str) -> SyscallError:
    message = f"process {pid} has no {what}"
    return SyscallError(Errno.ENOENT, message, f"`llmasos mem {pid}` lists its pages", pid=pid)


def page_number(arguments: Namespace) -> int:
    """The page number in the arguments. Raises UsageError when it is missing."""
    if arguments.page is None:
        raise exits.UsageError("no page is given", "as 3:12, or 3 12")
    number: int = arguments.page
    return number


def why(arguments: Namespace) -> int:
    pid, number = arguments.pid, page_number(arguments)
    with connect() as client:
        trace = client.call("trace_mem", v.TraceMem(pid, number), v.Trace)
    if arguments.json:
        print_json({"pid": pid, "page": trace.page, "moves": trace.moves})
        return exits.OK
    page = trace.page
    author = f" by {cell(page.author)}" if page.author else ""
    if page.speaker not in ("", page.author):  # the author wrote down what another said
        author += f" for {cell(page.speaker)}"
    print(f"page {number} of process {pid}: {page.kind}{author}, {count(page.tokens, 'token')}")
    print(f"  {cell(clip(page.text, _EXCERPT))}\n")
    for move in trace.moves:
        print(f"{iso(move.time)}  {cell(_description(move))}")
    print(f"{'now':24}  {_now(page)}")
    return exits.OK


def _description(move: v.Move) -> str:
    call = f" in call {move.call}" if move.call else ""
    what = f"{_MOVES.get(move.what, move.what)}{call}"
    if move.what == "shared":
        return f"{what} {move.why}"
    if not move.parts:
        return f"{what}: {move.why}" if move.why else what
    score = sum(move.parts.values())
    return f"{what} for {move.why}, score {score:.2f}: {score_parts(move.parts)}"


def _now(page: v.Page) -> str:
    pinned = ", pinned" if page.pinned else ""
    if page.where is v.Where.WINDOW:
        return f"in the window{pinned}"
    return f"in the store{pinned}; recalled when a request needs it"


# --- many pages -------------------------------------------------------------------------------
def search(arguments: Namespace) -> int:
    request = v.SearchMem(
        arguments.pid, clean(" ".join(arguments.question), "the question"), arguments.count,
        arguments.tokens, clean(arguments.author, "the author"), arguments.since,
        arguments.until, clean(arguments.label, "the label"),
        [v.Kind(kind) for kind in arguments.kinds], way="words" if arguments.words else "both",
        outside=arguments.outside,
    )  # fmt: skip
    with connect() as client:
        found = client.call("search_mem", request, v.Hits)
    if arguments.json:
        print_json({"pid": arguments.pid, **_fields(found)})
        return exits.OK
    if found.hits:
        rows = [
            (_with_copies(hit), f"{hit.score:.2f}", score_parts(hit.parts), where(hit.page),
             text_with_key(hit.page))
            for hit in found.hits
        ]  # fmt: skip
        table_clipped(("PAGE", "SCORE", "MADE OF", "WHERE", "TEXT"), rows)
    else:
        note("no pages found" + f" within {arguments.tokens} tokens" * bool(arguments.tokens))
    if found.note:
        note(found.note)
    return exits.OK


def _with_copies(hit: v.Hit) -> str:
    """The page number, and the number of other pages with the same text."""
    return f"{hit.page.number} +{len(hit.same)}" if hit.same else str(hit.page.number)


def _fields(found: v.Hits) -> dict[str, object]:
    return {"hits": found.hits, "note": found.note, "took_s": found.took_s}


def score_parts(parts: Mapping[str, float]) -> str:
    """The parts of a score, largest first; parts that round to zero are omitted."""
    ordered = sorted(parts.items(), key=lambda one: -abs(one[1]))
    shown = [one for one in ordered if abs(one[1]) >= 0.005] or ordered[:1]
    return ", ".join(f"{name} {part:.2f}" for name, part in shown)
