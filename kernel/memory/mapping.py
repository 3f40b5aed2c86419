"""Maps documents, folders and pages of other processes; shared pages are stored once.

A document gets a space of its own, identified by its path, its bytes and the tokenizer that cut it,
so mapping it again gives the same pages. A mapping shows the document as it was when it was mapped;
when the same process maps a changed document again, the new mapping replaces the old one.
"""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path

from anyio import CancelScope

from ..abi import limits
from ..abi.errors import Errno, SyscallError
from ..abi.values import Kind
from ..driver import Cut
from ..storage.database import Statement, Transaction
from ..storage.filesystem import Access
from . import documents, rows, schema
from .documents import Document
from .erasing import erase_pages, erase_unmapped, erase_unused, unused_ranges
from .memory import Memory
from .rows import Change, NewPage
from .table import PageTable, Range

log = logging.getLogger(__name__)
CutText = Callable[[str], Awaitable[Sequence[Cut]]]


def _allowed(_: Path) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class MapRequest:
    """A request to map a document or a folder."""

    source: str  # /files/PATH
    writable: bool
    model: str  # its tokenizer cuts the text into pages
    cut: CutText
    access: Access = field(default_factory=Access)
    why_not: Callable[[Path], str] = (
        _allowed  # why a file of a folder may not be mapped; "": it may
    )
    author: str = ""  # of the pages: the caller


@dataclass(slots=True)
class Released:
    """Pages that no process has any more after an unmap, and the statements that erase them."""

    spaces: list[int] = field(default_factory=list[int])
    pages: list[int] = field(default_factory=list[int])  # in other spaces
    statements: list[Statement] = field(default_factory=list[Statement])


async def document(
    memory: Memory, table: PageTable, request: MapRequest
) -> tuple[Range, documents.Listing, Released]:
    """Map the file or folder at a path; replaces an earlier mapping of the same path.

    Returns the mapping, the files at the path, and what the old mapping leaves to erase.
    """
    path = Path(request.source.removeprefix("/files"))
    found = await memory.in_file_thread(documents.list_files, request.access, path)
    await documents.permitted(found, request.why_not)
    texts = await memory.in_file_thread(documents.read, request.access, found)
    digest = await memory.in_file_thread(_digest, request.model, texts)
    name = request.source, digest
    async with (
        _stored(memory, name, texts, request),
        memory.tables.ownership,
        memory.tables.changing(table),
    ):
        known = await _known(memory, *name)
        if known is None:  # its pages were forgotten, or its last process unmapped it, meanwhile
            raise SyscallError(Errno.EAGAIN, f"{path} was erased while it was mapped", "try again")
        mapped, released = await _mapped(memory, table, request, *known)
        await memory.change(table, Change(ranges=[mapped], more=released.statements, erases=True))
    return mapped, found, released


@asynccontextmanager
async def _stored(
    memory: Memory,
    name: tuple[str, bytes],
    texts: Sequence[Document],
    request: MapRequest,
) -> AsyncGenerator[None]:
    """Store a document that is not stored yet; erase it at the end if no process has mapped it."""
    if await _known(memory, *name):
        yield
        return
    pages = [page for m, one in enumerate(texts) for page in await _pages(one, m, request)]
    space = memory.new_space()
    memory.storing.add(space)
    try:
        await _store(memory, space, name, pages)
        yield
    finally:
        with CancelScope(shield=True):
            try:
                await erase_unmapped(memory, space)
            except SyscallError as error:
                log.warning("an unmapped document of %s is erased at the next boot: %s",
                            memory.owner, error)  # fmt: skip
            finally:
                memory.storing.discard(space)


async def _mapped(
    memory: Memory, table: PageTable, request: MapRequest, space: int, count: int
) -> tuple[Range, Released]:
    """The mapping of a source: the existing one if it shows the same pages, otherwise a new one.

    Other mappings of the source are removed: old and new text are never mapped together.
    """
    before = [one for one in table.ranges if one.source == request.source]
    same = (one for one in before if one.space == space and not table.changed(one))
    mapped = next(same, None)
    if mapped is None:
        mapped = table.map(space, 0, count, writable=request.writable, source=request.source)
        table.tokens += await _tokens(memory, table, mapped)
    mapped.writable = request.writable
    released = Released()
    for one in before:
        if one is not mapped:
            await _remove(memory, table, one, released)
    return mapped, released


def _digest(model: str, texts: Sequence[Document]) -> bytes:
    digest = blake2b(model.encode(), digest_size=16)
    for one in texts:
        digest.update(b"\0".join((one.name.encode(), one.text.encode(), b"")))
    return digest.digest()


async def _known(memory: Memory, source: str, digest: bytes) -> tuple[int, int] | None:
    """The space of a completely stored document, and its number of pages.

    Of two that were stored at the same time, it is the one that a process has mapped.
    """
    sql = """SELECT space, count FROM spaces WHERE source = ? AND digest = ? ORDER BY
             NOT EXISTS (SELECT 1 FROM ranges WHERE ranges.space = spaces.space), space LIMIT 1"""
    found = await memory.read(sql, source, digest)
    return (int(found[0][0] or 0), int(found[0][1] or 0)) if found else None


