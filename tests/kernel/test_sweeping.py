"""Long work on an owner's pages goes in pieces: others come between, and a crash loses nothing."""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import SyscallError
from llmasos.kernel.abi.values import Checked
from llmasos.kernel.memory import changing, erasing, mapping, pieces, text_index
from llmasos.kernel.memory.erasing import drop
from llmasos.kernel.memory.fsck import fsck
from llmasos.kernel.memory.memory import Memory
from llmasos.kernel.memory.recall_device import RecallDevice
from llmasos.kernel.memory.sweeping import Sweeper
from llmasos.kernel.memory.table import PageTable
from llmasos.kernel.memory.vector_index import WAITING, VectorIndex
from llmasos.kernel.storage.database import Statement, Transaction
from llmasos.kernel.storage.store import Store
from llmasos.kernel.supervisor import Supervisor
from tests.kernel.opened_memory import OWNER, opened
from tests.kernel.test_mapping import count, cut
from tests.kernel.test_memory import page, process, texts_of, whole

pytestmark = pytest.mark.anyio
MANY = 3 * limits.SLICE_ROWS + 5


class Stages(Store):
    """Calls `at` before each write of an owner, with its number."""

    at: Callable[[int], None] | None = None
    writes = 0

    def _queue(self, job: Any) -> None:
        if self.at is not None and job.database.path.name == "pages.db":
            self.writes += 1
            self.at(self.writes)
        super()._queue(job)


def lines(count: int, name: str = "line") -> list[str]:
    return [
        f"{name} {number} tells of copper, bread and ship {number % 17}" for number in range(count)
    ]


async def filled(memory: Memory, pid: int, count: int = MANY) -> None:
    await memory.write(process(pid), [page(text) for text in lines(count)])


async def checked(memory: Memory, *, rebuild: bool = False) -> tuple[list[str], list[str]]:
    """What fsck finds, and what it mends."""
    alive = {table.pid for table in memory.tables.all()}
    found: list[Checked] = []
    async with anyio.create_task_group() as tasks:
        vectors = VectorIndex(memory, RecallDevice(None, Supervisor(tasks)))
        found.append(await fsck(memory, vectors, alive, rebuild=rebuild))
    return list(found[0].faults), list(found[0].mended)


# --- the text indexes -----------------------------------------------------------------------------
async def test_other_changes_go_between_the_pieces_of_a_rebuild(tmp_path: Path) -> None:
    """Pages come, are replaced and go before and behind the place that the rebuild has reached."""
    memory, dice = opened(Store(tmp_path)), random.Random(5)
    for pid in (1, 2, 3):
        await filled(memory, pid)
    table, database = await memory.opened(process(1)), memory.database
    await memory.store.slice(database, pieces.begin_words)
    step = 0
    while step < 3 or await memory.store.slice(database, pieces.fill_words):
        for _ in range(4):
            number = dice.randrange(table.next)
            if table.page(number) is not None:
                await changing.replace(memory, table, number, [page(f"another {step}")])
        await memory.write(process(1), [page(f"a new one {step}")])
        await changing.put(memory, table, "key", [page(f"value {step}", key="key")])
        if step == 5:
            await drop(memory, process(2))
        step += 1
    assert step > 3 * MANY // limits.SLICE_ROWS
    await erasing.finish(memory)
    await whole(memory)
    assert await checked(memory) == ([], [])
    memory.store.close()


@pytest.mark.parametrize("stage", [1, 2, 3])
async def test_a_rebuild_that_was_interrupted_is_ended_by_the_next_start(
    tmp_path: Path, stage: int
) -> None:
    store = Stages(tmp_path)
    memory = opened(store)
    await filled(memory, 1)
    with anyio.CancelScope() as scope:
        store.at = lambda number: scope.cancel() if number == stage else None
        await text_index.rebuild(memory)
    assert scope.cancelled_caught
    store.at = None
    assert await count(memory, "turns_docsize") == (stage - 1) * limits.SLICE_ROWS
    await memory.write(process(1), [page("written meanwhile")])
    again = opened(store)
    async with anyio.create_task_group() as tasks:
        sweeper = Sweeper(
            again, VectorIndex(again, RecallDevice(None, Supervisor(tasks))), Supervisor(tasks)
        )
        assert again.rebuilding
        with anyio.fail_after(30):
            assert await sweeper.sweep_once()
        tasks.cancel_scope.cancel()
    assert not again.rebuilding
    await whole(again)
    assert await count(again, "turns_docsize") == MANY + 1
    store.close()


