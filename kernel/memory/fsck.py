"""Are the pages whole, and do the indexes say what the pages say? Each index that is derived of the
pages is in the table DERIVED below, with how it is looked at and how it is made anew.

Looking takes place on a connection of its own, making in pieces: other calls of the owner go on.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from .. import limits
from ..database import Checker, Row, Value
from ..errors import SyscallError
from ..values import Checked
from . import erasing, pieces, schema, words
from .meaning import Meaning
from .memory import Memory
from .refusing import refused
from .rows import digest
from .table import Table

Result = TypeVar("Result")
_TEXTS = "SELECT id, text, hash FROM pages WHERE id > ? ORDER BY id LIMIT ?"


@dataclass(slots=True)
class _Check:
    """One run."""

    memory: Memory
    meaning: Meaning
    owner: str
    checker: Checker
    faults: list[str] = field(default_factory=list[str])
    mended: list[str] = field(default_factory=list[str])

    async def run(self, work: Callable[..., Result], *values: object) -> Result:
        """A piece of the work, in a thread that no other call of the owner waits for."""
        async with self.memory.store.pacing.piece():
            return await self.memory.checks.run(self.owner, work, *values)

    async def read(self, sql: str, *values: Value) -> list[Row]:
        return await self.run(self.checker.read, sql, values)

    async def number(self, sql: str, *values: Value) -> int:
        return int((await self.read(sql, *values))[0][0] or 0)


async def fsck(
    memory: Memory, meaning: Meaning, owner: str, alive: set[int], *, rebuild: bool
) -> Checked:
    """What was found, and what was mended. Pages that somebody has are never changed."""
    async with memory.upkeep(owner):
        checker = await memory.checks.run(owner, memory.database(owner).checker)
        try:
            check = _Check(memory, meaning, owner, checker)
            await _pages(check, alive, rebuild=rebuild)
            for name, (look, make) in DERIVED.items():
                check.faults += await look(check)
                if rebuild:
                    await make(check)
                    check.mended.append(f"made anew: {name}")
            return await _checked(check)
        finally:
            checker.close()


async def _checked(check: _Check) -> Checked:
    meaning = check.meaning
    return Checked(
        pages=await check.number("SELECT count(*) FROM pages"),
        spaces=await check.number("SELECT count(*) FROM spaces"),
        vectors=await check.number("SELECT count(*) FROM vectors"),
        waiting=0 if meaning.off else await check.number("SELECT count(*) FROM todo"),
        embedder=meaning.made_by, chroma=await _chroma_is(check), faults=check.faults,
        mended=check.mended, refused=await refused(check.memory, check.owner),
    )  # fmt: skip


# --- pages ----------------------------------------------------------------------------------------
async def _pages(check: _Check, alive: set[int], *, rebuild: bool) -> None:
    await _file(check)
    await _texts(check)
    for table in check.memory.tables.of(check.owner):
        await _table(check, table, alive)
    await _lost(check, rebuild=rebuild)


async def _file(check: _Check) -> None:
    """The database as SQLite sees it."""
    for row in await check.read("PRAGMA main.integrity_check(10)"):
        if row[0] != "ok":
            check.faults.append(f"pages.db: {row[0]!s}")


async def _texts(check: _Check) -> None:
    """Texts against the hashes that were written with them."""

    def some(after: int) -> tuple[int, int | None]:
        found = check.checker.read(_TEXTS, (after, limits.CHECKED_AT_ONCE))
        wrong = sum(digest(str(text)) != held for _, text, held in found)
        return wrong, int(found[-1][0] or 0) if found else None

    after: int | None = -1
    wrong = 0
    while after is not None:
        more, after = await check.run(some, after)
        wrong += more
    if wrong:
        check.faults.append(f"{wrong} pages are not what was written")


async def _table(check: _Check, table: Table, alive: set[int]) -> None:
    """A page table and what stands behind it, while nobody changes it."""
    if table.pid not in alive:
        check.faults.append(f"pages of process {table.pid}, which is gone")
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
                    f"{one.end - 1} are not there: a write of them failed"
                )


async def _lost(check: _Check, *, rebuild: bool) -> None:
    """Pages that no process has: they can neither be read nor forgotten."""
    pages = await erasing.lost(check.memory, check.owner)
    if not pages:
        return
    check.faults.append(f"{pages} pages belong to no process")
    if rebuild:
        await erasing.let_go_lost(check.memory, check.owner)
        check.mended.append("erased: pages that belong to no process")


# --- words ----------------------------------------------------------------------------------------
async def _words(check: _Check) -> list[str]:
    """Both text indexes against the pages, as they were at one moment."""
    if check.owner in check.memory.filling:
        return ["the text indexes are not complete: making them anew was interrupted"]
    wrong: list[str] = []
    await check.read("BEGIN")
    try:
        for index in pieces.INDEXES:
            try:
                same = await _same(check, words.Comparison(check.checker, index))
            except SyscallError as error:
                wrong.append(f"the text index {index} cannot be read: {error.message}")
            else:
                wrong += [] if same else [f"the text index {index} is not what the pages say"]
    finally:
        check.checker.read("ROLLBACK")
    return wrong


async def _same(check: _Check, comparison: words.Comparison) -> bool:
    await check.run(comparison.begin)
    while await check.run(comparison.some):
        pass
    return await check.run(comparison.end)


async def _new_words(check: _Check) -> None:
    await words.rebuild(check.memory, check.owner)


# --- vectors --------------------------------------------------------------------------------------
async def _vectors(check: _Check) -> list[str]:
    sql = """SELECT count(*) FROM pages WHERE id NOT IN (SELECT id FROM vectors)
             AND id NOT IN (SELECT id FROM todo) AND id NOT IN (SELECT id FROM refused)"""
    lost = await check.number(sql)
    spare = await check.number(
        "SELECT count(*) FROM vectors WHERE id NOT IN (SELECT id FROM pages)"
    )
    wrong = [f"{lost} pages have no vector and wait for none"] if lost else []
    return [*wrong, *([f"{spare} vectors are of no page"] if spare else [])]


async def _new_vectors(check: _Check) -> None:
    memory, owner = check.memory, check.owner
    await memory.store.slice(memory.database(owner), pieces.begin_vectors)
    await resume_vectors(memory, check.meaning, owner)


async def resume_vectors(memory: Memory, meaning: Meaning, owner: str) -> None:
    """Remove the vectors that are still there, as making them anew was interrupted."""
    while await memory.store.slice(memory.database(owner), pieces.clear_vectors):
        pass
    await memory.count_waiting(owner)
    spaces = await memory.read(owner, "SELECT space FROM spaces")
    await meaning.erased(owner, [int(row[0] or 0) for row in spaces])
    meaning.written(owner)


# --- Chroma ---------------------------------------------------------------------------------------
async def _chroma(check: _Check) -> list[str]:
    wrong: list[str] = []
    for space, there in await _stored(check):
        sql = "SELECT count(*) FROM vectors WHERE id BETWEEN ? AND ?"
        wanted = await check.number(sql, *schema.whole(space))
        if there < 0:
            return ["Chroma cannot be used"]
        if there != wanted:
            wrong.append(f"Chroma has {there} vectors of space {space}, there are {wanted}")
    return wrong


async def _stored(check: _Check) -> list[tuple[int, int]]:
    """Spaces that the recall process holds, and how many vectors Chroma has of each."""
    held = check.meaning.held(check.owner)
    return [(space, await check.meaning.stored(check.owner, space)) for space in held]


async def _new_chroma(check: _Check) -> None:
    await check.meaning.renew(check.owner)


async def _chroma_is(check: _Check) -> str:
    if not check.meaning.os_pid:
        return check.meaning.trouble or "not started: nobody needed it yet"
    return "usable" if all(there >= 0 for _, there in await _stored(check)) else "cannot be used"


Look = Callable[[_Check], Awaitable[list[str]]]
Make = Callable[[_Check], Awaitable[None]]
DERIVED: dict[str, tuple[Look, Make]] = {
    "text index": (_words, _new_words),
    "vectors": (_vectors, _new_vectors),
    "Chroma": (_chroma, _new_chroma),
}