async def _store(
    memory: Memory, space: int, name: tuple[str, bytes], pages: Sequence[NewPage]
) -> None:
    """Store a document's pages in slices; its name is set with the last slice."""
    database = memory.database
    incomplete = ("INSERT INTO spaces VALUES(?, 0, ?, x'', 0)", (space, schema.INCOMPLETE))
    await memory.store.write(database, [incomplete])
    for at in range(0, len(pages), limits.SLICE_ROWS):
        some = pages[at : at + limits.SLICE_ROWS]
        ids = [schema.page_id(space, at + index) for index in range(len(some))]
        statements = await memory.in_file_thread(_rows, memory.owner, ids, some)
        statements += schema.index_pages(ids[0], ids[-1])
        await memory.store.slice(database, partial(_write, statements), frees=False)
        memory.add_waiting(len(ids))
    known = "UPDATE spaces SET source = ?, digest = ?, count = ? WHERE space = ?"
    last = schema.page_id(space, len(pages) - 1)
    await memory.store.write(
        database, [*schema.complete_windows(last), (known, (*name, len(pages), space))]
    )  # fmt: skip


def _write(statements: Sequence[Statement], transaction: Transaction) -> None:
    transaction.write(statements)


def _rows(owner: str, ids: Sequence[int], pages: Sequence[NewPage]) -> list[Statement]:
    return [rows.page_row(owner, page, one) for page, one in zip(ids, pages, strict=True)]


async def _pages(one: Document, message: int, request: MapRequest) -> list[NewPage]:
    """Cut a document into pages, in order."""
    found: list[NewPage] = []
    for at in range(0, len(one.text), limits.CUT_CHARS):
        found += [
            NewPage(c.text, c.tokens, Kind.DOCUMENT, request.author, message,
                    speaker=one.name[-limits.NAME_CHARS :],
                    time=one.time, key=one.name[: limits.KEY_CHARS])
            for c in await request.cut(one.text[at : at + limits.CUT_CHARS])
        ]  # fmt: skip
    return found


async def process(
    memory: Memory, table: PageTable, other: PageTable, numbers: range, *, writable: bool
) -> list[Range]:
    """Map pages of another process of the same owner, as they are now. ENOENT: it has none."""
    async with memory.tables.ownership, memory.tables.changing(table):
        pages = list(other.pages(numbers.start, min(numbers.stop, other.next)))
        if not pages:
            hint = f"`llmasos mem {other.pid}` lists its pages"
            raise SyscallError(Errno.ENOENT, _none(other, numbers), hint)
        source = f"/proc/{other.pid}/mem"
        mapped = [
            table.map(space, place, count, writable=writable, source=source)
            for space, place, count in _runs([page for _, page in pages])
        ]
        for one in mapped:
            table.tokens += await _tokens(memory, table, one)
        await memory.change(table, Change(ranges=mapped))
    return mapped


def _none(other: PageTable, numbers: range) -> str:
    """The error message when a range of a process has no pages."""
    if not other.next:
        return f"process {other.pid} has no pages"
    last = other.next - 1
    if numbers.start > last:
        return f"process {other.pid} has no page {numbers.start}: it has pages up to {last}"
    return f"process {other.pid} has no page from {numbers.start} to {min(numbers.stop - 1, last)}"


def _runs(pages: Sequence[int]) -> list[tuple[int, int, int]]:
    """Page ids as runs: space, first place and count of each."""
    found: list[tuple[int, int, int]] = []
    for page in pages:
        space, place = schema.space_of(page)
        if found and found[-1][0] == space and found[-1][1] + found[-1][2] == place:
            found[-1] = (space, found[-1][1], found[-1][2] + 1)
        else:
            found.append((space, place, 1))
    return found


async def _tokens(memory: Memory, table: PageTable, mapped: Range) -> int:
    """The tokens of the pages of a mapping."""
    sql = "SELECT coalesce(sum(tokens), 0) FROM pages WHERE id BETWEEN ? AND ?"
    total = 0
    for space, place, count in _runs([p for _, p in table.pages(mapped.first, mapped.end)]):
        first = schema.page_id(space, place)
        found = await memory.read(sql, first, first + count - 1)
        total += int(found[0][0] or 0)
    return total


async def unmap(memory: Memory, table: PageTable, number: int) -> Released:
    """Remove a mapping with the pages that were written in it. ENOENT."""
    released = Released()
    async with memory.tables.ownership, memory.tables.changing(table):
        await _remove(memory, table, table.mapping(number), released)
        await memory.change(table, Change(more=released.statements, erases=True, frees=True))
    return released


async def _remove(memory: Memory, table: PageTable, found: Range, released: Released) -> None:
    """Remove a mapping from a table; pages that no process has any more are added to `released`."""
    table.tokens -= await _tokens(memory, table, found)
    free, erased = erase_pages(memory, table.unmap(found))
    empty, statements = erase_unused(memory, found.space)
    released.spaces += [found.space] if empty else []
    released.pages += free if empty else [*free, *_holes(memory, found)]
    released.statements += [
        ("DELETE FROM ranges WHERE pid = ? AND first = ?", (table.pid, found.first)),
        ("DELETE FROM marks WHERE pid = ? AND number BETWEEN ? AND ?",
         (table.pid, found.first, found.end - 1)),
        *erased, *statements,
    ]  # fmt: skip


def _holes(memory: Memory, found: Range) -> list[int]:
    """Pages of a mapping that no process has, while a process has others of the space."""
    first, last = found.page(found.first), found.page(found.end - 1)
    return [
        page
        for low, high in unused_ranges(memory, found.space)
        for page in range(max(low, first), min(high, last) + 1)
    ]
