"""Pages under random changes, held against a model of twenty lines; and what each change leaves."""

import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.values import Page, ReadMem, Role
from llmasos.kernel.memory import changing, loading, mapping, reading
from llmasos.kernel.memory.erasing import drop
from llmasos.kernel.memory.memory import Memory
from llmasos.kernel.memory.rows import Change, Moved, NewPage, TurnRecord
from llmasos.kernel.memory.schema import SCHEMA
from llmasos.kernel.memory.table import PageTable
from llmasos.kernel.process.table import Process
from llmasos.kernel.storage.database import Schema
from llmasos.kernel.storage.store import Store
from tests.kernel.opened_memory import OWNER, opened

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


def process(pid: int) -> Process:
    return Process(
        pid=pid, parent=0, owner=OWNER, app="chat", model="m", created=0.0, keep=True, bounds=()
    )


def page(text: str, *, key: str = "", kind: str = Role.USER, message: int = 0) -> NewPage:
    return NewPage(text, len(text.split()), kind, OWNER, message, key=key)


async def pages_of(memory: Memory, one: Process) -> list[Page]:
    table = await memory.opened(one)
    return (await reading.read(memory, table, ReadMem(one.pid, count=1000))).pages


async def texts_of(memory: Memory, one: Process) -> dict[int, str]:
    return {found.number: found.text for found in await pages_of(memory, one)}


async def say(memory: Memory, one: Process, text: str, *, call: int = 1) -> list[int]:
    """A turn whose pages are all in the window."""
    table = await memory.opened(one)
    pages = [page(text), page(f"re {text}", kind=Role.ASSISTANT, message=1)]
    roles = [Role.USER, Role.ASSISTANT]
    return await memory.commit(one, TurnRecord(call, pages, [[0]], roles, table.window, {}, (), ""))


async def whole(memory: Memory) -> None:
    """The text indexes say what the pages say, and no page is there for nobody."""
    database = memory.database
    for index in ("turns", "nears"):
        check = f"INSERT INTO {index}({index}, rank) VALUES('integrity-check', 1)"
        await memory.store.write(database, [(check, ())])
    stored = {int(row[0] or 0) for row in await memory.read("SELECT id FROM pages")}
    reached = {p for table in memory.tables.all() for _, p in table.pages(0, table.next)}
    assert reached == stored
    for table in ("vectors", "todo"):
        sql = f"SELECT count(*) FROM {table} WHERE id NOT IN (SELECT id FROM pages)"
        assert await memory.read(sql) == [(0,)]


class Model:
    """What each process has, as plainly as can be said: texts by number."""

    def __init__(self) -> None:
        self.texts: dict[int, dict[int, str]] = {}
        self.next: dict[int, int] = {}

    def add(self, pid: int, text: str) -> None:
        self.texts.setdefault(pid, {})[self.next.get(pid, 0)] = text
        self.next[pid] = self.next.get(pid, 0) + 1

    def fork(self, pid: int, child: int) -> None:
        self.texts[child] = dict(self.texts.get(pid, {}))
        self.next[child] = self.next.get(pid, 0)

    def map(self, pid: int, other: int, first: int, end: int) -> None:
        numbers = [n for n in sorted(self.texts[other]) if first <= n < end]
        for number in numbers:
            self.add(pid, self.texts[other][number])


class Both:
    """The same change to the memory and to the model."""

    def __init__(self, memory: Memory, dice: random.Random) -> None:
        self.memory, self.model, self.dice = memory, Model(), dice
        self.alive = {1: process(1)}
        self.following = 2

    async def write(self, pid: int, text: str) -> None:
        await self.memory.write(self.alive[pid], [page(text)])
        self.model.add(pid, text)

    async def talk(self, pid: int, text: str) -> None:
        await say(self.memory, self.alive[pid], text)
        self.model.add(pid, text)
        self.model.add(pid, f"re {text}")

    async def replace(self, pid: int, text: str) -> None:
        if not self.model.texts[pid]:
            return
        number = self.dice.choice(list(self.model.texts[pid]))
        table = await self.memory.opened(self.alive[pid])
        await changing.replace(self.memory, table, number, [page(text)])
        self.model.texts[pid][number] = text

    async def fork(self, pid: int, _text: str) -> None:
        if len(self.alive) < 6:
            child = self.alive[self.following] = process(self.following)
            await self.memory.copy(self.alive[pid], [child])
            self.model.fork(pid, self.following)
            self.following += 1

    async def drop(self, pid: int, _text: str) -> None:
        if len(self.alive) > 1:
            await drop(self.memory, self.alive.pop(pid))
            del self.model.texts[pid]

    async def map(self, pid: int, _text: str) -> None:
        others = [other for other in self.alive if other != pid]
        if not others:
            return
        other = self.dice.choice(others)
        first = self.dice.randrange(max(1, self.model.next[other]))
        part = range(first, min(first + 5, self.model.next[other]))
        source = await self.memory.opened(self.alive[other])
        if any(number in self.model.texts[other] for number in part):
            table = await self.memory.opened(self.alive[pid])
            await mapping.process(self.memory, table, source, part, writable=True)
            self.model.map(pid, other, part.start, part.stop)

    async def put(self, pid: int, text: str) -> None:
        one = self.alive[pid]
        key = self.dice.choice(["colour", "place"])
        before = {found.number for found in await pages_of(self.memory, one) if found.key == key}
        await changing.put(self.memory, await self.memory.opened(one), key, [page(text, key=key)])
        for number in before:
            del self.model.texts[pid][number]
        self.model.add(pid, text)

    async def agree(self, again: Memory) -> None:
        await whole(self.memory)
        for pid, one in self.alive.items():
            assert await texts_of(self.memory, one) == self.model.texts[pid]
            assert await texts_of(again, one) == self.model.texts[pid]
            tokens = sum(len(text.split()) for text in self.model.texts[pid].values())
            assert self.memory.tokens(pid) == again.tokens(pid) == tokens


