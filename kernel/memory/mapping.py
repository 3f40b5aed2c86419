"""Pages that are stored once and seen by several: documents, folders, parts of other processes.

A document becomes a space of its own, known by its path, its bytes and the tokenizer that cut it,
so that whoever maps it again gets the same pages. A mapping shows what was there when it was made;
mapped again by the same process, a document that has changed takes the place of what it was.
"""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path

from anyio import CancelScope

from .. import limits
from ..database import Statement, Transaction
from ..driver import Cut
from ..errors import Errno, SyscallError
from ..filesystem import Access
from ..values import Kind
from . import documents, rows, schema
from .documents import Document
from .erasing import abandon, emptied, freed, unused
from .memory import Memory
from .rows import Change, Written
from .table import Range, Table

log = logging.getLogger(__name__)
CutText = Callable[[str], Awaitable[Sequence[Cut]]]


def _allowed(_: Path) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Asked:
    """A document to be mapped."""

    source: str  # /files/PATH
    writable: bool
    model: str  # whose tokenizer cuts it
    cut: CutText
    access: Access = field(default_factory=Access)
    why_not: Callable[[Path], str] = _allowed  # for a file of a folder; "": it may be mapped
    author: str = ""  # who maps it


@dataclass(slots=True)
class Gone:
    """What nobody has any more when mappings are taken away, and how that is written."""

    spaces: list[int] = field(default_factory=list[int])
    pages: list[int] = field(default_factory=list[int])  # of other spaces
    statements: list[Statement] = field(default_factory=list[Statement])


async def document(memory: Memory, table: Table, asked: Asked) -> tuple[Range, list[str], Gone]:
    """Map the text or the folder at a path, in the place of what was mapped from there before.

    What was skipped of a folder is told, and what is gone with the mapping before.
    """
    path = Path(asked.source.removeprefix("/files"))
    files = memory.files
    found = await files.run(table.owner, documents.look, asked.access, path)
    await documents.permitted(found, asked.why_not)
    texts, skipped = await files.run(table.owner, documents.read, asked.access, found)
    digest = await files.run(table.owner, _digest, asked.model, texts)
    name = asked.source, digest
    async with (
        _stored(memory, table.owner, name, texts, asked),
        memory.tables.structure(table.owner),
        memory.tables.changing(table),
    ):
        known = await _known(memory, table.owner, *name)
        if known is None:  # it was forgotten, or unmapped by its last user, meanwhile
            raise SyscallError(Errno.EAGAIN, f"{path} was let go meanwhile", "map it again")
        mapped, gone = await _placed(memory, table, asked, *known)
        await memory.change(table, Change(ranges=[mapped], more=gone.statements, goes=True))
    return mapped, skipped, gone


@asynccontextmanager
async def _stored(
    memory: Memory, owner: str, name: tuple[str, bytes], texts: Sequence[Document], asked: Asked,
) -> AsyncGenerator[None]:  # fmt: skip
    """Store a document that is not stored yet. It goes again when nobody has mapped it."""
    if await _known(memory, owner, *name):
        yield
        return
    pages = [page for m, one in enumerate(texts) for page in await _pages(one, m, asked)]
    space = memory.new_space(owner)
    memory.coming.add((owner, space))
    try:
        await _store(memory, owner, space, name, pages)
        yield
    finally:
        with CancelScope(shield=True):
            try:
                await abandon(memory, owner, space)
            except SyscallError as error:
                log.warning("a document of %s that was not mapped stays until the next start: %s",
                            owner, error)  # fmt: skip
            finally:
                memory.coming.discard((owner, space))


async def _placed(
    memory: Memory, table: Table, asked: Asked, space: int, count: int
) -> tuple[Range, Gone]:
    """The mapping of a source: the one that is there, if it shows all of this; otherwise a new one.

    Others of the source are taken away: old text does not stand beside new.
    """
    before = [one for one in table.ranges if one.source == asked.source]
    same = (one for one in before if one.space == space and not table.changed(one))
    mapped = next(same, None)
    if mapped is None:
        mapped = table.map(space, 0, count, writable=asked.writable, source=asked.source)
        table.tokens += await _tokens(memory, table, mapped)
    mapped.writable = asked.writable
    gone = Gone()
    for one in before:
        if one is not mapped:
            await _take(memory, table, one, gone)
    return mapped, gone


def _digest(model: str, texts: Sequence[Document]) -> bytes:
    digest = blake2b(model.encode(), digest_size=16)
    for one in texts:
        digest.update(b"\0".join((one.name.encode(), one.text.encode(), b"")))
    return digest.digest()


async def _known(memory: Memory, owner: str, source: str, digest: bytes) -> tuple[int, int] | None:
    """The space of a document that is stored whole, and how many pages it has.

    Of two that were stored at the same time it is the one that somebody has mapped.
    """
    sql = """SELECT space, count FROM spaces WHERE source = ? AND digest = ? ORDER BY
             NOT EXISTS (SELECT 1 FROM ranges WHERE ranges.space = spaces.space), space LIMIT 1"""
    found = await memory.read(owner, sql, source, digest)
    return (int(found[0][0] or 0), int(found[0][1] or 0)) if found else None


