"""The schema of an owner's database of pages, and the statements that change it.

A page is stored once, however many processes map it. Its id is its space and its place in the
space, so the pages of a space are adjacent: a part of a space is a range of ids, and neighbours are
id - 1 and id + 1. `turns` and `nears` are external-content text indexes (FTS5) over views, so a
page has to be deleted from them before the page or a neighbour changes.
"""

from collections.abc import Sequence

from ..recall.lexical import indexed
from ..recall.ranking import Signs
from ..recall.ranking import signs as signs_of_text
from ..storage.database import Schema, Statement

AT_ONCE = 500  # ids per query
ASKS, TIMED = 1, 2  # bits of signs


def signs(text: str) -> int:
    """Signs of a page's text as bits; stored, since computing them takes as long as ranking."""
    found = signs_of_text(text)
    return ASKS * found.asks + TIMED * found.timed


def signs_of(bits: int) -> Signs:
    return Signs(asks=bool(bits & ASKS), timed=bool(bits & TIMED))


TOKENIZE = "porter unicode61"  # of the text indexes
INCOMPLETE = "coming"  # source of a space whose document is not completely stored yet
SPAN = 32  # bits of the place in an id
NOW = "(julianday('now') - 2440587.5) * 86400.0"  # Unix seconds, on every SQLite
NEAR = 2  # neighbours on each side that are indexed with a page in `nears`
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
# Spaces, ranges and derived indexes. Existing pages become the spaces of their processes.
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
_WINDOW_TOKENS = """
  ALTER TABLE tables ADD COLUMN held INTEGER NOT NULL DEFAULT 0;
  UPDATE tables SET held = tokens WHERE window IS NULL
"""
# The time since when a page waits for its vector, and pages that an embedder refused.
_REFUSED = f"""
  ALTER TABLE todo ADD COLUMN since REAL NOT NULL DEFAULT 0;
  UPDATE todo SET since = {NOW};
  CREATE TABLE refused(id INTEGER PRIMARY KEY, made_by TEXT NOT NULL, why TEXT NOT NULL,
    time REAL NOT NULL)
"""
# Pages that no process has any more, queued for erasure in pieces: first and last id.
_GOING = "CREATE TABLE going(low INTEGER PRIMARY KEY, high INTEGER NOT NULL)"
# The speaker of a page, as given by its author.
_SPEAKER = """
  ALTER TABLE pages ADD COLUMN speaker TEXT NOT NULL DEFAULT '';
  DROP VIEW said;
  CREATE VIEW said AS SELECT id, CASE coalesce(nullif(speaker, ''), author) WHEN '' THEN text
    ELSE coalesce(nullif(speaker, ''), author) || ': ' || text END AS text FROM pages
"""
# Folded words and symbols as words: the text indexes are rebuilt in pieces, after boot.
REBUILD_TEXT_INDEXES = """
  INSERT INTO turns(turns) VALUES('delete-all');
  INSERT INTO nears(nears) VALUES('delete-all');
  INSERT OR REPLACE INTO derived SELECT 'words', '0' WHERE EXISTS (SELECT 1 FROM pages)
"""
# `what` of moves: pages whose text was replaced, by the same author or by another one.
REPLACED, AUTHOR_REPLACED = "replaced", "author_replaced"
_AUTHOR_REPLACED = f"""
  UPDATE moves SET what = '{AUTHOR_REPLACED}', why = replace(why, ', under another author', '')
    WHERE what = '{REPLACED}' AND why LIKE '%, under another author'
"""
SCHEMA = Schema(
    "pages",
    (_FIRST, _SPACES, _WINDOW_TOKENS, _REFUSED, _GOING, _SPEAKER, REBUILD_TEXT_INDEXES,
     _AUTHOR_REPLACED),
    functions={"indexed": indexed, "signs": signs},
)  # fmt: skip

# An index still holds something of erased pages: set by an erasure, reset when a sweep begins,
# removed when the sweep has ended and it was not set again meanwhile.
DIRTY: Statement = ("INSERT OR REPLACE INTO derived VALUES('dirty', '1')", ())
SWEEPING: Statement = ("UPDATE derived SET version = '0' WHERE name = 'dirty'", ())
CLEAN: Statement = ("DELETE FROM derived WHERE name = 'dirty' AND version = '0'", ())
INSERT_PAGE = f"INSERT INTO pages VALUES({','.join('?' * 17)})"
COLUMNS = """id, message, owner, kind, author, time, session, key, tokens, text, labels, signs,
             speaker, created"""
