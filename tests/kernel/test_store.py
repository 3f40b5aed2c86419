"""The databases: acknowledged means written, a bad write fails alone, newer files stay."""

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from functools import partial
from itertools import pairwise
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.values import Exit, State
from llmasos.kernel.process.table import SCHEMA as PROCESSES
from llmasos.kernel.process.table import ProcessTable
from llmasos.kernel.storage.database import Database, Schema, Transaction
from llmasos.kernel.storage.store import Store
from tests.system import foreign

pytestmark = pytest.mark.anyio
ROWS = Schema("rows", ("CREATE TABLE rows(n INTEGER PRIMARY KEY, text TEXT NOT NULL)",))
INSERT = "INSERT INTO rows VALUES(?,?)"


async def test_a_write_is_readable_when_it_is_acknowledged(tmp_path: Path) -> None:
    store = Store(tmp_path)
    database = store.open("rows.db", ROWS)
    for n in range(20):
        await store.write(database, [(INSERT, (n, "x"))], durable=n % 2 == 0)
        assert store.read(database, "SELECT count(*) FROM rows") == [(n + 1,)]
    store.close()


async def test_flushes_are_counted_before_their_writes_are_acknowledged(tmp_path: Path) -> None:
    store = Store(tmp_path)
    database = store.open("rows.db", ROWS)
    for n in range(4):
        before = store.flushes
        await store.write(database, [(INSERT, (n, "x"))], durable=n % 2 == 0)
        assert store.flushes - before == (n % 2 == 0)
    store.close()


async def test_one_bad_write_of_a_group_fails_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    database = store.open("rows.db", ROWS)
    failed: list[int] = []

    async def write(n: int) -> None:
        try:
            await store.write(database, [(INSERT, (n % 40, "x")), (INSERT, (1000 + n, "y"))])
        except SyscallError as error:
            assert error.errno is Errno.EIO
            failed.append(n)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for n in range(50):
                tasks.start_soon(write, n)
    assert sorted(failed) == list(range(40, 50))
    # Whole or not at all: the second half of a failed write is not there either.
    assert store.read(database, "SELECT count(*) FROM rows") == [(80,)]
    store.close()


@pytest.mark.parametrize("point", ["store.commit", "store.written", "store.synced"])
async def test_an_unforeseen_failure_ends_its_writes_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, point: str
) -> None:
    store = Store(tmp_path)
    database = store.open("rows.db", ROWS)
    monkeypatch.setattr("llmasos.kernel.points._fails", point)
    monkeypatch.setattr("llmasos.kernel.points._failures_left", 1)
    with anyio.fail_after(20):
        with pytest.raises(SyscallError, match=r"EIO: .* failed inside the kernel"):
            await store.write(database, [(INSERT, (1, "x"))])
        await store.write(database, [(INSERT, (2, "y"))])  # the thread lives
    assert (2,) in store.read(database, "SELECT n FROM rows")
    assert f"RuntimeError: LLMASOS_FAIL_AT names {point}" in caplog.text
    store.close()


async def test_an_outcome_that_is_not_taken_in_keeps_no_other_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    database = store.open("rows.db", ROWS)

    def mistaken(error: SyscallError | None) -> None:
        raise KeyError("a mistake")

    with anyio.fail_after(20):
        store.submit(database, [(INSERT, (1, "x"))], mistaken)
        await store.write(database, [(INSERT, (2, "y"))])
    assert "a mistake" in caplog.text
    store.close()


@pytest.mark.parametrize(
    ("rows", "order"),
    [((2, "x"), ["written", "woken", "goes on"]), ((1, "again"), ["refused", "woken", "fails"])],
)
async def test_who_hears_first_hears_before_the_caller(
    tmp_path: Path, rows: tuple[int, str], order: list[str]
) -> None:
    store = Store(tmp_path)
    database = store.open("rows.db", ROWS)
    await store.write(database, [(INSERT, (1, "x"))])
    heard: list[str] = []

    def first(error: SyscallError | None) -> None:
        heard.append("refused" if error else "written")
        asyncio.get_running_loop().call_soon(heard.append, "woken")

    try:
        await store.write(database, [(INSERT, rows)], on_done=first)
        heard.append("goes on")
    except SyscallError:
        heard.append("fails")
    assert heard == order
    store.close()


