"""Are the pages whole, and do the indexes say what the pages say? Each index that is derived of the
pages is in the table DERIVED below, with how it is looked at and how it is made anew.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from ..database import Statement
from ..errors import SyscallError
from ..values import Checked
from . import schema
from .meaning import Meaning
from .memory import Memory
from .rows import digest

_TEXTS = "SELECT id, text, hash FROM pages WHERE id >= ? ORDER BY id LIMIT ?"


@dataclass(slots=True)
class _Check:
    """One run."""

    memory: Memory
    meaning: Meaning
    owner: str
    faults: list[str] = field(default_factory=list[str])
    mended: list[str] = field(default_factory=list[str])

    async def number(self, sql: str) -> int:
        rows = await self.memory.read(self.owner, sql)
        return int(rows[0][0] or 0)

    async def write(self, statements: Sequence[Statement]) -> None:
        await self.memory.store.write(self.memory.database(self.owner), statements, frees=True)


async def fsck(
    memory: Memory, meaning: Meaning, owner: str, alive: set[int], *, rebuild: bool
) -> Checked:
    """What was found, and what was mended. Pages themselves are never changed."""
    check = _Check(memory, meaning, owner)
    await _file(check)
    await _texts(check)
    await _tables(check, alive)
    for name, (look, make) in DERIVED.items():
        wrong = await look(check)
        check.faults += wrong
        if rebuild:
            await make(check)
            check.mended.append(f"made anew: {name}")
    return Checked(
        pages=await check.number("SELECT count(*) FROM pages"),
        spaces=await check.number("SELECT count(*) FROM spaces"),
        vectors=await check.number("SELECT count(*) FROM vectors"),
        waiting=0 if meaning.off else await check.number("SELECT count(*) FROM todo"),
        embedder=meaning.made_by, chroma=await _chroma_is(check), faults=check.faults,
        mended=check.mended,
    )  # fmt: skip


async def _file(check: _Check) -> None:
    """The database as SQLite sees it."""
    for row in await check.memory.read(check.owner, "PRAGMA integrity_check(10)"):
        if row[0] != "ok":
            check.faults.append(f"pages.db: {row[0]!s}")


async def _texts(check: _Check) -> None:
    """Texts against the hashes that were written with them."""
    at, wrong = 0, 0
    while rows := await check.memory.read(check.owner, _TEXTS, at, schema.AT_ONCE):
        wrong += sum(digest(str(text)) != held for _, text, held in rows)
        at = int(rows[-1][0] or 0) + 1
    if wrong:
        check.faults.append(f"{wrong} pages are not what was written")


async def _tables(check: _Check, alive: set[int]) -> None:
    """Page tables and what stands behind them."""
    for table in check.memory.tables.of(check.owner):
        if table.pid not in alive:
            check.faults.append(f"pages of process {table.pid}, which is gone")
        for one in table.ranges:
            first = schema.page_id(one.space, one.place)
            sql = f"SELECT count(*) FROM pages WHERE id BETWEEN {first} AND {first + one.count - 1}"
            holes = one.count - await check.number(sql)
            known = sum(1 for n, m in table.marks.items()
                        if m.page is not None and one.first <= n < one.end)  # fmt: skip
            if holes > known:
                check.faults.append(
                    f"process {table.pid}: {holes - known} pages from {one.first} to "
                    f"{one.end - 1} are not there: a write of them failed"
                )


# --- words ----------------------------------------------------------------------------------------
async def _words(check: _Check) -> list[str]:
    wrong: list[str] = []
    for index in ("turns", "nears"):
        try:
            # The second form compares the index with what it is made of.
            sql = f"INSERT INTO {index}({index}, rank) VALUES('integrity-check', 1)"
            await check.write([(sql, ())])
        except SyscallError:
            wrong.append(f"the text index {index} is not what the pages say")
    return wrong


async def _new_words(check: _Check) -> None:
    await check.write([
        ("INSERT INTO turns(turns) VALUES('rebuild')", ()),
        ("INSERT INTO nears(nears) VALUES('rebuild')", ()),
    ])  # fmt: skip


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
    await check.write([
        ("DELETE FROM vectors", ()),
        ("DELETE FROM derived WHERE name IN ('vectors', 'numbers')", ()),
        ("DELETE FROM refused", ()),
        (f"INSERT OR IGNORE INTO todo SELECT id, {schema.NOW} FROM pages", ()),
    ])  # fmt: skip
    await check.memory.count_waiting(check.owner)
    spaces = await check.memory.read(check.owner, "SELECT space FROM spaces")
    await check.meaning.erased(check.owner, [int(row[0] or 0) for row in spaces])


# --- Chroma ---------------------------------------------------------------------------------------
async def _chroma(check: _Check) -> list[str]:
    wrong: list[str] = []
    for space, there in await _stored(check):
        first, last = schema.whole(space)
        sql = f"SELECT count(*) FROM vectors WHERE id BETWEEN {first} AND {last}"
        wanted = await check.number(sql)
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