async def _store(
    memory: Memory, owner: str, space: int, name: tuple[str, bytes], pages: Sequence[Written]
) -> None:
    """A document's pages, piece by piece; it is known by its name when the last is there."""
    database = memory.database(owner)
    coming = ("INSERT INTO spaces VALUES(?, 0, ?, x'', 0)", (space, schema.COMING))
    await memory.store.write(database, [coming])
    for at in range(0, len(pages), limits.SLICE_ROWS):
        some = pages[at : at + limits.SLICE_ROWS]
        ids = [schema.page_id(space, at + index) for index in range(len(some))]
        statements = await memory.files.run(owner, _rows, owner, ids, some)
        statements += schema.followed(ids[0], ids[-1])
        await memory.store.slice(database, partial(_write, statements), frees=False)
        memory.lags.add(owner, len(ids))
    known = "UPDATE spaces SET source = ?, digest = ?, count = ? WHERE space = ?"
    last = schema.page_id(space, len(pages) - 1)
    await memory.store.write(
        database, [*schema.sealed(last), (known, (*name, len(pages), space))]
    )  # fmt: skip


def _write(statements: Sequence[Statement], transaction: Transaction) -> None:
    transaction.write(statements)


def _rows(owner: str, ids: Sequence[int], pages: Sequence[Written]) -> list[Statement]:
    return [rows.page_row(owner, page, one) for page, one in zip(ids, pages, strict=True)]


async def _pages(one: Document, message: int, asked: Asked) -> list[Written]:
    """A document as pages, in order."""
    found: list[Written] = []
    for at in range(0, len(one.text), limits.CUT_CHARS):
        found += [
            Written(c.text, c.tokens, Kind.DOCUMENT, asked.author, message,
                    speaker=one.name[-limits.NAME_CHARS :],
                    time=one.time, key=one.name[: limits.KEY_CHARS])
            for c in await asked.cut(one.text[at : at + limits.CUT_CHARS])
        ]  # fmt: skip
    return found


async def process(
    memory: Memory, table: Table, other: Table, part: range, *, writable: bool
) -> list[Range]:
    """Map pages of another process of the same owner, as they are now. ENOENT: none are there."""
    async with memory.tables.structure(table.owner), memory.tables.changing(table):
        pages = list(other.pages(part.start, min(part.stop, other.next)))
        if not pages:
            hint = f"`llmasos mem {other.pid}` lists its pages"
            raise SyscallError(Errno.ENOENT, _none(other, part), hint)
        source = f"/proc/{other.pid}/mem"
        mapped = [
            table.map(space, place, count, writable=writable, source=source)
            for space, place, count in _runs([page for _, page in pages])
        ]
        for one in mapped:
            table.tokens += await _tokens(memory, table, one)
        await memory.change(table, Change(ranges=mapped))
    return mapped


def _none(other: Table, part: range) -> str:
    """Why nothing of a process can be mapped."""
    if not other.next:
        return f"process {other.pid} has no pages"
    last = other.next - 1
    if part.start > last:
        return f"process {other.pid} has no page {part.start}: it has pages up to {last}"
    return f"process {other.pid} has no page from {part.start} to {min(part.stop - 1, last)}"


def _runs(pages: Sequence[int]) -> list[tuple[int, int, int]]:
    """Stored pages as space, first place and count of each run."""
    found: list[tuple[int, int, int]] = []
    for page in pages:
        space, place = schema.space_of(page)
        if found and found[-1][0] == space and found[-1][1] + found[-1][2] == place:
            found[-1] = (space, found[-1][1], found[-1][2] + 1)
        else:
            found.append((space, place, 1))
    return found


async def _tokens(memory: Memory, table: Table, mapped: Range) -> int:
    """Of the pages that stand for the numbers of a mapping."""
    sql = "SELECT coalesce(sum(tokens), 0) FROM pages WHERE id BETWEEN ? AND ?"
    total = 0
    for space, place, count in _runs([p for _, p in table.pages(mapped.first, mapped.end)]):
        first = schema.page_id(space, place)
        found = await memory.read(table.owner, sql, first, first + count - 1)
        total += int(found[0][0] or 0)
    return total


async def unmap(memory: Memory, table: Table, number: int) -> Gone:
    """Take a mapping away, with what was written in it. ENOENT."""
    gone = Gone()
    async with memory.tables.structure(table.owner), memory.tables.changing(table):
        await _take(memory, table, table.mapping(number), gone)
        await memory.change(table, Change(more=gone.statements, goes=True, frees=True))
    return gone


async def _take(memory: Memory, table: Table, found: Range, gone: Gone) -> None:
    """Off a table; what nobody has any more is added to what is gone."""
    table.tokens -= await _tokens(memory, table, found)
    free, erased = freed(memory, table.owner, table.unmap(found))
    whole, statements = emptied(memory, table.owner, found.space)
    gone.spaces += [found.space] if whole else []
    gone.pages += free if whole else [*free, *_holes(memory, table.owner, found)]
    gone.statements += [
        ("DELETE FROM ranges WHERE pid = ? AND first = ?", (table.pid, found.first)),
        ("DELETE FROM marks WHERE pid = ? AND number BETWEEN ? AND ?",
         (table.pid, found.first, found.end - 1)),
        *erased, *statements,
    ]  # fmt: skip


def _holes(memory: Memory, owner: str, found: Range) -> list[int]:
    """Pages of a mapping that nobody has, though somebody has others of its space."""
    first, last = found.page(found.first), found.page(found.end - 1)
    return [
        page
        for low, high in unused(memory, owner, found.space)
        for page in range(max(low, first), min(high, last) + 1)
    ]