@pytest.mark.parametrize("seed", range(6))
async def test_random_changes_agree_with_a_plain_model(store: Store, seed: int) -> None:
    dice = random.Random(seed)
    memory = opened(store)
    both = Both(memory, dice)
    await both.write(1, "first words")
    ways = [
        both.write,
        both.talk,
        both.talk,
        both.replace,
        both.fork,
        both.drop,
        both.map,
        both.put,
    ]
    for step in range(120):
        word = dice.choice(["apple", "river", "copper", "lantern"])
        await dice.choice(ways)(dice.choice(list(both.alive)), f"step {step} of {seed} says {word}")
        if step % 10 == 9:
            await both.agree(opened(store))
    for one in both.alive.values():
        await drop(memory, one)
    await whole(memory)
    for table in ("pages", "tables", "ranges", "marks", "moves", "vectors", "todo", "spaces"):
        assert await memory.read(f"SELECT count(*) FROM {table}") == [(0,)], table


async def test_pages_are_acknowledged_when_the_disk_has_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 cannot tell: what was only written survives it, too."""
    memory, synced, really = opened(store), list[int](), os.fdatasync
    one = process(1)
    await say(memory, one, "before")
    path = memory.database.path
    log = path.with_name(f"{path.name}-wal").stat().st_ino

    def sync(file: int) -> None:
        synced.append(os.fstat(file).st_ino)
        really(file)

    monkeypatch.setattr(os, "fdatasync", sync)
    await say(memory, one, "a turn")
    assert synced == [log]
    await memory.write(one, [page("a note")])
    assert synced == [log, log]


async def test_the_window_comes_back_after_a_restart(store: Store) -> None:
    memory, one = opened(store), process(1)
    for turn in range(3):
        await say(memory, one, f"turn {turn}")
    table = await memory.opened(one)
    await changing.evict(memory, table, [2, 3])
    again = await opened(store).opened(one)
    assert again.window == table.window
    assert again.resident() == {0, 1, 4, 5}


async def test_what_is_evicted_during_a_call_stays_out(store: Store) -> None:
    memory, one = opened(store), process(1)
    await say(memory, one, "before")
    table = await memory.opened(one)
    planned = [*table.window]
    await changing.evict(memory, table, [0])
    pages = [page("now"), page("answer", kind=Role.ASSISTANT, message=1)]
    roles = [Role.USER, Role.ASSISTANT]
    await memory.commit(one, TurnRecord(2, pages, [[0]], roles, planned, {}, (), ""))
    assert (await memory.opened(one)).resident() == {1, 2, 3}


async def test_a_page_that_is_mapped_read_only_is_not_written(store: Store) -> None:
    memory, one, other = opened(store), process(1), process(2)
    await memory.write(one, [page("theirs")])
    table = await memory.opened(other)
    source = await memory.opened(one)
    await mapping.process(memory, table, source, range(1), writable=False)
    with pytest.raises(SyscallError, match="mapped read-only from /proc/1/mem") as caught:
        await changing.replace(memory, table, 0, [page("mine")])
    assert caught.value.errno is Errno.EACCES
    assert await texts_of(memory, other) == {0: "theirs"}


async def test_an_unmapped_part_is_free_for_nobody_else(store: Store) -> None:
    memory, one, other = opened(store), process(1), process(2)
    await memory.write(one, [page("a"), page("b", message=1)])
    table = await memory.opened(other)
    await mapping.process(memory, table, await memory.opened(one), range(2), writable=True)
    await drop(memory, one)  # its pages live on where they are mapped
    assert await texts_of(memory, other) == {0: "a", 1: "b"}
    gone = await mapping.unmap(memory, table, 1)
    assert len(gone.spaces) == 1
    assert gone.pages == []
    assert await texts_of(memory, other) == {}
    assert await memory.read("SELECT count(*) FROM pages") == [(0,)]
    with pytest.raises(SyscallError, match="nothing is mapped at page 0") as caught:
        await mapping.unmap(memory, table, 0)
    assert caught.value.errno is Errno.ENOENT
    assert caught.value.hint == f"`llmasos mem {table.pid}` lists its pages"


@pytest.mark.parametrize("number", [5, 10**9])
async def test_a_page_that_is_not_there_is_named(store: Store, number: int) -> None:
    memory, one = opened(store), process(7)
    await memory.write(one, [page("a")])
    table = await memory.opened(one)
    for change in (
        lambda: changing.pin(memory, table, [number], True),
        lambda: changing.evict(memory, table, [number]),
        lambda: changing.replace(memory, table, number, [page("b")]),
        lambda: reading.trace(memory, table, number),
    ):
        with pytest.raises(SyscallError, match=f"process 7 has no page {number}") as caught:
            await change()
        assert caught.value.errno is Errno.ENOENT


async def test_a_pinned_page_is_not_evicted_by_name(store: Store) -> None:
    memory, one = opened(store), process(1)
    await say(memory, one, "keep this")
    table = await memory.opened(one)
    await changing.pin(memory, table, [0], True)
    with pytest.raises(SyscallError, match="page 0 of process 1 is pinned") as caught:
        await changing.evict(memory, table, [0])
    assert caught.value.errno is Errno.EBUSY
    assert (await opened(store).opened(one)).pinned(0)
    await changing.pin(memory, table, [0], False)
    assert await changing.evict(memory, table, [0]) == [0]
    trace = await reading.trace(memory, table, 0)
    assert [move.what for move in trace.moves] == ["written", "pinned", "unpinned", "evicted"]


async def test_a_page_that_was_replaced_tells_its_first_writing(store: Store) -> None:
    memory, one = opened(store), process(1)
    await say(memory, one, "before", call=7)
    await say(memory, one, "later", call=8)
    table = await memory.opened(one)
    written = (await reading.trace(memory, table, 0)).moves
    await changing.evict(memory, table, [0])
    await changing.replace(memory, table, 0, [page("now")])
    await changing.replace(memory, table, 0, [page("and now")])
    trace = await reading.trace(memory, table, 0)
    assert trace.moves[:1] == written
    assert [(move.what, move.why) for move in trace.moves] == [
        ("written", "by alice"), ("evicted", "requested"),
        ("replaced", "by alice"), ("replaced", "by alice"),
    ]  # fmt: skip
    assert trace.moves == sorted(trace.moves, key=lambda move: move.time)
    assert (trace.page.message, table.messages) == (0, 4)
    await changing.replace(memory, table, 0, [NewPage("x", 1, Role.USER, "bob")])
    moves = (await reading.trace(memory, table, 0)).moves
    assert moves[0].why == ""
    assert (moves[-1].what, moves[-1].why) == ("author_replaced", "by alice")


async def test_the_author_of_a_page_that_an_earlier_version_replaced_is_still_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Schema("pages", SCHEMA.steps[:-1], functions=SCHEMA.functions)
    with monkeypatch.context() as patch:
        patch.setattr(loading, "SCHEMA", before)
        store = Store(tmp_path)
        memory, one = opened(store), process(1)
        await say(memory, one, "before")
        table = await memory.opened(one)
        why = "by alice, under another author"
        await memory.change(table, Change([Moved(0, 0, "replaced", why)]))
        store.close()
    store = Store(tmp_path)
    memory = opened(store)
    moves = (await reading.trace(memory, await memory.opened(one), 0)).moves
    assert moves[0].why == ""
    assert [(move.what, move.why) for move in moves[1:]] == [("author_replaced", "by alice")]
    store.close()


async def test_a_page_that_came_by_a_fork_says_so(store: Store) -> None:
    memory, one, child, empty = opened(store), process(1), process(2), process(3)
    await memory.copy(one, [empty])
    await say(memory, one, "before")
    await memory.copy(one, [child])
    await say(memory, child, "apart")
    table = await memory.opened(child)
    stories = [(await reading.trace(memory, table, number)).moves for number in range(4)]
    for story in stories[:2]:
        assert [move.what for move in story] == ["written", "shared"]
        assert story[1].why == "at the fork from process 1"
        assert story[0].time <= story[1].time
    assert [[move.what for move in story] for story in stories[2:]] == [["written"]] * 2
    assert await memory.read("SELECT count(*) FROM moves") == [(1,)]


async def test_a_text_of_several_pages_does_not_go_in_the_place_of_one(store: Store) -> None:
    memory, one = opened(store), process(1)
    await memory.write(one, [page("a")])
    table: PageTable = await memory.opened(one)
    with pytest.raises(SyscallError, match="takes 2 pages") as caught:
        await changing.replace(memory, table, 0, [page("b"), page("c")])
    assert caught.value.errno is Errno.E2BIG


# --- writes that fail, and changes at the same time -----------------------------------------------
def full(store: Store, full: bool) -> None:
    """As if the disk was nearly full: what frees something is written all the same."""
    object.__setattr__(store, "_reserve", 2**60 if full else 0)


async def test_what_could_not_be_written_has_not_happened(store: Store) -> None:
    memory, one = opened(store), process(1)
    await memory.write(one, [page("stays")])
    table = await memory.opened(one)
    await changing.put(memory, table, "colour", [page("blue", key="colour")])
    await say(memory, one, "hello")
    before = await texts_of(memory, one), table.window, memory.tokens(1), table.next, table.place
    full(store, True)
    for change in (
        lambda: memory.write(one, [page("no")]),
        lambda: say(memory, one, "no"),
        lambda: changing.put(memory, table, "colour", [page("green", key="colour")]),
        lambda: changing.replace(memory, table, 0, [page("no")]),
        lambda: changing.pin(memory, table, [0], True),
        lambda: changing.evict(memory, table, [2]),
        lambda: memory.copy(one, [process(7), process(8)]),
    ):
        with pytest.raises(SyscallError) as caught:
            await change()
        assert caught.value.errno is Errno.ENOSPC
        now = await texts_of(memory, one), table.window, memory.tokens(1), table.next, table.place
        assert now == before
    full(store, False)
    await changing.put(memory, table, "colour", [page("green", key="colour")])
    assert "green" in (await texts_of(memory, one)).values()
    await whole(memory)
    await drop(memory, one)
    assert await memory.read("SELECT count(*) FROM pages") == [(0,)]


async def test_changes_at_the_same_time_leave_nothing_behind(store: Store) -> None:
    memory, one = opened(store), process(1)
    await memory.write(one, [page("first")])
    table = await memory.opened(one)
    async with anyio.create_task_group() as tasks:
        for number in range(8):
            text = f"number {number}"
            tasks.start_soon(changing.replace, memory, table, 0, [page(text)])
            tasks.start_soon(changing.put, memory, table, "key", [page(text, key="key")])
            tasks.start_soon(memory.write, one, [page(text)])
    await whole(memory)
    pages = await pages_of(memory, one)
    assert len([found for found in pages if found.key == "key"]) == 1
    assert len(pages) == 10
    assert memory.tokens(1) == sum(found.tokens for found in pages)


async def test_a_key_of_a_document_is_not_in_the_way_of_ones_own(store: Store) -> None:
    memory, one, other = opened(store), process(1), process(2)
    await memory.write(one, [page("theirs", key="colour")])
    table = await memory.opened(other)
    await mapping.process(memory, table, await memory.opened(one), range(1), writable=False)
    for text in ("blue", "green"):
        await changing.put(memory, table, "colour", [page(text, key="colour")])
    assert list((await texts_of(memory, other)).values()) == ["theirs", "green"]


async def test_nothing_is_written_for_a_process_that_was_reaped(store: Store) -> None:
    memory, one = opened(store), process(1)
    await memory.write(one, [page("a")])
    table = await memory.opened(one)
    one.reaped = True
    await drop(memory, one)
    for change in (
        lambda: memory.write(one, [page("b")]),
        lambda: changing.put(memory, table, "key", [page("b", key="key")]),
    ):
        with pytest.raises(SyscallError, match="process 1 was removed") as caught:
            await change()
        assert caught.value.errno is Errno.ESRCH
    assert await memory.read("SELECT count(*) FROM pages") == [(0,)]


async def test_a_page_that_was_written_in_a_mapping_goes_with_it(store: Store) -> None:
    memory, one, other = opened(store), process(1), process(2)
    await memory.write(one, [page("a"), page("b", message=1)])
    table = await memory.opened(other)
    await mapping.process(memory, table, await memory.opened(one), range(2), writable=True)
    await changing.replace(memory, table, 0, [page("my own words")])
    await mapping.unmap(memory, table, 1)
    await whole(memory)
    assert memory.tokens(2) == 0
    assert [text for (text,) in await memory.read("SELECT text FROM pages")] == ["a", "b"]
