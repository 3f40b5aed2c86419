"""What an owner's database holds of their pages, and the statements that change it.

A page is stored once, whoever maps it. Its id is its space and its place in it, so the pages of a
space lie side by side: an index is asked for a part of a space by a range of ids, and neighbours
are id - 1 and id + 1. `turns` and `nears` are text indexes without a text of their own: their
contents are views, which is why a page leaves them before it, or a neighbour, changes.
"""

from collections.abc import Sequence

from ..database import Schema, Statement
from .fuse import Signs
from .fuse import signs as seen
from .lexical import indexed

AT_ONCE = 500  # ids of one query
ASKS, TIMED = 1, 2  # bits of signs


def signs(text: str) -> int:
    """What a page's text shows about its form, looked at once: it takes as long as ranking."""
    found = seen(text)
    return ASKS * found.asks + TIMED * found.timed


def signs_of(bits: int) -> Signs:
    return Signs(asks=bool(bits & ASKS), timed=bool(bits & TIMED))


TOKENIZE = "porter unicode61"  # of the text indexes
COMING = "coming"  # the source of a space whose document is not whole yet
SPAN = 32  # bits of a place
NOW = "(julianday('now') - 2440587.5) * 86400.0"  # Unix seconds, on every SQLite
NEAR = 2  # pages on each side that belong to a page's window
_FIRST = """
  CREATE TABLE owner(key_id TEXT); INSERT INTO owner VALUES(NULL);
  CREATE TABLE pages(pid INTEGER, number INTEGER, message INTEGER NOT NULL,
    owner TEXT NOT NULL, kind TEXT NOT NULL, author TEXT NOT NULL, time REAL NOT NULL,
    tokens INTEGER NOT NULL, text TEXT NOT NULL, labels TEXT NOT NULL,
    pinned INTEGER NOT NULL, used REAL NOT NULL, hash BLOB NOT NULL,
    call INTEGER NOT NULL,
    PRIMARY KEY(pid, number)) WITHOUT ROWID;
  CREATE INDEX pages_by_call ON pages(call)
"""
# Spaces, ranges and derived indexes. What was there becomes the spaces of its processes.
_SPACES = f"""
  ALTER TABLE pages RENAME TO old;
  DROP INDEX pages_by_call;
  CREATE TABLE spaces(space INTEGER PRIMARY KEY AUTOINCREMENT, pid INTEGER NOT NULL,
    source TEXT NOT NULL, digest BLOB NOT NULL, count INTEGER NOT NULL);
  CREATE TABLE told(page INTEGER, summary INTEGER, PRIMARY KEY(page, summary)) WITHOUT ROWID;
  CREATE TABLE pages(id INTEGER PRIMARY KEY, message INTEGER NOT NULL,
    owner TEXT NOT NULL, kind TEXT NOT NULL, author TEXT NOT NULL, time REAL NOT NULL,
    session TEXT NOT NULL, key TEXT NOT NULL, tokens INTEGER NOT NULL, text TEXT NOT NULL,
    labels TEXT NOT NULL, created REAL NOT NULL, hash BLOB NOT NULL, call INTEGER NOT NULL,
    near INTEGER NOT NULL, signs INTEGER NOT NULL);
  CREATE INDEX pages_by_call ON pages(call) WHERE call > 0;
  CREATE INDEX pages_by_key ON pages(key) WHERE key != '';
  CREATE TABLE tables(pid INTEGER PRIMARY KEY, space INTEGER NOT NULL, next INTEGER NOT NULL,
    place INTEGER NOT NULL, messages INTEGER NOT NULL, tokens INTEGER NOT NULL, window TEXT);
  CREATE TABLE ranges(pid INTEGER, first INTEGER, count INTEGER NOT NULL, space INTEGER NOT NULL,
    place INTEGER NOT NULL, writable INTEGER NOT NULL, source TEXT NOT NULL,
    PRIMARY KEY(pid, first)) WITHOUT ROWID;
  CREATE INDEX ranges_by_space ON ranges(space);
  CREATE TABLE marks(pid INTEGER, number INTEGER, page INTEGER, pinned INTEGER NOT NULL,
    used REAL NOT NULL, uses INTEGER NOT NULL, PRIMARY KEY(pid, number)) WITHOUT ROWID;
  CREATE TABLE moves(seq INTEGER PRIMARY KEY AUTOINCREMENT, pid INTEGER NOT NULL,
    first INTEGER NOT NULL, last INTEGER NOT NULL, time REAL NOT NULL, call INTEGER NOT NULL,
    what TEXT NOT NULL, why TEXT NOT NULL, parts TEXT NOT NULL);
  CREATE INDEX moves_by_pid ON moves(pid, first);
  CREATE INDEX told_by_summary ON told(summary);
  CREATE TABLE derived(name TEXT PRIMARY KEY, version TEXT NOT NULL);
  CREATE TABLE todo(id INTEGER PRIMARY KEY);
  CREATE TABLE vectors(id INTEGER PRIMARY KEY, vector BLOB NOT NULL);
  CREATE VIEW said AS SELECT id, CASE author WHEN '' THEN text ELSE author || ': ' || text END
    AS text FROM pages;
  CREATE VIEW turn_view AS SELECT id, indexed(text) AS turn FROM said;
  CREATE VIEW near_view AS SELECT p.id, indexed((SELECT group_concat(text, ' ') FROM said
    WHERE id BETWEEN p.id - {NEAR} AND p.id + {NEAR})) AS near FROM pages p WHERE p.near;
  CREATE VIRTUAL TABLE turns USING fts5(turn, content='turn_view', content_rowid='id',
    tokenize='{TOKENIZE}');
  CREATE VIRTUAL TABLE nears USING fts5(near, content='near_view', content_rowid='id',
    tokenize='{TOKENIZE}');
  INSERT INTO spaces SELECT DISTINCT pid, pid, '', x'', 0 FROM old;
  INSERT INTO pages SELECT (pid << {SPAN}) + number, message, owner, kind, author, time, '', '',
    tokens, text, labels, time, hash, call, number + {NEAR} <= (SELECT max(number) FROM old AS o
    WHERE o.pid = old.pid), signs(text) FROM old;
  INSERT INTO tables SELECT pid, pid, max(number) + 1, max(number) + 1, max(message) + 1,
    sum(tokens), NULL FROM old GROUP BY pid;
  INSERT INTO ranges SELECT pid, 0, max(number) + 1, pid, 0, 1, '' FROM old GROUP BY pid;
  INSERT INTO turns(turns) VALUES('rebuild');
  INSERT INTO nears(nears) VALUES('rebuild');
  INSERT INTO todo SELECT id FROM pages;
  DROP TABLE old
"""
_HELD = """
  ALTER TABLE tables ADD COLUMN held INTEGER NOT NULL DEFAULT 0;
  UPDATE tables SET held = tokens WHERE window IS NULL
"""
# Since when a page waits for its vector, and pages that an embedder refused.
_REFUSED = f"""
  ALTER TABLE todo ADD COLUMN since REAL NOT NULL DEFAULT 0;
  UPDATE todo SET since = {NOW};
  CREATE TABLE refused(id INTEGER PRIMARY KEY, made_by TEXT NOT NULL, why TEXT NOT NULL,
    time REAL NOT NULL)
"""
# Pages that nobody has any more, and that are erased in pieces: first and last id.
_GOING = "CREATE TABLE going(low INTEGER PRIMARY KEY, high INTEGER NOT NULL)"
# Who said a page, as its writer says, apart from who wrote it.
_SPEAKER = """
  ALTER TABLE pages ADD COLUMN speaker TEXT NOT NULL DEFAULT '';
  DROP VIEW said;
  CREATE VIEW said AS SELECT id, CASE coalesce(nullif(speaker, ''), author) WHEN '' THEN text
    ELSE coalesce(nullif(speaker, ''), author) || ': ' || text END AS text FROM pages
"""
# Words are folded and symbols are words: the text indexes are filled anew, in pieces, after boot.
_FOLDED = """
  INSERT INTO turns(turns) VALUES('delete-all');
  INSERT INTO nears(nears) VALUES('delete-all');
  INSERT OR REPLACE INTO derived SELECT 'words', '0' WHERE EXISTS (SELECT 1 FROM pages)
"""
SCHEMA = Schema(
    "pages", (_FIRST, _SPACES, _HELD, _REFUSED, _GOING, _SPEAKER, _FOLDED),
    functions={"indexed": indexed, "signs": signs},
)  # fmt: skip

