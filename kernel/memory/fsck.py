"""Checks the pages of an owner and the indexes derived from them, and rebuilds the indexes.

The table DERIVED below lists each derived index with its check and its rebuild. A check reads on a
connection of its own and a rebuild runs in pieces, so other calls of the owner go on meanwhile.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from ..abi import limits
from ..abi.errors import SyscallError
from ..abi.values import Checked
from ..storage.database import Checker, Row, Value
from . import erasing, pieces, schema, text_index
from .memory import Memory
from .refusing import refused
from .rows import digest
from .table import PageTable
from .vector_index import VectorIndex

Result = TypeVar("Result")
_COMPARISONS = 4  # of Chroma with the database, while vectors are written
_TEXTS = "SELECT id, text, hash FROM pages WHERE id > ? ORDER BY id LIMIT ?"


@dataclass(slots=True)
class _Check:
    """One run of `fsck`."""

    memory: Memory
    vectors: VectorIndex
    checker: Checker
    faults: list[str] = field(default_factory=list[str])
    mended: list[str] = field(default_factory=list[str])
    indexing: bool = False  # vectors were written all the time: Chroma could not be compared

    async def run(self, work: Callable[..., Result], *values: object) -> Result:
        """Run a piece of the check in a thread that no other call of the owner waits for."""
        async with self.memory.store.pacing.piece():
            return await self.memory.store.checkers.run(self.memory.owner, work, *values)

    async def read(self, sql: str, *values: Value) -> list[Row]:
        return await self.run(self.checker.read, sql, values)

    async def number(self, sql: str, *values: Value) -> int:
        return int((await self.read(sql, *values))[0][0] or 0)


async def fsck(memory: Memory, vectors: VectorIndex, alive: set[int], *, rebuild: bool) -> Checked:
    """Check, and rebuild if requested. Pages that a process has are never changed."""
    async with memory.maintenance:
        checker = await memory.store.checkers.run(memory.owner, memory.database.checker)
        try:
            check = _Check(memory, vectors, checker)
            await _pages(check, alive, rebuild=rebuild)
            for name, (inspect, rebuild_index) in DERIVED.items():
                check.faults += await inspect(check)
                if rebuild:
                    await rebuild_index(check)
                    check.mended.append(f"rebuilt: {name}")
            return await _checked(check)
        finally:
            checker.close()


async def _checked(check: _Check) -> Checked:
    vectors = check.vectors
    return Checked(
        pages=await check.number("SELECT count(*) FROM pages"),
        spaces=await check.number("SELECT count(*) FROM spaces"),
        vectors=await check.number("SELECT count(*) FROM vectors"),
        waiting=0 if vectors.device.disabled else await check.number("SELECT count(*) FROM todo"),
        embedder=vectors.device.embedder_name, chroma=await _chroma_state(check),
        faults=check.faults, mended=check.mended, refused=await refused(check.memory),
    )  # fmt: skip


# --- pages ----------------------------------------------------------------------------------------
async def _pages(check: _Check, alive: set[int], *, rebuild: bool) -> None:
    await _file(check)
    await _texts(check)
    for table in check.memory.tables.all():
        await _table(check, table, alive)
    await _lost(check, rebuild=rebuild)


async def _file(check: _Check) -> None:
    """Run SQLite's integrity check."""
    for row in await check.read("PRAGMA main.integrity_check(10)"):
        if row[0] != "ok":
            check.faults.append(f"pages.db: {row[0]!s}")


async def _texts(check: _Check) -> None:
    """Compare texts with the hashes that were stored with them."""

    def some(after: int) -> tuple[int, int | None]:
        found = check.checker.read(_TEXTS, (after, limits.CHECKED_AT_ONCE))
        wrong = sum(digest(str(text)) != stored for _, text, stored in found)
        return wrong, int(found[-1][0] or 0) if found else None

    after: int | None = -1
    wrong = 0
    while after is not None:
        more, after = await check.run(some, after)
        wrong += more
    if wrong:
        check.faults.append(f"{wrong} pages do not match their hash")


async def _table(check: _Check, table: PageTable, alive: set[int]) -> None:
    """Check that the pages of a page table exist; holds the table's lock."""
    if table.pid not in alive:
        check.faults.append(f"process {table.pid} was removed, its pages were not erased")
    async with check.memory.tables.lock(table.pid):
        for one in table.ranges:
            first = schema.page_id(one.space, one.place)
            sql = "SELECT count(*) FROM pages WHERE id BETWEEN ? AND ?"
            holes = one.count - await check.number(sql, first, first + one.count - 1)
            known = sum(1 for n, m in table.marks.items()
                        if m.page is not None and one.first <= n < one.end)  # fmt: skip
            if holes > known:
                check.faults.append(
                    f"process {table.pid}: {holes - known} pages from {one.first} to "
                    f"{one.end - 1} are missing: a write failed"
                )


