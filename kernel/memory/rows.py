"""What is written of pages and page tables, and how it stands in rows."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from ..database import Row, Statement
from ..values import Role
from . import schema
from .layout import Stored
from .table import Mark, Piece, Range, Table, dump

_TABLE = "INSERT OR REPLACE INTO tables VALUES(?,?,?,?,?,?,?,?)"
_TABLE_AS_IT_IS = """UPDATE tables SET space = ?2, next = ?3, place = ?4, messages = ?5, tokens = ?6
                     WHERE pid = ?1"""
_RANGE = "INSERT OR REPLACE INTO ranges VALUES(?,?,?,?,?,?,?)"
_MARK = "INSERT OR REPLACE INTO marks VALUES(?,?,?,?,?,?)"
_MOVE = "INSERT INTO moves(pid, first, last, time, call, what, why, parts) VALUES(?,?,?,?,?,?,?,?)"

REPLACED, OTHERS = "replaced", ", under another author"  # what a move is, and the end of its why


@dataclass(frozen=True, slots=True)
class Written:
    """A page to be. The kernel sets kind and author; the rest is what the caller says of it."""

    text: str
    tokens: int
    kind: str
    author: str
    message: int = 0  # of those that are written together, from 0
    time: float | None = None  # None: now
    session: str = ""
    key: str = ""
    labels: Sequence[str] = ()
    created: float | None = None  # when something was first written there; None: now
    speaker: str = ""  # who said it; empty: its author


@dataclass(frozen=True, slots=True)
class Moved:
    """Pages that came into the window or left it, and why."""

    first: int
    last: int
    what: str
    why: str
    call: int = 0
    parts: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class Turn:
    """What a call leaves behind."""

    call: int
    pages: Sequence[Written]  # of the request, then of the answer
    kept: Sequence[Sequence[int]]  # pieces of each of its messages that are in the window
    roles: Sequence[Role]  # of the messages, the answer's last
    window: Sequence[Piece]  # what stays of the old one
    recalled: Mapping[int, Mapping[str, float]]  # pages that came back, with the parts of the score
    evicted: Sequence[int]
    why: str  # they left
    sizes: Mapping[int, int] = field(default_factory=dict[int, int])  # tokens of what was recalled
    is_void: Callable[[], bool] = lambda: False  # asked when it is written: what it saw is gone


@dataclass(frozen=True, slots=True)
class Change:
    """What a syscall changed of a page table."""

    moves: Sequence[Moved] = ()
    marks: Iterable[int] = ()  # numbers
    ranges: Sequence[Range] = ()
    more: Sequence[Statement] = ()
    goes: bool = False  # `more` says that pages go
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
    """Numbers as first and last of each run."""
    found: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def pieces(turn: Turn, numbers: Sequence[int], message: int) -> list[Piece]:
    """The new messages as they stand in the window; what came back stands before the first one."""
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
    host = next((p for p in made if p.role is Role.USER), made[0] if made else None)
    if host is not None:
        host.recalled = sorted(turn.recalled)
    return made


def left(turn: Turn, numbers: Sequence[int]) -> list[Moved]:
    """What went out of the window, and what of a request larger than it never came in."""
    shown = {number for piece in pieces(turn, numbers, 0) for number in piece.pages}
    beside = [number for number in numbers if number not in shown]
    why = "the request is larger than the window"
    return [
        *(Moved(a, b, "evicted", turn.why, turn.call) for a, b in runs(turn.evicted)),
        *(Moved(a, b, "beside", why, turn.call) for a, b in runs(beside)),
    ]


def mark(row: Row) -> Mark:
    _pid, _number, page, pinned, used, uses = row
    behind = None if page is None else int(page)
    return Mark(behind, bool(pinned), float(used or 0), int(uses or 0))


def range_row(pid: int, one: Range) -> Statement:
    return _RANGE, (pid, one.first, one.count, one.space, one.place, int(one.writable), one.source)


def mark_row(table: Table, number: int) -> Statement:
    mark = table.marks[number]
    return _MARK, (table.pid, number, mark.page, int(mark.pinned), mark.used, mark.uses)


def move_row(pid: int, move: Moved) -> Statement:
    parts = json.dumps({name: round(part, 3) for name, part in move.parts.items()})
    row = (pid, move.first, move.last, time.time(), move.call, move.what, move.why, parts)
    return _MOVE, row


def saved(table: Table, *, window: bool, ranges: Sequence[Range] = ()) -> list[Statement]:
    """What is on disk of a table, as it is now. `window` False: its window there stays."""
    row = (table.pid, table.space, table.next, table.place, table.messages, table.tokens)
    space = (table.space, table.pid, "", b"")
    return [
        ("INSERT OR IGNORE INTO spaces VALUES(?,?,?,?,0)", space),
        (_TABLE, (*row, dump(table.window), table.held)) if window else (_TABLE_AS_IT_IS, row),
        *(range_row(table.pid, one) for one in ranges),
    ]


def digest(text: str) -> bytes:
    """What tells whether a page is still what was written."""
    return blake2b(text.encode(), digest_size=16).digest()


def page_row(owner: str, page: int, one: Written, *, message: int = 0, call: int = 0) -> Statement:
    """A page of a message that is counted from `message` on."""
    now = time.time()
    return schema.INSERT_PAGE, (
        page, message + one.message, owner, one.kind, one.author,
        now if one.time is None else one.time, one.session, one.key, one.tokens, one.text,
        json.dumps(list(one.labels)), one.created or now, digest(one.text), call, 0,
        schema.signs(one.text), one.speaker,
    )  # fmt: skip