LAST = (1 << 63) - 1  # the largest possible id
# While the text indexes are rebuilt, pages beyond this id are not in them yet.
_INDEXED = f"""BETWEEN ? AND min(?, coalesce((SELECT CAST(version AS INTEGER) FROM derived
            WHERE name = 'words'), {LAST}))"""
_TURNS_OF = f"INSERT INTO turns(rowid, turn) SELECT id, turn FROM turn_view WHERE id {_INDEXED}"
_NEARS_OF = f"INSERT INTO nears(rowid, near) SELECT id, near FROM near_view WHERE id {_INDEXED}"
_DELETE_TURNS = f"""INSERT INTO turns(turns, rowid, turn)
                   SELECT 'delete', id, turn FROM turn_view WHERE id {_INDEXED}"""
_DELETE_NEARS = f"""INSERT INTO nears(nears, rowid, near)
                   SELECT 'delete', id, near FROM near_view WHERE id {_INDEXED}"""


def clear_digest(space: int) -> Statement:
    """Clear the digest of a space, so that an incomplete document is not mapped again."""
    return "UPDATE spaces SET digest = x'' WHERE space = ? AND pid = 0", (space,)


def page_id(space: int, place: int) -> int:
    return space << SPAN | place


def id_range(space: int) -> tuple[int, int]:
    """The first and the last possible id of a space."""
    return page_id(space, 0), page_id(space + 1, 0) - 1


def space_of(page: int) -> tuple[int, int]:
    """The space of a page and its place in the space."""
    return page >> SPAN, page & (1 << SPAN) - 1


def index_pages(low: int, high: int) -> list[Statement]:
    """Index inserted pages: text at once; they are queued for their vectors.

    A page is added to `nears` when the NEAR pages after it exist.
    """
    return [
        (_TURNS_OF, (low, high)),
        *_windows(max(low - NEAR, low >> SPAN << SPAN), high - NEAR),
        (f"INSERT INTO todo SELECT id, {NOW} FROM pages WHERE id BETWEEN ? AND ?", (low, high)),
    ]


def complete_windows(high: int) -> list[Statement]:
    """Add the last pages of a space to `nears`: no page will follow `high`."""
    return _windows(max(high - NEAR + 1, high >> SPAN << SPAN), high)


def _windows(first: int, last: int) -> list[Statement]:
    return [
        ("UPDATE pages SET near = 1 WHERE id BETWEEN ? AND ?", (first, last)),
        (_NEARS_OF, (first, last)),
    ]


def fill_text_indexes(low: int, high: int) -> list[Statement]:
    """Add pages to text indexes that have none of them."""
    return [(_TURNS_OF, (low, high)), (_NEARS_OF, (low, high))]


def queue_erase(low: int, high: int) -> Statement:
    """Queue pages for erasure; nothing is queued if no page exists in the range."""
    sql = """INSERT INTO going SELECT ?1, ?2 WHERE EXISTS
             (SELECT 1 FROM pages WHERE id BETWEEN ?1 AND ?2)
             ON CONFLICT(low) DO UPDATE SET high = max(high, excluded.high)"""
    return sql, (low, high)


def erase_pages(low: int, high: int) -> list[Statement]:
    """Delete pages and everything derived from them; their neighbours are indexed again.

    `low` and `high` are in one space.
    """
    before, after = (low - NEAR, low - 1), (high + 1, high + NEAR)
    return [
        (_DELETE_NEARS, (before[0], after[1])),
        (_DELETE_TURNS, (low, high)),
        *((f"DELETE FROM {table} WHERE id BETWEEN ? AND ?", (low, high))
          for table in ("pages", "vectors", "todo", "refused")),
        ("DELETE FROM told WHERE summary BETWEEN ? AND ?", (low, high)),
        ("DELETE FROM told WHERE page BETWEEN ? AND ?", (low, high)),
        (_NEARS_OF, before),
        (_NEARS_OF, after),
    ]  # fmt: skip


def delete_process(pid: int) -> Sequence[Statement]:
    """Delete a process's rows; its pages may be in use by other processes."""
    return [
        (f"DELETE FROM {table} WHERE pid = ?", (pid,))
        for table in ("tables", "ranges", "marks", "moves")
    ]
