"""The start of a daemon whose state directory has many owners, each with many pages.

One owner's database is made by a daemon, with a process that has the pages. The others are copies
of it, each with a process of its own, so that the state is that of as many users. The daemon counts
as ready when it says so; its engine is not loaded. Disk caches are warm: the state was just made.
"""

import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from llmasos.kernel.abi import limits
from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient

from .figures import Bar, Suite, Take
from .rig import Rig, daemon_on, directories

OWNERS, PAGES = 1000, 1000
BARS = (
    Bar("boot.owners_1000_s", f"start until ready, {OWNERS:,} owners of {PAGES:,} pages each", "s",
        "lower", 2),
    Bar("boot.owner_1_s", "start until ready, one owner of as many pages", "s", "lower"),
    Bar("boot.first_read_ms", "the first read of an owner that is still closed", "ms", "lower"),
)  # fmt: skip


def take(tiny: bool) -> Take:
    owners, pages, repeats = (20, 50, 1) if tiny else (OWNERS, PAGES, 5)
    with directories() as one, directories() as many:
        with daemon_on(one, mount=False) as rig:
            pid = _filled(rig, pages)
        shutil.copytree(one, many, dirs_exist_ok=True)
        _multiply(Path(many, "state"), pid, owners)
        alone, full, reads = list[float](), list[float](), list[float]()
        for _ in range(repeats):
            alone.append(_ready_s(one, pid)[0])
            ready_s, read_ms = _ready_s(many, pid)
            full.append(ready_s)
            reads.append(read_ms)
    values = {
        "boot.owners_1000_s": full, "boot.owner_1_s": alone, "boot.first_read_ms": reads,
    }  # fmt: skip
    return Take(values, {"owners": owners, "pages": pages})


def _filled(rig: Rig, pages: int) -> int:
    """A kept process with so many pages."""
    with rig.client() as client:
        pid = client.call("spawn", v.Spawn("echo", app="bench", keep=True), v.Spawned).pid
        line = "A page of many, of which each owner has as many as the others. "
        text = line * (limits.PAGE_TOKENS // len(line) - 1)
        for at in range(pages):
            client.call("write_mem", v.WriteMem(pid, f"{at} {text}"), v.Written)
    return pid


def _multiply(state: Path, pid: int, owners: int) -> None:
    """Copy the directory of the only owner, with a process for each copy."""
    [source] = [path for path in (state / "owners").iterdir() if path.is_dir()]
    with closing(sqlite3.connect(state / "processes.db")) as processes, processes:
        [row] = processes.execute("SELECT * FROM processes WHERE pid = ?", (pid,)).fetchall()
        columns = [one[1] for one in processes.execute("PRAGMA table_info(processes)")]
        values = dict(zip(columns, row, strict=True))
        for number in range(1, owners):
            name, own = f"user{number}", pid + number
            shutil.copytree(source, source.with_name(name))
            _give(source.with_name(name) / "pages.db", own)
            copy = list((values | {"pid": own, "owner": name}).values())
            marks = ",".join("?" * len(copy))
            processes.execute(f"INSERT INTO processes VALUES({marks})", copy)


def _give(database: Path, pid: int) -> None:
    """Make all rows of a database those of another process."""
    with closing(sqlite3.connect(database)) as pages, pages:
        tables = pages.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            columns = pages.execute(f"PRAGMA table_info({table})").fetchall()
            if any(column[1] == "pid" for column in columns):
                pages.execute(f"UPDATE {table} SET pid = ? WHERE pid > 0", (pid,))


def _ready_s(directory: str, pid: int) -> tuple[float, float]:
    """Seconds until a daemon is ready, and milliseconds of the first read."""
    begun = time.perf_counter()
    with daemon_on(directory, mount=False) as rig, rig.client() as client:
        ready_s = time.perf_counter() - begun
        return round(ready_s, 3), round(_read_ms(client, pid), 2)


def _read_ms(client: BlockingClient, pid: int) -> float:
    begun = time.perf_counter()
    client.call("read_mem", v.ReadMem(pid, count=1), v.Pages)
    return 1000 * (time.perf_counter() - begun)


SUITE = Suite("boot", BARS, take)
