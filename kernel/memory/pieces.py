"""Long operations on an owner's database, in pieces: each is one transaction of milliseconds.

The remaining work is recorded in the database (the table `going`, and rows of `derived`), so the
next piece continues where the last one ended, also after a crash. Other writes of the owner run
between two pieces and see a consistent state.
"""

from collections.abc import Sequence

from ..abi import limits
from ..storage.database import Statement, Transaction
from . import schema

_GOING = "SELECT low, high FROM going ORDER BY low LIMIT 1"
_IDS = "SELECT id FROM pages WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?"
_QUEUE = f"""INSERT OR IGNORE INTO todo SELECT id, {schema.NOW} FROM pages
            WHERE id BETWEEN ? AND ?"""
# Tables that may have a row of a page that was erased while it was embedded.
_STALE = ("vectors", "todo", "refused")
UNFINISHED = """SELECT 1 FROM going UNION ALL
                SELECT 1 FROM derived WHERE name IN ('dirty', 'words', 'remake') LIMIT 1"""
REMAKE = "SELECT 1 FROM derived WHERE name = 'remake'"
REBUILDING = "SELECT 1 FROM derived WHERE name = 'words'"
INDEXES = ("turns", "nears")


# --- pages queued for erasure ---------------------------------------------------------------------
def erase(transaction: Transaction) -> tuple[list[int], bool]:
    """Erase up to SLICE_ROWS queued pages: their ids, and whether there are more."""
    erased: list[int] = []
    while len(erased) < limits.SLICE_ROWS:
        found = transaction.read(_GOING)
        if not found:
            return erased, False
        low, high = (int(one or 0) for one in found[0])
        room = limits.SLICE_ROWS - len(erased)
        ids = [int(row[0] or 0) for row in transaction.read(_IDS, (low, high, room))]
        end = ids[-1] if len(ids) == room else high
        if ids:
            transaction.write(schema.erase_pages(ids[0], ids[-1]))
        transaction.write([
            *((f"DELETE FROM {table} WHERE id BETWEEN ? AND ?", (low, end)) for table in _STALE),
            ("DELETE FROM going WHERE low = ?", (low,)),
        ])  # fmt: skip
        if end < high:
            transaction.write([schema.queue_erase(end + 1, high)])
        erased += ids
    return erased, bool(transaction.read(_GOING))


# --- the text indexes -----------------------------------------------------------------------------
def begin_words(transaction: Transaction) -> None:
    """Empty the text indexes and record that they are to be filled from the first page."""
    clear = [(f"INSERT INTO {index}({index}) VALUES('delete-all')", ()) for index in INDEXES]
    transaction.write([*clear, ("INSERT OR REPLACE INTO derived VALUES('words', '0')", ())])


def fill_words(transaction: Transaction) -> bool:
    """Add the next pages to the text indexes. False: all pages are in them."""
    found = transaction.read("SELECT CAST(version AS INTEGER) FROM derived WHERE name = 'words'")
    if not found:
        return False
    after = int(found[0][0] or 0)
    ids = transaction.read(_IDS, (after + 1, schema.LAST, limits.SLICE_ROWS))
    if not ids:
        transaction.write([("DELETE FROM derived WHERE name = 'words'", ())])
        return False
    low, high = int(ids[0][0] or 0), int(ids[-1][0] or 0)
    filled = ("UPDATE derived SET version = ? WHERE name = 'words'", (str(high),))
    transaction.write([filled, *schema.fill_text_indexes(low, high)])
    return True


def merge_words(transaction: Transaction, index: str, *, first: bool) -> bool:
    """Run one step of merging a text index's segments. False: the merge is complete.

    `first`: start a merge of all existing segments.
    """
    before = transaction.changes
    pages = -limits.MERGE_PAGES if first else limits.MERGE_PAGES
    transaction.write([(f"INSERT INTO {index}({index}, rank) VALUES('merge', ?)", (pages,))])
    return transaction.changes - before >= 2  # fewer: nothing was merged (FTS5, "merge")


# --- vectors --------------------------------------------------------------------------------------
def begin_vectors(transaction: Transaction) -> None:
    """Record that all vectors are to be removed; none is used until then (no mixed embedders)."""
    transaction.write([
        ("INSERT OR REPLACE INTO derived VALUES('remake', '0')", ()),
        ("DELETE FROM derived WHERE name IN ('vectors', 'numbers')", ()),
    ])  # fmt: skip


def clear_vectors(transaction: Transaction) -> bool:
    """Remove the next vectors and queue their pages again. False: all pages are queued."""
    found = transaction.read("SELECT CAST(version AS INTEGER) FROM derived WHERE name = 'remake'")
    if not found:
        return False
    low = int(found[0][0] or 0) + 1
    ids = transaction.read(_IDS, (low, schema.LAST, limits.SLICE_ROWS))
    high = int(ids[-1][0] or 0) if ids else schema.LAST
    statements: Sequence[Statement] = (
        ("DELETE FROM vectors WHERE id BETWEEN ? AND ?", (low, high)),
        ("DELETE FROM refused WHERE id BETWEEN ? AND ?", (low, high)),
        (_QUEUE, (low, high)),
        ("UPDATE derived SET version = ? WHERE name = 'remake'", (str(high),))
        if ids else ("DELETE FROM derived WHERE name = 'remake'", ()),
    )  # fmt: skip
    transaction.write(statements)
    return bool(ids)
