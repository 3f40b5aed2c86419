"""The text indexes of an owner: made anew, merged and compared with the pages, in pieces."""

from dataclasses import dataclass
from functools import partial

from .. import limits
from ..database import Checker
from . import pieces, schema
from .memory import Memory

_COLUMNS = {"turns": ("turn", "turn_view"), "nears": ("near", "near_view")}
# What an index says of all terms together; added up over parts of the pages, it is the same.
_TERM = """(length(term) * 8191 + unicode(term) * 131 + unicode(substr(term, -1)) * 17
           + unicode(substr(term, length(term) / 2 + 1)))"""
_SUMS = f"SELECT coalesce(sum({_TERM} * doc), 0), coalesce(sum({_TERM} * cnt), 0) FROM "
_IDS = "SELECT id FROM main.{0} WHERE id > ? ORDER BY id LIMIT ?"
# Pages whose number of terms in the index is not what it should be; spare ones count as well.
_SIZES = """SELECT (SELECT count(*) FROM scratch.{0}_docsize)
                   + (SELECT count(*) FROM main.{0}_docsize WHERE id BETWEEN ? AND ?)
                   - 2 * (SELECT count(*) FROM main.{0}_docsize AS held
                          JOIN scratch.{0}_docsize AS made USING(id) WHERE held.sz = made.sz)"""


async def rebuild(memory: Memory, owner: str) -> None:
    """Make the text indexes anew. What is interrupted is ended by `resume`."""
    await memory.store.slice(memory.database(owner), pieces.begin_words)
    memory.filling.add(owner)
    await resume(memory, owner)


async def resume(memory: Memory, owner: str) -> None:
    """Enter the pages that are not in the text indexes, as a rebuild was interrupted."""
    while await memory.store.slice(memory.database(owner), pieces.fill_words):
        pass
    memory.filling.discard(owner)


async def merge(memory: Memory, owner: str) -> None:
    """Merge the text indexes: no segment keeps words of pages that are gone."""
    for index in pieces.INDEXES:
        more, first = True, True
        while more:
            piece = partial(pieces.merge_words, index=index, first=first)
            more, first = await memory.store.slice(memory.database(owner), piece), False


# --- comparison -----------------------------------------------------------------------------------
@dataclass(slots=True)
class Comparison:
    """Of one index with the pages. The pages are indexed again, a few at a time, in memory."""

    checker: Checker
    index: str
    doc: int = 0  # sums over what was indexed again
    cnt: int = 0
    sizes: int = 0  # pages that have another number of terms
    after: int = -1  # this id, pages are still to be compared

    def begin(self) -> None:
        column, _ = _COLUMNS[self.index]
        run, name = self.checker.read, self.index
        run(f"""CREATE VIRTUAL TABLE scratch.{name} USING
                fts5({column}, content='', tokenize='{schema.TOKENIZE}')""")
        run(f"CREATE VIRTUAL TABLE temp.{name}_made USING fts5vocab(scratch, {name}, row)")
        run(f"CREATE VIRTUAL TABLE temp.{name}_held USING fts5vocab(main, {name}, row)")

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
        doc, cnt = run(f"{_SUMS} temp.{name}_made")[0]
        self.doc += int(doc or 0)
        self.cnt += int(cnt or 0)
        self.sizes += int(run(_SIZES.format(name), (low, high))[0][0] or 0)
        run(f"INSERT INTO scratch.{name}({name}) VALUES('delete-all')")
        self.after = high
        return True

    def end(self) -> bool:
        """Whether the index says what the pages say."""
        run, name = self.checker.read, self.index
        more = f"SELECT count(*) FROM main.{name}_docsize WHERE id > ?"
        spare = int(run(more, (self.after,))[0][0] or 0)
        held = run(f"{_SUMS} temp.{name}_held")[0]
        return not spare and not self.sizes and held == (self.doc, self.cnt)