# Something of pages that are gone is left in an index: set when they go, reset when a sweep begins,
# removed when it has ended and nothing was set meanwhile.
DIRTY: Statement = ("INSERT OR REPLACE INTO derived VALUES('dirty', '1')", ())
SWEEPING: Statement = ("UPDATE derived SET version = '0' WHERE name = 'dirty'", ())
CLEAN: Statement = ("DELETE FROM derived WHERE name = 'dirty' AND version = '0'", ())
INSERT_PAGE = f"INSERT INTO pages VALUES({','.join('?' * 17)})"
COLUMNS = """id, message, owner, kind, author, time, session, key, tokens, text, labels, signs,
             speaker, created"""
LAST = (1 << 63) - 1  # the greatest id that there can be
# While the text indexes are made anew, pages beyond this one are not in them yet.
_HERE = f"""BETWEEN ? AND min(?, coalesce((SELECT CAST(version AS INTEGER) FROM derived
            WHERE name = 'words'), {LAST}))"""
_TURNS_OF = f"INSERT INTO turns(rowid, turn) SELECT id, turn FROM turn_view WHERE id {_HERE}"
_NEARS_OF = f"INSERT INTO nears(rowid, near) SELECT id, near FROM near_view WHERE id {_HERE}"
_LEAVE_TURNS = f"""INSERT INTO turns(turns, rowid, turn)
                   SELECT 'delete', id, turn FROM turn_view WHERE id {_HERE}"""
