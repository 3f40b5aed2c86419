"""Fork: all children or none, with the pages that were on disk when it was asked."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.values import Exit, Fork, Message, Page, Profile, ReadMem, Role, Spawn
from llmasos.kernel.access.identity import Caller
from llmasos.kernel.driver import Cut
from llmasos.kernel.memory import changing, reading
from llmasos.kernel.memory.erasing import drop, orphans
from llmasos.kernel.memory.memory import Memory
from llmasos.kernel.memory.rows import NewPage, TurnRecord
from llmasos.kernel.process.table import Process, ProcessTable
from llmasos.kernel.storage.store import Store
from tests.kernel.opened_memory import opened

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


def caller(connection: int = 1) -> Caller:
    return Caller(connection, "alice", Profile.OPEN, ("u:alice",), started_by=("notes",))


async def spawn(table: ProcessTable, **fields: object) -> Process:
    return await table.spawn(caller(), Spawn("m", **fields), "m")  # type: ignore[arg-type]


async def say(memory: Memory, parent: Process, call: int, text: str) -> None:
    pages = [
        NewPage(text, len(text), Role.USER, "alice"),
        NewPage(text.upper(), 2, Role.ASSISTANT, "m", 1),
    ]
    window = memory.table(parent).window
    turn = TurnRecord(call, pages, [[0]], [Role.USER, Role.ASSISTANT], window, {}, (), "")
    await memory.commit(parent, turn)


async def pages_of(memory: Memory, process: Process) -> list[Page]:
    table = await memory.opened(process)
    return (await reading.read(memory, table, ReadMem(process.pid))).pages


async def test_a_child_is_like_its_parent_unless_it_is_said_otherwise(store: Store) -> None:
    table = ProcessTable(store, "alice")
    parent = await spawn(table, app="chat", nice=3)
    like, other = (
        (table.children(parent, fork, caller(7))[0])
        for fork in (Fork(parent.pid), Fork(parent.pid, app="critic", nice=-1, keep=False))
    )
    await table.add([like, other])
    assert (like.app, like.nice, like.keep, like.model) == ("chat", 3, True, "m")
    assert (other.app, other.nice, other.keep, other.connection) == ("critic", -1, False, 7)
    assert like.parent == other.parent == parent.pid
    assert len({like.pid, other.pid, parent.pid}) == 3


async def test_the_children_come_back_after_a_restart(store: Store) -> None:
    table = ProcessTable(store, "alice")
    parent = await spawn(table)
    children = table.children(parent, Fork(parent.pid, 5), caller(1))
    await table.add(children)
    assert [p.pid for p in ProcessTable(store, "alice").all()] == [
        parent.pid,
        *(c.pid for c in children),
    ]


async def test_children_see_the_parents_pages_which_are_stored_once(
    store: Store, tmp_path: Path
) -> None:
    table, memory = ProcessTable(store, "alice"), opened(store)
    parent = await spawn(table)
    await memory.append_message(parent, Message(Role.SYSTEM, "be"), [Cut("be", 1)], "alice")
    await say(memory, parent, 77, "question")
    children = table.children(parent, Fork(parent.pid, 3), caller(1))
    await memory.copy(parent, children)
    for child in children:
        assert memory.tokens(child.pid) == memory.tokens(parent.pid)
        assert memory.table(child).window == memory.table(parent).window
        assert memory.table(child).window is not memory.table(parent).window
        assert await pages_of(memory, child) == await pages_of(memory, parent)
    with sqlite3.connect(tmp_path / "owners/alice/pages.db") as database:
        assert database.execute("SELECT count(*) FROM pages").fetchone() == (3,)
    database.close()
    again = opened(store)
    for child in children:
        assert await pages_of(again, child) == await pages_of(again, parent)


class NotedStore(Store):
    """Notes the tick at which the last write of pages was queued."""

    tick = queued_at = 0

    def _queue(self, job: Any) -> None:
        if job.database.path.name == "pages.db":
            self.queued_at = self.tick
        super()._queue(job)


async def test_many_copies_of_a_table_with_many_marks_are_made_in_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P-13: other calls run meanwhile; what differs from the ranges is copied, also on disk."""
    monkeypatch.setattr(limits, "SLICE_S", 0.0)
    store = NotedStore(tmp_path)
    table, memory = ProcessTable(store, "alice"), opened(store)
    parent = await spawn(table)
    pages = [NewPage(str(number), 1, Role.USER, "alice") for number in range(300)]
    numbers = [number for number, _ in await memory.write(parent, pages)]
    await changing.pin(memory, memory.table(parent), numbers, True)
    children = table.children(parent, Fork(parent.pid, limits.FORKS), caller(1))

    async def count() -> None:
        while True:
            store.tick += 1
            await anyio.lowlevel.checkpoint()

    begun = store.tick
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count)
        await memory.copy(parent, children)
        tasks.cancel_scope.cancel()
    assert store.queued_at - begun >= limits.FORKS
    marks = memory.table(parent).marks
    assert len(marks) == len(numbers)
    assert all(memory.table(child).marks == marks for child in children)
    store.close()
    again = Store(tmp_path)
    found = opened(again)
    assert all(found.table(child).marks == marks for child in children)
    again.close()


