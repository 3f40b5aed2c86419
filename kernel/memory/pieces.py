"""Long work on an owner's database in pieces: each is one transaction that takes milliseconds.

What is left to be done stands in the database (`going`, and rows of `derived`), so whoever comes
next goes on where the last piece ended, also after a crash. Other writes of the owner go between
two pieces, and find the database as if the work was done up to there.
"""

from collections.abc import Sequence

from .. import limits
from ..database import Statement, Transaction
from . import schema

_GOING = "SELECT low, high FROM going ORDER BY low LIMIT 1"
_IDS = "SELECT id FROM pages WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?"
_WAIT = f"""INSERT OR IGNORE INTO todo SELECT id, {schema.NOW} FROM pages
            WHERE id BETWEEN ? AND ?"""
_SPARE = ("vectors", "todo", "refused")  # may hold a page that was erased while its vector was made
UNFINISHED = """SELECT 1 FROM going UNION ALL
                SELECT 1 FROM derived WHERE name IN ('dirty', 'words', 'remake') LIMIT 1"""
REMAKE = "SELECT 1 FROM derived WHERE name = 'remake'"
FILLING = "SELECT 1 FROM derived WHERE name = 'words'"
INDEXES = ("turns", "nears")


# --- pages that are going -------------------------------------------------------------------------
def erase(transaction: Transaction) -> tuple[list[int], bool]:
    """Erase some of the pages that are going: their ids, and whether there are more."""
    erased: list[int] = []
    while len(erased) < limits.SLICE_ROWS:
        found = transaction.read(_GOING)
        if not found:
            return erased, False
        low, high = (int(one or 0) for one in found[0])
        some = limits.SLICE_ROWS - len(erased)
        ids = [int(row[0] or 0) for row in transaction.read(_IDS, (low, high, some))]
        end = ids[-1] if len(ids) == some else high
        if ids:
            transaction.write(schema.erased(ids[0], ids[-1]))
        transaction.write([
            *((f"DELETE FROM {table} WHERE id BETWEEN ? AND ?", (low, end)) for table in _SPARE),
            ("DELETE FROM going WHERE low = ?", (low,)),
        ])  # fmt: skip
        if end < high:
            transaction.write([schema.going(end + 1, high)])
        erased += ids
    return erased, bool(transaction.read(_GOING))


# --- the text indexes -----------------------------------------------------------------------------
def begin_words(transaction: Transaction) -> None:
    """Empty the text indexes; from now on they are filled from the first page on."""
    clear = [(f"INSERT INTO {index}({index}) VALUES('delete-all')", ()) for index in INDEXES]
    transaction.write([*clear, ("INSERT OR REPLACE INTO derived VALUES('words', '0')", ())])


def fill_words(transaction: Transaction) -> bool:
    """Enter the next pages into the text indexes. False: all are there."""
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
    transaction.write([filled, *schema.entered(low, high)])
    return True


def merge_words(transaction: Transaction, index: str, *, first: bool) -> bool:
    """Merge the segments of a text index a bit further. False: nothing is left of what is gone.

    `first`: begin with all segments that there are.
    """
    before = transaction.changes
    pages = -limits.MERGE_PAGES if first else limits.MERGE_PAGES
    transaction.write([(f"INSERT INTO {index}({index}, rank) VALUES('merge', ?)", (pages,))])
    return transaction.changes - before >= 2  # as SQLite's documentation says


# --- vectors --------------------------------------------------------------------------------------
def begin_vectors(transaction: Transaction) -> None:
    """From now on there are no vectors until all are gone: those of two embedders never mix."""
    transaction.write([
        ("INSERT OR REPLACE INTO derived VALUES('remake', '0')", ()),
        ("DELETE FROM derived WHERE name IN ('vectors', 'numbers')", ()),
    ])  # fmt: skip


def clear_vectors(transaction: Transaction) -> bool:
    """Let some pages wait for new vectors. False: all of them do."""
    found = transaction.read("SELECT CAST(version AS INTEGER) FROM derived WHERE name = 'remake'")
    if not found:
        return False
    low = int(found[0][0] or 0) + 1
    ids = transaction.read(_IDS, (low, schema.LAST, limits.SLICE_ROWS))
    high = int(ids[-1][0] or 0) if ids else schema.LAST
    statements: Sequence[Statement] = (
        ("DELETE FROM vectors WHERE id BETWEEN ? AND ?", (low, high)),
        ("DELETE FROM refused WHERE id BETWEEN ? AND ?", (low, high)),
        (_WAIT, (low, high)),
        ("UPDATE derived SET version = ? WHERE name = 'remake'", (str(high),))
        if ids else ("DELETE FROM derived WHERE name = 'remake'", ()),
    )  # fmt: skip
    transaction.write(statements)
    return bool(ids)