_LEAVE_NEARS = f"""INSERT INTO nears(nears, rowid, near)
                   SELECT 'delete', id, near FROM near_view WHERE id {_HERE}"""


def unknown(space: int) -> Statement:
    """A document that is not whole any more is not mapped again as if it were."""
    return "UPDATE spaces SET digest = x'' WHERE space = ? AND pid = 0", (space,)


def page_id(space: int, place: int) -> int:
    return space << SPAN | place


def whole(space: int) -> tuple[int, int]:
    """The first and the last id that a space can have."""
    return page_id(space, 0), page_id(space + 1, 0) - 1


def space_of(page: int) -> tuple[int, int]:
    """Its space, and its place there."""
    return page >> SPAN, page & (1 << SPAN) - 1


def followed(low: int, high: int) -> list[Statement]:
    """After pages were inserted: they are found by words at once, and by meaning soon.

    A page gets its window when the pages after it are there.
    """
    return [
        (_TURNS_OF, (low, high)),
        *_windows(max(low - NEAR, low >> SPAN << SPAN), high - NEAR),
        (f"INSERT INTO todo SELECT id, {NOW} FROM pages WHERE id BETWEEN ? AND ?", (low, high)),
    ]


def sealed(high: int) -> list[Statement]:
    """No page will come after this one: the last ones get their windows."""
    return _windows(max(high - NEAR + 1, high >> SPAN << SPAN), high)


def _windows(first: int, last: int) -> list[Statement]:
    return [
        ("UPDATE pages SET near = 1 WHERE id BETWEEN ? AND ?", (first, last)),
        (_NEARS_OF, (first, last)),
    ]


def entered(low: int, high: int) -> list[Statement]:
    """Pages, with their windows, into text indexes that have none of them."""
    return [(_TURNS_OF, (low, high)), (_NEARS_OF, (low, high))]


def going(low: int, high: int) -> Statement:
    """Pages that nobody has any more; ids without a page are left out."""
    sql = """INSERT INTO going SELECT ?1, ?2 WHERE EXISTS
             (SELECT 1 FROM pages WHERE id BETWEEN ?1 AND ?2)
             ON CONFLICT(low) DO UPDATE SET high = max(high, excluded.high)"""
    return sql, (low, high)


def erased(low: int, high: int) -> list[Statement]:
    """Pages and all that was derived of them leave; the windows of their neighbours are made anew.

    `low` and `high` are of one space.
    """
    before, after = (low - NEAR, low - 1), (high + 1, high + NEAR)
    return [
        (_LEAVE_NEARS, (before[0], after[1])),
        (_LEAVE_TURNS, (low, high)),
        *((f"DELETE FROM {table} WHERE id BETWEEN ? AND ?", (low, high))
          for table in ("pages", "vectors", "todo", "refused")),
        ("DELETE FROM told WHERE summary BETWEEN ? AND ?", (low, high)),
        ("DELETE FROM told WHERE page BETWEEN ? AND ?", (low, high)),
        (_NEARS_OF, before),
        (_NEARS_OF, after),
    ]  # fmt: skip


def gone(pid: int) -> Sequence[Statement]:
    """A process's own rows leave; its pages may be others', too."""
    return [
        (f"DELETE FROM {table} WHERE pid = ?", (pid,))
        for table in ("tables", "ranges", "marks", "moves")
    ]