async def test_the_text_indexes_are_merged_piece_by_piece_until_nothing_is_left(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    memory = opened(store)
    await filled(memory, 1)
    table = await memory.opened(process(1))
    for number in range(0, MANY, 2):
        await changing.replace(memory, table, number, [page("zanzibar")])
    await changing.replace(memory, table, 0, [page("plain")])
    for number in range(2, MANY, 2):
        await changing.replace(memory, table, number, [page("plain")])
    await text_index.merge(memory)
    sql = "SELECT count(*) FROM {}_data WHERE instr(block, CAST('zanzibar' AS BLOB))"
    for index in pieces.INDEXES:
        assert await memory.read(sql.format(index)) == [(0,)]
    await whole(memory)
    store.close()


Spoil = list[Statement]
TURN = "INSERT INTO turns(rowid, turn) VALUES(?, ?)"
GONE = "INSERT INTO turns(turns, rowid, turn) VALUES('delete', ?, ?)"
FIRST = (1 << 32) + 1


@pytest.mark.parametrize(
    ("spoil", "wrong"),
    [
        ([], ""),
        ([(TURN, (5, "somebody who is not there"))], "turns"),
        ([(GONE, (FIRST, "alice: line 1 tells of copper, bread and ship 1"))], "turns"),
        ([("UPDATE pages SET text = 'line 1 tells of tin' WHERE id = ?", (FIRST,))], "turns"),
        ([("DELETE FROM nears_data WHERE id = (SELECT max(id) FROM nears_data)", ())], "nears"),
        ([("DELETE FROM turns_docsize WHERE id = ?", (FIRST,))], "turns"),
    ],
    ids=["sound", "spare", "missing", "changed", "damaged", "unsized"],
)
async def test_fsck_finds_what_sqlite_finds_in_the_text_indexes(
    tmp_path: Path, spoil: Spoil, wrong: str
) -> None:
    store = Store(tmp_path)
    memory = opened(store)
    await filled(memory, 1)
    database = memory.database
    await store.write(database, spoil)
    checks = [
        (f"INSERT INTO {index}({index}, rank) VALUES('integrity-check', 1)", ())
        for index in pieces.INDEXES
    ]
    for check in checks:
        try:
            await store.write(database, [check])
        except SyscallError:
            assert wrong
    faults, _ = await checked(memory)
    assert (
        [fault for fault in faults if f"the text index {wrong}" in fault] if wrong else not faults
    )
    _, mended = await checked(memory, rebuild=True)
    assert "rebuilt: text index" in mended
    assert not [fault for fault in (await checked(memory))[0] if "text index" in fault]
    await store.write(database, checks)
    store.close()


# --- pages that are going -------------------------------------------------------------------------
async def test_other_writes_of_an_owner_go_between_the_pieces_of_a_reaped_process(
    tmp_path: Path,
) -> None:
    store = Stages(tmp_path)
    memory = opened(store)
    await filled(memory, 1)
    order: list[str] = []
    left: list[bool] = []
    memory.on_erase_pending = lambda: left.append(True)
    await drop(memory, process(1))
    assert left == [True]
    assert await count(memory) == MANY - limits.SLICE_ROWS
    store.at = lambda _: order.append("queued")

    async def write() -> None:
        await memory.write(process(2), [page("hello")])
        order.append(f"written with {await count(memory)}")

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            await erasing.finish(memory)
    assert int(next(one for one in order if one.startswith("written")).split()[-1]) > 1
    assert await texts_of(memory, process(2)) == {0: "hello"}
    await whole(memory)
    store.close()


async def test_pages_that_were_going_at_a_crash_are_erased_by_the_next_start(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    memory = opened(store)
    for pid in (1, 2):
        await filled(memory, pid)
    await memory.copy(process(2), [process(3)])
    await drop(memory, process(1))
    await drop(memory, process(2))  # its pages are another's
    again = opened(store)  # nobody went on erasing
    assert await count(again) == 2 * (MANY - limits.SLICE_ROWS)
    async with anyio.create_task_group() as tasks:
        sweeper = Sweeper(
            again, VectorIndex(again, RecallDevice(None, Supervisor(tasks))), Supervisor(tasks)
        )
        with anyio.fail_after(30):
            assert await sweeper.sweep_once()
        tasks.cancel_scope.cancel()
    assert await count(again, "going") == 0
    assert len(await texts_of(again, process(3))) == MANY
    await whole(again)
    store.close()


async def test_going_pages_are_not_made_into_vectors(tmp_path: Path) -> None:
    store = Store(tmp_path)
    memory = opened(store)
    await filled(memory, 1)
    await drop(memory, process(1))
    assert await count(memory, "todo") == MANY - limits.SLICE_ROWS
    assert await memory.read(WAITING, 10) == []
    store.close()


async def test_a_sweep_comes_however_often_pages_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SWEEP_S", 0.02)
    store = Store(tmp_path)
    memory = opened(store)
    await filled(memory, 1, 3)
    await drop(memory, process(1))
    assert await count(memory, "derived") == 1
    async with anyio.create_task_group() as tasks:
        sweeper = Sweeper(
            memory, VectorIndex(memory, RecallDevice(None, Supervisor(tasks))), Supervisor(tasks)
        )
        with anyio.fail_after(30):
            while await count(memory, "derived"):
                sweeper.dirty()
        tasks.cancel_scope.cancel()
    store.close()


async def test_what_goes_during_a_sweep_is_still_marked_after_it(tmp_path: Path) -> None:
    store = Stages(tmp_path)
    memory = opened(store)
    await filled(memory, 1, 3)
    await filled(memory, 2, 3)
    await drop(memory, process(1))
    async with anyio.create_task_group() as tasks:
        sweeper = Sweeper(
            memory, VectorIndex(memory, RecallDevice(None, Supervisor(tasks))), Supervisor(tasks)
        )
        begun = anyio.Event()
        store.at = lambda number: begun.set() if number == 2 else None
        tasks.start_soon(sweeper.sweep_once)
        with anyio.fail_after(30):
            await begun.wait()
            store.at = None
            await drop(memory, process(2))
            async with memory.maintenance:
                pass
        assert await count(memory, "derived") == 1
        assert await sweeper.sweep_once()
        assert await count(memory, "derived") == 0
        tasks.cancel_scope.cancel()
    store.close()


class Files(VectorIndex):
    """Counts how often Chroma's files are rewritten."""

    renewals = 0

    async def clean_files(self) -> None:
        self.renewals += 1
        await super().clean_files()


class Watched(Sweeper):
    """Says when a sweep has ended."""

    swept = anyio.Event()

    async def sweep_once(self) -> bool:
        done = await super().sweep_once()
        self.swept.set()
        return done


async def test_one_process_of_many_does_not_rewrite_all_vectors_of_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SWEEP_S", 0.0)
    store = Store(tmp_path)
    memory = opened(store)
    for pid in range(1, 31):
        await filled(memory, pid, 4)
    async with anyio.create_task_group() as tasks:
        vectors = Files(memory, RecallDevice(None, Supervisor(tasks)))
        sweeper = Watched(memory, vectors, Supervisor(tasks))

        async def gone(pid: int) -> tuple[int, object]:
            """Files rewritten, and marks of what is left, when the process's words are gone."""
            await drop(memory, process(pid))
            assert await count(memory, "derived WHERE version = '1'") == 1
            sweeper.swept = anyio.Event()
            sweeper.dirty(4)
            await sweeper.swept.wait()
            assert await count(memory, "derived WHERE version = '1'") == 0
            return vectors.renewals, await count(memory, "derived")

        with anyio.fail_after(60):
            assert await gone(1) == (0, 1)  # the next start would make them anew
            assert await gone(2) == (0, 1)
            assert await gone(3) == (1, 0)  # a tenth is gone
            assert await gone(4) == (1, 1)
            monkeypatch.setattr(limits, "RENEW_LATE_S", 0.0)
            assert await gone(5) == (2, 0)  # it is late
        tasks.cancel_scope.cancel()
    store.close()


# --- documents ------------------------------------------------------------------------------------
Stop = Callable[[], None]


def fill_disk(store: Store) -> None:
    object.__setattr__(store, "_reserve", 2**60)


@pytest.mark.parametrize("how", ["cancelled", "failed"])
@pytest.mark.parametrize("stage", range(7))
async def test_a_mapping_that_is_cut_short_leaves_nothing(
    tmp_path: Path, stage: int, how: str
) -> None:
    """Stage 0 is before the first write, 1 at it, and so on; the last one is the mapping's own."""
    store = Stages(tmp_path / "state")
    memory, one = opened(store), process(1)
    await memory.write(one, [page("stays")])
    book = tmp_path / "book.md"
    book.write_text("".join(f"{line}\n" for line in lines(3 * limits.SLICE_ROWS)))
    table = await memory.opened(one)
    caught: list[BaseException] = []
    with anyio.CancelScope() as scope:
        stop: Stop = scope.cancel if how == "cancelled" else partial(fill_disk, store)
        store.at = lambda number: stop() if number == stage else None

        async def cutting(text: str) -> object:
            if stage == 0:
                stop()
            await anyio.lowlevel.checkpoint()
            return await cut(text)

        try:
            asked = mapping.MapRequest(f"/files{book}", True, "m", cutting)  # type: ignore[arg-type]
            await mapping.document(memory, table, asked)
        except SyscallError as error:
            caught.append(error)
    store.at = None
    object.__setattr__(store, "_reserve", 0)
    done = len(table.ranges) == 2  # the last write is not taken back by a cancel
    assert done == (how == "cancelled" and stage == 6)
    assert bool(caught) == (how == "failed")
    await erasing.finish(memory)
    assert await count(memory) == 1 + done * 3 * limits.SLICE_ROWS
    assert await count(memory, "spaces") == 1 + done
    assert memory.storing == set()
    assert await checked(memory) == ([], [])
    await whole(memory)
    found, _, _ = await mapping.document(
        memory, table, mapping.MapRequest(f"/files{book}", True, "m", cut)
    )
    assert found.count == 3 * limits.SLICE_ROWS
    store.close()


async def test_one_of_two_that_store_the_same_document_is_erased(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    memory = opened(store)
    book = tmp_path / "book.md"
    book.write_text("".join(f"{line}\n" for line in lines(20)))
    asked = mapping.MapRequest(f"/files{book}", True, "m", cut)
    async with anyio.create_task_group() as tasks:
        for pid in (1, 2):
            tasks.start_soon(mapping.document, memory, await memory.opened(process(pid)), asked)
    await erasing.finish(memory)
    assert await count(memory) == 20
    assert await checked(memory) == ([], [])
    store.close()


async def test_pages_of_no_process_are_listed_and_mended(tmp_path: Path) -> None:
    store = Store(tmp_path)
    memory = opened(store)
    await filled(memory, 1)
    await filled(memory, 2, 3)
    memory.tables.remove(1)  # as if its rows had been lost
    database = memory.database
    await store.write(database, [("DELETE FROM tables WHERE pid = 1", ())])
    faults, mended = await checked(memory)
    assert faults == [f"{MANY} pages belong to no process"]
    assert mended == []
    _, mended = await checked(memory, rebuild=True)
    assert "erased: pages that belong to no process" in mended
    await erasing.finish(memory)
    assert await checked(memory) == ([], [])
    assert len(await texts_of(memory, process(2))) == 3
    await whole(memory)
    store.close()


async def test_new_vectors_come_after_all_old_ones_are_gone(tmp_path: Path) -> None:
    store = Stages(tmp_path)
    memory = opened(store)
    await filled(memory, 1)
    database = memory.database

    def give(transaction: Transaction) -> None:
        transaction.write([
            ("INSERT INTO vectors SELECT id, x'00' FROM pages", ()), ("DELETE FROM todo", ()),
            ("INSERT INTO derived VALUES('vectors', 'old'), ('numbers', '1')", ()),
        ])  # fmt: skip

    await store.apply(database, give)
    with anyio.CancelScope() as scope:
        store.at = lambda number: scope.cancel() if number == 7 else None
        await checked(memory, rebuild=True)
    store.at = None
    left = await count(memory, "vectors")
    assert left
    assert await count(memory, "derived WHERE name = 'remake'") == 1
    async with anyio.create_task_group() as tasks:
        again = opened(store)
        vectors = VectorIndex(again, RecallDevice(None, Supervisor(tasks)))
        assert await Sweeper(again, vectors, Supervisor(tasks)).sweep_once()
        tasks.cancel_scope.cancel()
    assert (await count(memory, "vectors"), await count(memory, "todo")) == (0, MANY)
    assert await count(memory, "derived") == 0
    store.close()


def test_numbers_are_found_as_by_looking_at_each() -> None:
    dice = random.Random(3)
    for _ in range(200):
        table = PageTable(1, OWNER, 1)
        for _ in range(dice.randrange(1, 5)):
            if dice.random() < 0.5:
                table.append(dice.randrange(1, 6))
            else:
                table.map(dice.randrange(2, 4), dice.randrange(3), 4, writable=True, source="/x")
        for _ in range(dice.randrange(4)):
            number = dice.randrange(table.next)
            table.set_page(number, dice.choice([0, None, table.allocate_replacement()]))
        held = list(table.pages(0, table.next))
        wanted = {page for _, page in dice.choices(held, k=3)} if held else set[int]()
        assert table.find(wanted) == [(n, page) for n, page in held if page in wanted]
