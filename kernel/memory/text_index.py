"""Rebuilds, merges and checks the text indexes of an owner, in pieces."""

from dataclasses import dataclass
from functools import partial

from ..abi import limits
from ..storage.database import Checker
from . import pieces, schema
from .memory import Memory

_COLUMNS = {"turns": ("turn", "turn_view"), "nears": ("near", "near_view")}
# A checksum over the terms of an index. It is additive: the sums over parts of the pages add up to
# the sum over all pages.
_TERM = """(length(term) * 8191 + unicode(term) * 131 + unicode(substr(term, -1)) * 17
           + unicode(substr(term, length(term) / 2 + 1)))"""
_SUMS = f"SELECT coalesce(sum({_TERM} * doc), 0), coalesce(sum({_TERM} * cnt), 0) FROM "
_IDS = "SELECT id FROM main.{0} WHERE id > ? ORDER BY id LIMIT ?"
# Pages whose number of terms in the index is wrong; index entries without a page count as well.
_SIZES = """SELECT (SELECT count(*) FROM scratch.{0}_docsize)
                   + (SELECT count(*) FROM main.{0}_docsize WHERE id BETWEEN ? AND ?)
                   - 2 * (SELECT count(*) FROM main.{0}_docsize AS stored
                          JOIN scratch.{0}_docsize AS rebuilt USING(id)
                          WHERE stored.sz = rebuilt.sz)"""


async def rebuild(memory: Memory) -> None:
    """Rebuild the text indexes. `resume` finishes an interrupted rebuild."""
    await memory.store.slice(memory.database, pieces.begin_words)
    memory.rebuilding = True
    await resume(memory)


async def resume(memory: Memory) -> None:
    """Add the pages that are not in the text indexes yet, after `rebuild` or at boot."""
    while await memory.store.slice(memory.database, pieces.fill_words):
        pass
    memory.rebuilding = False


async def merge(memory: Memory) -> None:
    """Merge the text indexes, so that no segment keeps words of erased pages."""
    for index in pieces.INDEXES:
        more, first = True, True
        while more:
            piece = partial(pieces.merge_words, index=index, first=first)
            more, first = await memory.store.slice(memory.database, piece), False


# --- comparison -----------------------------------------------------------------------------------
@dataclass(slots=True)
class Comparison:
    """Compares one index with the pages by indexing them again in memory, a few at a time."""

    checker: Checker
    index: str
    doc: int = 0  # checksums over the pages indexed again
    cnt: int = 0
    sizes: int = 0  # pages with a wrong number of terms
    after: int = -1  # the last id that was compared

    def begin(self) -> None:
        column, _ = _COLUMNS[self.index]
        run, name = self.checker.read, self.index
        run(f"""CREATE VIRTUAL TABLE scratch.{name} USING
                fts5({column}, content='', tokenize='{schema.TOKENIZE}')""")
        run(f"CREATE VIRTUAL TABLE temp.{name}_rebuilt USING fts5vocab(scratch, {name}, row)")
        run(f"CREATE VIRTUAL TABLE temp.{name}_stored USING fts5vocab(main, {name}, row)")

    def some(self) -> bool:
        """Compare the next pages. False: there are no more."""
        column, view = _COLUMNS[self.index]
        run, name = self.checker.read, self.index
        found = run(_IDS.format(view), (self.after, limits.CHECKED_AT_ONCE))
        if not found:
            return False
        low, high = self.after + 1, int(found[-1][0] or 0)
        run(
            f"""INSERT INTO scratch.{name}(rowid, {column}) SELECT id, {column} FROM main.{view}
                WHERE id BETWEEN ? AND ?""",
            (low, high),
        )
        doc, cnt = run(f"{_SUMS} temp.{name}_rebuilt")[0]
        self.doc += int(doc or 0)
        self.cnt += int(cnt or 0)
        self.sizes += int(run(_SIZES.format(name), (low, high))[0][0] or 0)
        run(f"INSERT INTO scratch.{name}({name}) VALUES('delete-all')")
        self.after = high
        return True

    def end(self) -> bool:
        """Whether the index matches the pages."""
        run, name = self.checker.read, self.index
        more = f"SELECT count(*) FROM main.{name}_docsize WHERE id > ?"
        extra = int(run(more, (self.after,))[0][0] or 0)
        stored = run(f"{_SUMS} temp.{name}_stored")[0]
        return not extra and not self.sizes and stored == (self.doc, self.cnt)