async def test_acknowledgements_come_in_order(tmp_path: Path) -> None:
    store = Store(tmp_path)
    database = store.open("rows.db", ROWS)
    seen: list[int] = []
    last = anyio.Event()
    for n in range(500):

        def done(error: SyscallError | None, n: int = n) -> None:
            assert error is None
            seen.append(n)
            if n == 499:
                last.set()

        store.submit(database, [(INSERT, (n, "x"))], done)
    with anyio.fail_after(30):
        await last.wait()
    assert seen == list(range(500))
    store.close()


class Gate:
    """A database whose writes can be held up, as a long job holds up its own."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self.schema = Schema("rows", ROWS.steps, functions={"held": self._held})

    def _held(self, text: str) -> str:
        self.entered.release()
        assert self.open.wait(30)
        return text


HELD = "INSERT INTO rows VALUES(?, held('x'))"


async def test_a_long_write_of_one_owner_holds_nobody_else(tmp_path: Path) -> None:
    store, gate = Store(tmp_path), Gate()
    slow = store.open("owners/slow/pages.db", gate.schema)
    others = [store.open(name, ROWS) for name in ("owners/other/pages.db", "processes.db")]
    seen: list[int] = []
    store.submit(slow, [(HELD, (1,))], lambda _: seen.append(1), durable=True)
    store.submit(slow, [(INSERT, (2, "x"))], lambda _: seen.append(2), durable=True)
    try:
        with anyio.fail_after(30):
            assert await anyio.to_thread.run_sync(gate.entered.acquire)
            for database in others:
                for n in range(10):
                    await store.write(database, [(INSERT, (n, "x"))], durable=n % 2 == 0)
            assert seen == []
    finally:
        gate.open.set()
    await store.write(slow, [(INSERT, (3, "x"))])
    assert seen == [1, 2]
    store.close()


async def test_long_work_of_many_owners_leaves_threads_for_short_writes(tmp_path: Path) -> None:
    store, gate = Store(tmp_path), Gate()
    busy = [store.open(f"owners/{n}/pages.db", gate.schema) for n in range(8)]
    other = store.open("owners/other/pages.db", ROWS)

    async def work(database: Database) -> None:
        await store.slice(database, lambda transaction: transaction.write([(HELD, (1,))]))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for database in busy:
                tasks.start_soon(work, database)
            assert await anyio.to_thread.run_sync(gate.entered.acquire)
            await store.write(other, [(INSERT, (1, "x"))])
            assert all(store.read(database, "SELECT * FROM rows") == [] for database in busy)
            gate.open.set()
    assert all(len(store.read(database, "SELECT * FROM rows")) == 1 for database in busy)
    store.close()


async def test_other_writes_of_an_owner_go_between_pieces_of_long_work(tmp_path: Path) -> None:
    store = Store(tmp_path)
    database = store.open("owners/one/pages.db", ROWS)
    counts: list[object] = []
    begun, wrote = anyio.Event(), anyio.Event()

    async def long() -> None:
        sql = "SELECT count(*) FROM rows"
        for _ in range(3):
            counts.append(await store.slice(database, lambda done: done.read(sql)[0][0]))
            if len(counts) == 1:
                begun.set()
                await wrote.wait()

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(long)
            await begun.wait()
            await store.write(database, [(INSERT, (1, "x"))])
            wrote.set()
    assert counts == [0, 1, 1]
    store.close()


async def test_pieces_of_long_work_leave_processors_to_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While an engine computes, or somebody calls, each piece waits for a share of what the one
    before took."""
    monkeypatch.setattr(limits, "SLICE_SHARE", 1e9)
    monkeypatch.setattr(limits, "SLICE_SHARE_CALLS", 1e9)
    store = Store(tmp_path)
    database = store.open("owners/one/pages.db", ROWS)
    computing, calls = True, 0
    store.pacing.computing = lambda: computing
    store.pacing.calls = lambda: calls
    begun: list[float] = []

    def piece(_: Transaction) -> None:
        begun.append(time.monotonic())

    with anyio.fail_after(30):
        for _ in range(3):
            await store.slice(database, piece)
        computing, calls = False, 1
        await store.slice(database, piece)
        assert all(late - soon >= limits.SLICE_PAUSE_S for soon, late in pairwise(begun))
        await store.slice(database, piece)  # the call was a moment ago
        assert begun[-1] - begun[-2] >= limits.SLICE_PAUSE_S
        monkeypatch.setattr(limits, "SLICE_CALLED_S", 0.0)
        monkeypatch.setattr(store.pacing, "piece", partial(store.pacing.piece, most_s=3600.0))
        await store.slice(database, piece)  # at once
    store.close()


