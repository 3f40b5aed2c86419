"""Pages that an embedder refused: stored with the reason, and retried when the embedder changes.

They are found by words only. This file must not know how a text is embedded.
"""

import logging
from collections.abc import Mapping

from ..abi import limits
from ..storage.database import Statement
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


async def refuse(memory: Memory, embedder: str, why: Mapping[int, str]) -> None:
    """Record pages that get no vector, and take them out of `todo`."""
    statements: list[Statement] = []
    for page, reason in why.items():
        log.warning("page %d of %s is found by words only: %s", page, memory.owner, reason)
        statements += [(_REFUSE, (embedder, reason, page)), (_DONE, (page,))]
    await memory.store.write(memory.database, statements, durable=False)


async def refused(memory: Memory) -> list[str]:
    """The first REFUSED refused pages, with the processes that have them and the reason."""
    found: list[str] = []
    for page, why in await memory.read(_REFUSED, limits.REFUSED):
        space, _ = schema.space_of(int(page or 0))
        places = [
            f"page {number} of process {table.pid}"
            for table in memory.tables.using(space)
            for number in table.numbers(int(page or 0))
        ]
        found.append(f"{', '.join(places) or 'a page that is being erased'}: {why!s}")
    return found


async def retry_refused(memory: Memory, embedder: str) -> None:
    """Queue the pages that another embedder refused for this one."""
    if await memory.read(_OTHERS, embedder):
        statements: list[Statement] = [(sql, (embedder,)) for sql in _AGAIN]
        await memory.store.write(memory.database, statements, durable=False)
