"""Pages that an embedder refused: remembered with the reason, and tried again with another one.

They are found by their words. It must not know how a text becomes a vector.
"""

import logging
from collections.abc import Mapping

from .. import limits
from ..database import Statement
from . import schema
from .memory import Memory

log = logging.getLogger(__name__)
_REFUSE = f"INSERT OR REPLACE INTO refused SELECT id, ?, ?, {schema.NOW} FROM pages WHERE id = ?"
_DONE = "DELETE FROM todo WHERE id = ?"
_REFUSED = "SELECT id, why FROM refused ORDER BY id LIMIT ?"
_OTHERS = "SELECT 1 FROM refused WHERE made_by != ? LIMIT 1"
_AGAIN = (
    f"INSERT OR IGNORE INTO todo SELECT id, {schema.NOW} FROM refused WHERE made_by != ?",
    "DELETE FROM refused WHERE made_by != ?",
)


async def refuse(memory: Memory, owner: str, made_by: str, why: Mapping[int, str]) -> None:
    """These pages do not wait for a vector any more."""
    statements: list[Statement] = []
    for page, reason in why.items():
        log.warning("page %d of %s is found by words only: %s", page, owner, reason)
        statements += [(_REFUSE, (made_by, reason, page)), (_DONE, (page,))]
    await memory.store.write(memory.database(owner), statements, durable=False)


async def refused(memory: Memory, owner: str) -> list[str]:
    """The first pages of which there is no vector, where they are, and why."""
    found: list[str] = []
    for page, why in await memory.read(owner, _REFUSED, limits.REFUSED):
        space, _ = schema.space_of(int(page or 0))
        places = [
            f"page {number} of process {table.pid}"
            for table in memory.tables.having(owner, space)
            for number in table.numbers(int(page or 0))
        ]
        found.append(f"{', '.join(places) or 'a page that goes'}: {why!s}")
    return found


async def look_again(memory: Memory, owner: str, made_by: str) -> None:
    """Pages that another embedder refused wait for this one."""
    if await memory.read(owner, _OTHERS, made_by):
        statements: list[Statement] = [(sql, (made_by,)) for sql in _AGAIN]
        await memory.store.write(memory.database(owner), statements, durable=False)