async def _lost(check: _Check, *, rebuild: bool) -> None:
    """Check for pages that no process has: they can be neither read nor forgotten."""
    pages = await erasing.lost(check.memory)
    if not pages:
        return
    check.faults.append(f"{pages} pages belong to no process")
    if rebuild:
        await erasing.erase_lost(check.memory)
        check.mended.append("erased: pages that belong to no process")


# --- text indexes ---------------------------------------------------------------------------------
async def _text_indexes(check: _Check) -> list[str]:
    """Compare both text indexes with the pages, in one snapshot of the database."""
    if check.memory.rebuilding:
        return ["the text indexes are incomplete: a rebuild was interrupted"]
    wrong: list[str] = []
    await check.read("BEGIN")
    try:
        for index in pieces.INDEXES:
            try:
                same = await _same(check, text_index.Comparison(check.checker, index))
            except SyscallError as error:
                wrong.append(f"the text index {index} cannot be read: {error.message}")
            else:
                wrong += [] if same else [f"the text index {index} does not match the pages"]
    finally:
        check.checker.read("ROLLBACK")
    return wrong


async def _same(check: _Check, comparison: text_index.Comparison) -> bool:
    await check.run(comparison.begin)
    while await check.run(comparison.some):
        pass
    return await check.run(comparison.end)


async def _rebuild_texts(check: _Check) -> None:
    await text_index.rebuild(check.memory)


# --- vectors --------------------------------------------------------------------------------------
async def _vectors(check: _Check) -> list[str]:
    sql = """SELECT count(*) FROM pages WHERE id NOT IN (SELECT id FROM vectors)
             AND id NOT IN (SELECT id FROM todo) AND id NOT IN (SELECT id FROM refused)"""
    lost = await check.number(sql)
    spare = await check.number(
        "SELECT count(*) FROM vectors WHERE id NOT IN (SELECT id FROM pages)"
    )
    wrong = [f"{lost} pages have no vector and are not queued for one"] if lost else []
    return [*wrong, *([f"{spare} vectors belong to no page"] if spare else [])]


async def _rebuild_vectors(check: _Check) -> None:
    memory = check.memory
    await memory.store.slice(memory.database, pieces.begin_vectors)
    await resume_vectors(memory, check.vectors)


async def resume_vectors(memory: Memory, vectors: VectorIndex) -> None:
    """Continue a rebuild: remove the old vectors that are left and queue the pages again."""
    while await memory.store.slice(memory.database, pieces.clear_vectors):
        pass
    await memory.count_waiting()
    spaces = await memory.read("SELECT space FROM spaces")
    await vectors.remove([int(row[0] or 0) for row in spaces])
    vectors.pages_written()


# --- Chroma ---------------------------------------------------------------------------------------
async def _chroma(check: _Check) -> list[str]:
    """Compare the spaces loaded in the recall process with Chroma."""
    wrong: list[str] = []
    for space in sorted(check.vectors.loaded):
        stored, wanted, certain = await _counts(check, space)
        if stored < 0:
            return ["Chroma is not available"]
        if stored != wanted and certain:
            wrong.append(f"Chroma has {stored} vectors of space {space}, the database {wanted}")
        check.indexing |= not certain
    return wrong


async def _counts(check: _Check, space: int) -> tuple[int, int, bool]:
    """The vectors of a space in Chroma and in the database; whether a difference is certain.

    Indexing writes to the database first. So a difference is certain when it is found twice and no
    vector was written or removed in between.
    """
    vectors, before = check.vectors, (0, 0)
    for _ in range(_COMPARISONS):
        changes = vectors.changes
        sql = "SELECT count(*) FROM vectors WHERE id BETWEEN ? AND ?"
        stored = await vectors.stored(space)
        counts = stored, await check.number(sql, *schema.id_range(space))
        idle = not vectors.busy and changes == vectors.changes
        if stored < 0 or stored == counts[1] or (idle and counts == before):
            return *counts, True
        before = counts
    return *before, False


async def _rebuild_chroma(check: _Check) -> None:
    await check.vectors.renew()


async def _chroma_state(check: _Check) -> str:
    if not check.vectors.device.os_pid:
        return check.vectors.device.unavailable_reason or "not started: no search yet"
    stored = [await check.vectors.stored(space) for space in sorted(check.vectors.loaded)]
    if any(count < 0 for count in stored):
        return "not available"
    return "not compared: still indexing" if check.indexing else "usable"


Inspect = Callable[[_Check], Awaitable[list[str]]]
Rebuild = Callable[[_Check], Awaitable[None]]
DERIVED: dict[str, tuple[Inspect, Rebuild]] = {
    "text index": (_text_indexes, _rebuild_texts),
    "vectors": (_vectors, _rebuild_vectors),
    "Chroma": (_chroma, _rebuild_chroma),
}