async def test_what_one_of_them_says_later_is_its_own(store: Store) -> None:
    table, memory = ProcessTable(store, "alice"), opened(store)
    parent = await spawn(table)
    await say(memory, parent, 1, "before")
    (child,) = table.children(parent, Fork(parent.pid), caller(1))
    await memory.copy(parent, [child])
    await say(memory, parent, 2, "parent")
    await say(memory, child, 3, "child")
    texts = {p.pid: [page.text for page in await pages_of(memory, p)] for p in (parent, child)}
    assert texts[parent.pid] == ["before", "BEFORE", "parent", "PARENT"]
    assert texts[child.pid] == ["before", "BEFORE", "child", "CHILD"]
    await drop(memory, parent)
    assert len(await pages_of(memory, child)) == 4
    await drop(memory, child)
    assert await memory.read("SELECT count(*) FROM pages") == [(0,)]


async def test_a_turn_that_is_being_written_is_copied_whole_or_not_at_all(store: Store) -> None:
    table, memory = ProcessTable(store, "alice"), opened(store)
    parent = await spawn(table)
    children: list[Process] = []

    async def talk() -> None:
        for turn in range(40):
            await say(memory, parent, turn + 1, f"turn {turn}")

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(talk)
            for _ in range(20):
                (child,) = table.children(parent, Fork(parent.pid), caller(1))
                children.append(child)
                await memory.copy(parent, [child])
    for child in children:
        pages = await pages_of(memory, child)
        assert memory.table(child).next == len(pages)
        assert memory.tokens(child.pid) == sum(page.tokens for page in pages)
        assert len(pages) % 2 == 0


async def test_a_crash_between_pages_and_processes_leaves_orphans_that_are_found(
    store: Store,
) -> None:
    table, memory = ProcessTable(store, "alice"), opened(store)
    parent = await spawn(table)
    await say(memory, parent, 1, "hello")
    children = table.children(parent, Fork(parent.pid, 2), caller(1))
    await memory.copy(parent, children)
    again = opened(store)
    alive = {p.pid for p in ProcessTable(store, "alice").all()}
    assert sorted(await orphans(again, alive)) == [child.pid for child in children]


async def test_a_full_table_refuses_the_whole_count(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PROCESSES", 4)
    table = ProcessTable(store, "alice")
    parent = await spawn(table)
    with (
        pytest.raises(SyscallError, match="the limit of this machine is 4, 3 are free") as caught,
        table.reserve(4, "alice"),
    ):
        pass
    assert caught.value.errno is Errno.EAGAIN
    with table.reserve(2, "alice"):  # a fork on its way
        await spawn(table)
        with pytest.raises(SyscallError, match="4, 0 are free"):
            await spawn(table)
    await table.add(table.children(parent, Fork(parent.pid, 2), caller(1)))
    assert len(table.all()) == 4


async def test_the_dead_do_not_fork(store: Store) -> None:
    table = ProcessTable(store, "alice")
    parent = await spawn(table)
    await table.exit(parent, 0, "TERM")
    assert parent.ending == Exit(parent.pid, 0, "TERM")
    with pytest.raises(SyscallError) as caught:
        table.get_alive(parent.pid, "alice")
    assert caught.value.errno is Errno.ESRCH


async def test_a_process_that_ends_meanwhile_is_not_stopped(store: Store) -> None:
    table = ProcessTable(store, "alice")
    process = await spawn(table)

    async def stop() -> None:
        with pytest.raises(SyscallError, match=f"process {process.pid} has ended") as caught:
            await table.stop(process, True)
        assert caught.value.errno is Errno.ESRCH

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop)
        await anyio.lowlevel.checkpoint()  # its state is being written
        process.ending = Exit(process.pid, 0, "TERM")
    assert not process.stopped


async def test_a_process_is_own_to_its_owner_alone(store: Store) -> None:
    process = await spawn(ProcessTable(store, "alice"), app="notes")
    assert process.is_own(Caller(1, "alice", Profile.OPEN, ("u:alice",), app="notes"))
    assert not process.is_own(Caller(1, "bob", Profile.OPEN, ("u:bob",), app="notes"))
