"""Pages written, replaced, pinned and evicted by name. What others share stays theirs."""

from collections.abc import Iterable, Sequence

from ..database import Statement
from ..errors import Denied, Errno, SyscallError
from . import schema
from .memory import Memory
from .rows import Change, Moved, Written, runs
from .table import GONE, Table


async def replace(memory: Memory, table: Table, number: int, pages: Sequence[Written]) -> list[int]:
    """Another text under the same number. ENOENT; EACCES: mapped read-only; E2BIG: not one page."""
    old = table.must(number)
    _writable(table, number)
    if len(pages) != 1:
        words = f"the text takes {len(pages)} pages, page {number} is one"
        raise SyscallError(Errno.E2BIG, words, "write the rest as new pages", pid=table.pid)
    held = (await memory.stored(table, [number])).get(number)
    page = table.aside()
    statements = memory.stores(table, [page], pages)
    table.messages -= 1  # it is of no new message
    table.tokens -= held.tokens if held is not None else 0
    table.mark(number).page = page
    statements += _let_go(memory, table, [old])
    move = Moved(number, number, "written", "replaced by name")
    await memory.change(table, Change([move], marks=[number], more=statements))
    return [number]


async def put(memory: Memory, table: Table, key: str, pages: Sequence[Written]) -> list[int]:
    """What a key stands for from now on: its pages before are gone."""
    mine = list(table.pages(0, table.next))
    before = await memory.keyed(table, key, mine)
    room = table.append(len(pages))
    statements = memory.stores(table, [page for _, page in room], pages)
    old = [(number, page) for number, page in mine if number in before]
    for number, _ in old:
        _writable(table, number)
        table.mark(number).page = GONE
        table.tokens -= before[number]
    table.leave(list(before))
    statements += _let_go(memory, table, [page for _, page in old])
    moves = [Moved(a, b, "evicted", "its key was written anew") for a, b in runs(before)]
    change = Change(moves, marks=list(before), ranges=table.ranges[-1:], more=statements)
    await memory.change(table, change)
    return [number for number, _ in room]


def _writable(table: Table, number: int) -> None:
    found = table.at(number)
    mark = table.marks.get(number)
    if found is not None and not found.writable and not (mark is not None and mark.page):
        words = f"page {number} of process {table.pid} is mapped read-only from {found.source}"
        raise Denied(words, "map it writable, or write a new page")


def _let_go(memory: Memory, table: Table, pages: Iterable[int]) -> list[Statement]:
    """Erase what nobody has any more."""
    mine = [one for one in memory.tables() if one.owner == table.owner]
    free = [page for page in pages if all(one.number(page) is None for one in mine)]
    return [statement for low, high in runs(free) for statement in schema.erased(low, high)]


async def pin(memory: Memory, table: Table, numbers: Sequence[int], pinned: bool) -> None:
    """Keep pages in the window, or let them leave again. ENOENT."""
    for number in numbers:
        table.must(number)
    for number in numbers:
        table.mark(number).pinned = pinned
    moves = [
        Moved(low, high, "pinned" if pinned else "unpinned", "it was asked for")
        for low, high in runs(numbers)
    ]
    await memory.change(table, Change(moves, marks=numbers))


async def evict(memory: Memory, table: Table, numbers: Sequence[int]) -> list[int]:
    """Take pages out of the window now. ENOENT; EBUSY for one that is pinned."""
    for number in numbers:
        table.must(number)
        if table.pinned(number):
            words = f"page {number} of process {table.pid} is pinned"
            raise SyscallError(Errno.EBUSY, words, "unpin it first", pid=table.pid)
    leaving = [number for number in numbers if number in table.resident()]
    table.leave(leaving)
    moves = [Moved(low, high, "evicted", "it was asked for") for low, high in runs(leaving)]
    await memory.change(table, Change(moves))
    return leaving
