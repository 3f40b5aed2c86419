"""The values that are written of pages and page tables, and their conversion to rows."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from ..abi.values import Role
from ..storage.database import Row, Statement
from . import schema
from .layout import Stored
from .table import PageMark, PageTable, Piece, Range

_TABLE = "INSERT OR REPLACE INTO tables VALUES(?,?,?,?,?,?,?,?)"
_TABLE_WITHOUT_WINDOW = """UPDATE tables SET space = ?2, next = ?3, place = ?4, messages = ?5,
                           tokens = ?6 WHERE pid = ?1"""
_RANGE = "INSERT OR REPLACE INTO ranges VALUES(?,?,?,?,?,?,?)"
_MARK = "INSERT OR REPLACE INTO marks VALUES(?,?,?,?,?,?)"
COPY_MARKS = """INSERT OR REPLACE INTO marks
                SELECT ?, number, page, pinned, used, uses FROM marks WHERE pid = ?"""
_MOVE = "INSERT INTO moves(pid, first, last, time, call, what, why, parts) VALUES(?,?,?,?,?,?,?,?)"


@dataclass(frozen=True, slots=True)
class NewPage:
    """A page to be written. The kernel sets kind and author; the caller gives the rest."""

    text: str
    tokens: int
    kind: str
    author: str
    message: int = 0  # index of its message among those written together
    time: float | None = None  # None: now
    session: str = ""
    key: str = ""
    labels: Sequence[str] = ()
    created: float | None = None  # Unix seconds: when the page was first written; None: now
    speaker: str = ""  # whose words these are; empty: the author's


@dataclass(frozen=True, slots=True)
class Moved:
    """Pages that entered or left the window, and why."""

    first: int
    last: int
    what: str
    why: str
    call: int = 0
    parts: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """What a call writes when it has ended."""

    call: int
    pages: Sequence[NewPage]  # of the request, then of the answer
    kept: Sequence[Sequence[int]]  # by message: indexes of its pages that are in the window
    roles: Sequence[Role]  # of the messages, the answer's last
    window: Sequence[Piece]  # the part of the old window that stays
    recalled: Mapping[int, Mapping[str, float]]  # recalled pages, with the parts of the score
    evicted: Sequence[int]
    why: str  # reason of the evictions
    sizes: Mapping[int, int] = field(default_factory=dict[int, int])  # tokens, pages in the window
    # Evaluated before the write. True: a page that the call saw was erased.
    is_void: Callable[[], bool] = lambda: False


@dataclass(frozen=True, slots=True)
class Change:
    """A syscall's change of a page table, to be written."""

    moves: Sequence[Moved] = ()
    marks: Iterable[int] = ()  # numbers
    ranges: Sequence[Range] = ()
    more: Sequence[Statement] = ()
    erases: bool = False  # `more` queues pages for erasure
    frees: bool = False


def stored(number: int, row: Row) -> Stored:
    page, message, _owner, kind, author, when, session, key, tokens, text, labels, *more = row
    signs, speaker, created = more
    return Stored(
        number, int(page or 0), int(message or 0), str(kind), str(author), float(when or 0),
        str(session), str(key), int(tokens or 0), str(text),
        [] if labels == "[]" else json.loads(str(labels)),
        int(signs or 0), str(speaker), float(created or 0),
    )  # fmt: skip


def runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Consecutive numbers as runs: first and last of each."""
    found: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def pieces(turn: TurnRecord, numbers: Sequence[int], message: int) -> list[Piece]:
    """The new messages in the window; the recalled pages belong to the first user message."""
    by_message: dict[int, list[int]] = {}
    for number, page in zip(numbers, turn.pages, strict=True):
        by_message.setdefault(page.message, []).append(number)
    made: list[Piece] = []
    for index, role in enumerate(turn.roles):
        mine = by_message.get(index, [])
        if index < len(turn.kept):
            mine = [mine[at] for at in turn.kept[index]]
        if mine:
            made.append(Piece(message + index, role, mine))
    first_user = next((p for p in made if p.role is Role.USER), made[0] if made else None)
    if first_user is not None:
        first_user.recalled = sorted(turn.recalled)
    return made


def moves_out(turn: TurnRecord, numbers: Sequence[int]) -> list[Moved]:
    """Moves: evicted pages, and pages of a too large request that were never in the window."""
    shown = {number for piece in pieces(turn, numbers, 0) for number in piece.pages}
    outside = [number for number in numbers if number not in shown]
    why = "the request is larger than the window"
    return [
        *(Moved(a, b, "evicted", turn.why, turn.call) for a, b in runs(turn.evicted)),
        *(Moved(a, b, "beside", why, turn.call) for a, b in runs(outside)),
    ]


def mark(row: Row) -> PageMark:
    _pid, _number, page, pinned, used, uses = row
    target = None if page is None else int(page)
    return PageMark(target, bool(pinned), float(used or 0), int(uses or 0))


def range_row(pid: int, one: Range) -> Statement:
    return _RANGE, (pid, one.first, one.count, one.space, one.place, int(one.writable), one.source)


def mark_row(table: PageTable, number: int) -> Statement:
    mark = table.marks[number]
    return _MARK, (table.pid, number, mark.page, int(mark.pinned), mark.used, mark.uses)


def move_row(pid: int, move: Moved) -> Statement:
    parts = json.dumps({name: round(part, 3) for name, part in move.parts.items()})
    row = (pid, move.first, move.last, time.time(), move.call, move.what, move.why, parts)
    return _MOVE, row


def saved(table: PageTable, *, window: bool, ranges: Sequence[Range] = ()) -> list[Statement]:
    """Statements that save a table. `window` False: the window on disk is left as it is."""
    row = (table.pid, table.space, table.next, table.place, table.messages, table.tokens)
    space = (table.space, table.pid, "", b"")
    return [
        ("INSERT OR IGNORE INTO spaces VALUES(?,?,?,?,0)", space),
        (_TABLE, (*row, dump_window(table.window), table.window_tokens))
        if window
        else (_TABLE_WITHOUT_WINDOW, row),
        *(range_row(table.pid, one) for one in ranges),
    ]


def digest(text: str) -> bytes:
    """The hash that is stored with a page and checked by fsck."""
    return blake2b(text.encode(), digest_size=16).digest()


def page_row(owner: str, page: int, one: NewPage, *, message: int = 0, call: int = 0) -> Statement:
    """The statement that inserts a page. `message`: number of the first message of this write."""
    now = time.time()
    return schema.INSERT_PAGE, (
        page, message + one.message, owner, one.kind, one.author,
        now if one.time is None else one.time, one.session, one.key, one.tokens, one.text,
        json.dumps(list(one.labels)), one.created or now, digest(one.text), call, 0,
        schema.signs(one.text), one.speaker,
    )  # fmt: skip


def dump_window(window: Sequence[Piece]) -> str:
    """A window as stored on disk."""
    return json.dumps([[p.message, p.role, p.pages, p.recalled] for p in window])


def load_window(text: str) -> list[Piece]:
    """The window that `dump_window` has written."""
    return [Piece(message, Role(role), pages, recalled) for message, role, pages, recalled in
            json.loads(text)]  # fmt: skip