async def test_a_piece_of_long_work_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path)
    database = store.open("owners/one/pages.db", ROWS)

    def fails(transaction: Transaction) -> int:
        transaction.write([(INSERT, (1, "x")), (INSERT, (1, "again"))])
        return 1

    with pytest.raises(SyscallError) as caught:
        await store.slice(database, fails)
    assert caught.value.errno is Errno.EIO
    assert store.read(database, "SELECT * FROM rows") == []
    store.close()


async def test_databases_of_one_queue_are_written_in_the_order_of_submission(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    one, two = (store.open(name, ROWS, queue="both") for name in ("one.db", "two.db"))
    seen: list[int] = []
    for n in range(200):
        database = two if n % 3 == 0 else one
        store.submit(database, [(INSERT, (n, "x"))], lambda _, n=n: seen.append(n))  # type: ignore[misc]
    await store.write(one, [], durable=False)
    assert seen == list(range(200))
    store.close()


@pytest.mark.parametrize("value", ["half a pair: \ud800", 2**70], ids=["surrogate", "number"])
async def test_a_value_that_sqlite_does_not_take_is_refused_and_the_writer_goes_on(
    tmp_path: Path, value: str | int
) -> None:
    store = Store(tmp_path)
    database = store.open("rows.db", ROWS)
    with anyio.fail_after(30), pytest.raises(SyscallError) as caught:
        await store.write(database, [("INSERT INTO rows VALUES(1, ?)", (value,))])
    assert caught.value.errno is Errno.EINVAL
    with anyio.fail_after(30):
        await store.write(database, [(INSERT, (1, "x"))])
    store.close()


WRITER = """
import anyio, sys
from pathlib import Path
from llmasos.kernel.storage.database import Schema
from llmasos.kernel.storage.store import Store
from tests.system import foreign
async def main():
    store = Store(Path(sys.argv[1]))
    table = "CREATE TABLE rows(n INTEGER PRIMARY KEY, text TEXT NOT NULL)"
    rows = store.open("rows.db", Schema("rows", (table,)))
    n = store.read(rows, "SELECT coalesce(max(n), 0) FROM rows")[0][0]
    async def one(n):
        row = ("INSERT INTO rows VALUES(?,?)", (n, "x" * 300))
        await store.write(rows, [row], durable=n % 8 == 0)
        print(n, flush=True)
    while True:
        async with anyio.create_task_group() as tasks:
            for _ in range(16):
                n += 1
                tasks.start_soon(one, n)
anyio.run(main)
"""


async def test_kill_9_loses_no_acknowledged_row(tmp_path: Path) -> None:
    acknowledged: set[int] = set()
    for cycle in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            for _ in range(30 + 37 * cycle):
                acknowledged.add(int(writer.stdout.readline()))
            writer.kill()
            # What was on its way out of the pipe was acknowledged too; a torn last line was not.
            rest = writer.stdout.read()
            acknowledged |= {int(line) for line in rest.split("\n")[:-1]}
    store = Store(tmp_path)
    rows = {n for (n,) in store.read(store.open("rows.db", ROWS), "SELECT n FROM rows")}
    assert acknowledged <= rows
    store.close()


async def test_a_newer_store_is_refused_and_stays_untouched(tmp_path: Path) -> None:
    path = tmp_path / "rows.db"
    with sqlite3.connect(path) as newer:
        newer.execute("CREATE TABLE rows(n, text, colour)")
        newer.execute("PRAGMA user_version=9")
    newer.close()
    before = path.read_bytes()
    store = Store(tmp_path)
    with pytest.raises(SyscallError, match="version 9") as caught:
        store.open("rows.db", ROWS)
    assert caught.value.errno is Errno.EINVAL
    store.close()
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.db"]


async def test_another_program_that_reads_leaves_the_log(tmp_path: Path) -> None:
    store = Store(tmp_path)
    database = store.open("rows.db", ROWS)
    await store.write(database, [(INSERT, (1, "x"))])
    assert store.peek("rows.db", "SELECT n FROM rows") == [(1,)]
    log = (tmp_path / "rows.db-wal").stat().st_ino
    foreign.read([tmp_path / "rows.db"])
    assert (tmp_path / "rows.db-wal").stat().st_ino == log
    store.close()


@pytest.mark.parametrize("ends", [("-wal",), ("-shm",), ("-wal", "-shm")], ids="+".join)
async def test_what_is_written_after_the_log_was_deleted_is_kept(
    tmp_path: Path, ends: tuple[str, ...]
) -> None:
    store = Store(tmp_path)
    database = store.open("rows.db", ROWS)
    await store.write(database, [(INSERT, (1, "before"))])
    for end in ends:
        (tmp_path / f"rows.db{end}").unlink()
    for n, durable in ((2, True), (3, False)):
        await store.write(database, [(INSERT, (n, "after"))], durable=durable)
    # As kill -9 would leave it: without what only open descriptors reach.
    left = tmp_path / "left"
    left.mkdir()
    for path in tmp_path.glob("rows.db*"):
        shutil.copy(path, left)
    store.close()
    again = Store(left)
    assert again.read(again.open("rows.db", ROWS), "SELECT n FROM rows") == [(1,), (2,), (3,)]
    again.close()


async def test_writes_to_a_database_that_was_replaced_are_not_acknowledged(tmp_path: Path) -> None:
    store = Store(tmp_path)
    database = store.open("rows.db", ROWS)
    await store.write(database, [(INSERT, (1, "x"))])
    (tmp_path / "rows.db").rename(tmp_path / "aside.db")
    with pytest.raises(SyscallError, match="removed or replaced") as caught:
        await store.write(database, [(INSERT, (2, "x"))])
    assert caught.value.errno is Errno.EIO
    (tmp_path / "aside.db").rename(tmp_path / "rows.db")
    await store.write(database, [(INSERT, (3, "x"))])
    store.close()


async def test_nobody_else_may_read_any_file_of_the_store(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parent / "data" / "processes.v1.db", tmp_path / "processes.db")
    (tmp_path / "processes.db").chmod(0o600)
    before = os.umask(0)
    try:
        store = Store(tmp_path)
        ProcessTable(store, "alice")  # makes a copy of the old version
        await store.write(store.open("rows.db", ROWS), [(INSERT, (1, "x"))])
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert set(modes.values()) == {0o600}, modes
    assert {"processes.db.v1.copy", "rows.db-wal"} <= set(modes)
    store.close()


async def test_an_old_store_moves_forward_after_a_copy(tmp_path: Path) -> None:
    """The file was written by version 1: no end with a connection, no bounds, no application."""
    old = Path(__file__).parent / "data" / "processes.v1.db"
    shutil.copy(old, tmp_path / "processes.db")
    part = tmp_path / ".processes.db.v1.copy.part"  # of a migration that was killed
    part.write_bytes(b"half")
    with closing(sqlite3.connect(tmp_path / "processes.db")) as rows, rows:
        rows.execute("UPDATE processes SET state = 'zombie', code = 143 WHERE pid = 7")
    store = Store(tmp_path)
    processes = ProcessTable(store, "alice")
    assert [
        (p.pid, p.app, p.model, p.nice, p.keep, p.bounds, p.started_by) for p in processes.all()
    ] == [
        (3, "coder", "smollm2", 5, True, ("r:careful",), ()),
        (7, "writer", "echo", 0, True, ("r:careful",), ()),
    ]
    alive, ended = processes.all()
    assert (alive.state, alive.ended_at) == (State.READY, 0)
    assert (ended.state, ended.ending) == (State.ENDED, Exit(7, 143, ""))
    assert time.time() - 60 < ended.ended_at <= time.time()
    assert not part.exists()
    copy = tmp_path / "processes.db.v1.copy"
    with sqlite3.connect(copy) as kept:
        assert kept.execute("PRAGMA user_version").fetchone() == (1,)
        assert kept.execute("SELECT count(*) FROM processes").fetchone() == (2,)
    kept.close()
    store.close()
    assert len(PROCESSES.steps) == 6


async def test_a_look_at_a_database_that_nobody_has_open_leaves_no_files(tmp_path: Path) -> None:
    store = Store(tmp_path)
    await store.write(store.open("rows.db", ROWS), [(INSERT, (1, "x"))])
    store.close()
    store = Store(tmp_path)
    assert store.peek("rows.db", "SELECT n FROM rows") == [(1,)]
    assert store.peek("none.db", "SELECT n FROM rows") == []
    assert [path.name for path in tmp_path.iterdir()] == ["rows.db"]
    store.close()


async def test_what_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.db").write_bytes(b"hello" * 1000)
    store = Store(tmp_path)
    with pytest.raises(
        SyscallError, match=r"rows\.db is damaged: file is not a database"
    ) as caught:
        store.open("rows.db", ROWS)
    assert caught.value.errno is Errno.EIO
    store.close()


async def test_a_log_that_was_left_behind_is_not_applied_to_a_new_database(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    await store.write(store.open("rows.db", ROWS), [(INSERT, (1, "old"))])
    left = tmp_path / "left"
    left.mkdir()
    shutil.copy(tmp_path / "state" / "rows.db-wal", left)  # the database itself was moved away
    store.close()
    again = Store(left)
    database = again.open("rows.db", ROWS)
    assert again.read(database, "SELECT * FROM rows") == []
    await again.write(database, [(INSERT, (1, "new"))])
    assert (left / "rows.db-wal.stale").exists()
    again.close()


async def test_a_nearly_full_disk_refuses_writes_but_lets_go(tmp_path: Path) -> None:
    room = os.statvfs(tmp_path)
    store = Store(tmp_path, reserve_bytes=room.f_blocks * room.f_frsize * 2)
    database = store.open("rows.db", ROWS)
    with pytest.raises(SyscallError, match="MB free at") as caught:
        await store.write(database, [(INSERT, (1, "x"))])
    assert caught.value.errno is Errno.ENOSPC
    await store.write(database, [("DELETE FROM rows", ())], frees=True)
    store.close()


async def test_a_directory_that_cannot_be_examined_fails_only_the_writes_of_that_time(
    tmp_path: Path,
) -> None:
    directory, aside = tmp_path / "state", tmp_path / "aside"
    store = Store(directory)
    database = store.open("rows.db", ROWS)
    directory.rename(aside)
    with pytest.raises(SyscallError, match="nothing was written") as caught:
        await store.write(database, [(INSERT, (1, "x"))])
    assert caught.value.errno is Errno.EIO
    aside.rename(directory)
    await store.write(database, [(INSERT, (2, "x"))])
    assert store.read(database, "SELECT n FROM rows") == [(2,)]
    store.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
async def test_a_full_disk_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk]).returncode:
        pytest.skip("this machine does not let us mount a tmpfs")
    try:
        store = Store(disk, reserve_bytes=0)
        database = store.open("rows.db", ROWS)
        acknowledged = 0
        with pytest.raises(SyscallError) as caught:
            for n in range(100_000):
                await store.write(database, [(INSERT, (n, "x" * 3000))], durable=False)
                acknowledged = n + 1
        assert caught.value.errno is Errno.ENOSPC
        store.close()
        again = Store(disk, reserve_bytes=0)
        rows = again.read(again.open("rows.db", ROWS), "SELECT count(*) FROM rows")
        assert rows == [(acknowledged,)]
        again.close()
    finally:
        subprocess.run(["umount", disk], check=True)


async def test_deleted_text_does_not_stay_in_the_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    database = store.open("rows.db", ROWS)
    secret = "a text that nobody may find again"
    await store.write(database, [(INSERT, (1, secret))])
    await store.write(database, [("DELETE FROM rows", ())], frees=True)
    store.close()
    assert all(secret.encode() not in p.read_bytes() for p in tmp_path.iterdir())
