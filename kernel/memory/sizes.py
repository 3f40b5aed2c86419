"""Tokens of pages, without their texts: what pins take, and what stands in windows.

A window's tokens are summed once and kept with its table until it is another window. Windows are
never changed in place, so that one can be told from the next by identity.
"""

import json
from collections.abc import Iterable, Sequence

from .. import limits
from ..errors import TooBig
from ..values import Role
from .memory import Memory
from .table import Table

_TOKENS = "SELECT id, tokens FROM pages WHERE id IN (SELECT value FROM json_each(?))"


async def in_windows(memory: Memory, owner: str, pids: Iterable[int]) -> dict[int, int]:
    """Tokens in the window of each process of an owner: one look at the disk for all of them."""
    found = [memory.tables.get(pid) for pid in pids]
    tables = [table for table in found if table is not None]
    await memory.windows(owner, tables)
    new = {t.pid: t.window for t in tables if t.counted is None or t.counted[0] is not t.window}
    held = {t.pid: _ids(t, t.resident()) for t in tables if t.pid in new}
    tokens = await _tokens(memory, owner, {page for ids in held.values() for page in ids})
    sums = {t.pid: t.counted[1] for t in tables if t.counted is not None}
    for table in tables:
        if table.pid in new:
            ids = held[table.pid]
            sums[table.pid] = sum(tokens.get(page, 0) for page in ids)
            if all(page in tokens for page in ids):  # else some are being written just now
                table.counted = (new[table.pid], sums[table.pid])
    return sums


async def check_pins(memory: Memory, table: Table, numbers: Sequence[int], window: int) -> None:
    """E2BIG when all that never leaves would take more than its share of the window."""
    pinned = {*numbers, *(n for n, mark in table.marks.items() if mark.pinned)}
    system = {n for p in table.window if p.role is Role.SYSTEM for n in p.pages}
    ids = _ids(table, pinned | system)
    found = await _tokens(memory, table.owner, set(ids))
    tokens, room = sum(found.get(page, 0) for page in ids), int(window * limits.PIN_SHARE)
    if tokens > room:
        words = (
            f"{len(pinned)} pinned pages, with the system prompt, would take {tokens} tokens; "
            f"{room} of the window's {window} are for them"
        )
        raise TooBig(words, f"pin fewer; `llmasos mem pin {table.pid} PAGE --off` lets one go")


def _ids(table: Table, numbers: Iterable[int]) -> list[int]:
    """The stored page of each number that has one."""
    return [page for number in numbers if (page := table.page(number)) is not None]


async def _tokens(memory: Memory, owner: str, ids: set[int]) -> dict[int, int]:
    rows = await memory.read(owner, _TOKENS, json.dumps(sorted(ids))) if ids else []
    return {int(page or 0): int(tokens or 0) for page, tokens in rows}
