"""One page that an embedder refuses keeps no other page from having its vector."""

import struct
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import anyio
import pytest

from llmasos.drivers.recall import driver
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.memory import loading
from llmasos.kernel.memory.fsck import fsck
from llmasos.kernel.memory.indexing import BatchSize, embedded
from llmasos.kernel.memory.memory import Lag, Memory, total_lag
from llmasos.kernel.memory.recall_device import RecallDevice
from llmasos.kernel.memory.refusing import refused
from llmasos.kernel.memory.rows import NewPage
from llmasos.kernel.memory.vector_index import VectorIndex
from llmasos.kernel.process.table import Process
from llmasos.kernel.storage.database import Row
from llmasos.kernel.storage.store import Store
from llmasos.kernel.supervisor import Supervisor
from tests.kernel.opened_memory import OWNER

pytestmark = pytest.mark.anyio
UNIT = struct.pack("<4f", 1, 0, 0, 0)
DEADLINE_S = 60.0


def test_the_lag_of_several_owners_is_since_the_oldest_page_that_waits() -> None:
    lags = [Lag(0, 1.0, 2), Lag(3, 9.0), Lag(1, 5.0, 1), Lag()]
    assert total_lag(lags) == Lag(4, 5.0, 3)
    assert total_lag([]) == total_lag([Lag(0, 4.0)]) == Lag()


class Embedder:
    """Refuses texts with certain words in them; `dies` as a process does that one text ends."""

    def __init__(self, *, dies: int = 0) -> None:
        self.calls = 0
        self._dies = dies  # how often
        self.down = False

    async def __call__(self, texts: Sequence[str]) -> Sequence[bytes]:
        self.calls += 1
        if self.down:
            raise DeviceFault("the embedder is down")
        if any("poison" in text for text in texts):
            self.down = True
            raise DeviceFault("the embedder died")
        if any("bad" in text for text in texts):
            raise SyscallError(Errno.E2BIG, "the text has 9000 tokens, 2048 are allowed")
        return [struct.pack("<4f", 0, 0, 0, 0) if "nothing" in t else UNIT for t in texts]


async def all_of(embed: Embedder, texts: dict[int, str]) -> tuple[set[int], dict[int, str]]:
    """Index everything as the kernel does, with an embedder that is started again when it died."""
    pace, vectors, refused = BatchSize(), set[int](), dict[int, str]()
    while left := [page for page in texts if page not in vectors and page not in refused]:
        embed.down = False
        try:
            made = await embedded(embed, {p: texts[p] for p in left[: pace.pages]}, pace)
        except SyscallError:
            continue
        vectors |= set(made.vectors)
        refused |= made.refused
    return vectors, refused


@pytest.mark.parametrize("word", ["bad", "poison", "nothing"])
@pytest.mark.parametrize("at", [{0}, {70}, {3, 4, 63}, set(range(100))])
async def test_only_pages_at_fault_are_refused(word: str, at: set[int]) -> None:
    texts = {page: f"{word if page in at else 'good'} {page}" for page in range(100)}
    vectors, refused = await all_of(embed := Embedder(), texts)
    assert set(refused) == at
    assert vectors == set(texts) - at
    assert embed.calls < 40 + 20 * len(at)


async def test_an_embedder_that_makes_nothing_refuses_no_page() -> None:
    async def broken(texts: Sequence[str]) -> Sequence[bytes]:
        raise DeviceFault("no model")

    async def empty(texts: Sequence[str]) -> Sequence[bytes]:
        return [bytes(16) for _ in texts]

    for embed in (broken, empty):
        pace = BatchSize()
        for count in (64, 1, 1, 1):
            with pytest.raises(DeviceFault):
                await embedded(embed, dict.fromkeys(range(count), "text"), pace)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


class CountedMemory(Memory):
    """Sets an event with each count of pages that wait."""

    news = anyio.Event()

    async def count_waiting(self) -> None:
        await super().count_waiting()
        self.news.set()

    async def until(self, wanted: Lag) -> None:
        with anyio.fail_after(DEADLINE_S):
            while self.lag != wanted:
                assert self.lag.waiting >= wanted.waiting
                self.news = anyio.Event()
                await self.news.wait()


async def test_a_refused_page_is_recorded_and_tried_again_with_another_embedder(
    store: Store, tmp_path: Path
) -> None:
    memory = CountedMemory(store, loading.load(store, OWNER))
    process = Process(1, 0, OWNER, "chat", "m", created=0.0, keep=True, bounds=())
    pages = [NewPage(f"{word} page", 2, "note", OWNER) for word in ("good", "bad", "good", "fine")]
    ids = [page for _, page in await memory.write(process, pages)]
    assert memory.lag.waiting == 4
    device = driver.recall({"embedder": "none"}, tmp_path / "log", tmp_path)
    async with anyio.create_task_group() as tasks:
        vectors = VectorIndex(memory, RecallDevice(device, Supervisor(tasks)))
        vectors.device.embedder = "first", Embedder()
        assert vectors.state() == ("idle", "no search yet")
        vectors.ensure_indexing()
        await memory.until(Lag(0, 0.0, 1))
        assert vectors.state() == ("current", "")
        held = await memory.read("SELECT id FROM vectors ORDER BY id")
        assert [row[0] for row in held] == [ids[0], ids[2], ids[3]]
        sql = "SELECT id, made_by, why FROM refused"
        why = "the text has 9000 tokens, 2048 are allowed"
        assert await memory.read(sql) == [(ids[1], "first", why)]
        assert await refused(memory) == [f"page 1 of process 1: {why}"]

        async def takes_all(texts: Sequence[str]) -> Sequence[bytes]:
            return [UNIT for _ in texts]

        await store.write(memory.database, [("DELETE FROM derived", ())])
        vectors.device.embedder = "second", takes_all
        vectors.ensure_indexing()
        await memory.until(Lag(0, 0.0, 0))
        assert len(await memory.read("SELECT id FROM vectors")) == 4
        tasks.cancel_scope.cancel()
    await device.stop()


async def test_a_failing_embedder_is_tried_again_without_new_pages(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "INDEX_RETRY_FIRST_S", 0.01)
    memory = CountedMemory(store, loading.load(store, OWNER))
    process = Process(1, 0, OWNER, "chat", "m", created=0.0, keep=True, bounds=())
    await memory.write(process, [NewPage("good page", 2, "note", OWNER)])
    device = driver.recall({"embedder": "none"}, tmp_path / "log", tmp_path)
    async with anyio.create_task_group() as tasks:
        vectors = VectorIndex(memory, RecallDevice(device, Supervisor(tasks)))
        states: list[tuple[str, str]] = []

        async def fails_first(texts: Sequence[str]) -> Sequence[bytes]:
            states.append(vectors.state())
            if len(states) < 5:
                raise DeviceFault("no model")
            return [UNIT for _ in texts]

        vectors.device.embedder = "first", fails_first
        vectors.ensure_indexing()
        await memory.until(Lag(0, 0.0, 0))
        assert states[1:5] == [("stuck", "no model")] * 4
        assert vectors.state() == ("current", "")
        tasks.cancel_scope.cancel()
    await device.stop()


class HeldMemory(CountedMemory):
    """Stops the indexing when vectors are in the database and not yet in the recall process."""

    reached: anyio.Event | None = None
    released = anyio.Event()

    async def by_id(self, ids: Sequence[int]) -> list[Row]:
        if self.reached is not None:
            self.reached.set()
            await self.released.wait()
        return await super().by_id(ids)


async def test_fsck_beside_the_indexing_finds_no_fault(store: Store, tmp_path: Path) -> None:
    memory = HeldMemory(store, loading.load(store, OWNER))
    process = Process(1, 0, OWNER, "chat", "m", created=0.0, keep=True, bounds=())
    device = driver.recall({"embedder": "none"}, tmp_path / "log", tmp_path)
    async with anyio.create_task_group() as tasks:
        vectors = VectorIndex(memory, RecallDevice(device, Supervisor(tasks)))
        vectors.device.embedder = "first", Embedder()
        await memory.write(process, [NewPage("good page", 2, "note", OWNER)])
        vectors.ensure_indexing()
        await memory.until(Lag())
        memory.reached = anyio.Event()
        await memory.write(process, [NewPage("next page", 2, "note", OWNER)])
        vectors.pages_written()
        with anyio.fail_after(DEADLINE_S):
            await memory.reached.wait()
        found = await fsck(memory, vectors, {1}, rebuild=False)
        assert (found.faults, found.chroma) == ([], "not compared: still indexing")
        memory.released.set()
        await memory.until(Lag())
        found = await fsck(memory, vectors, {1}, rebuild=False)
        assert (found.faults, found.chroma) == ([], "usable")
        # An index that is idle: its differences are faults.
        idle = VectorIndex(memory, vectors.device)
        [space] = vectors.loaded
        await store.write(memory.database, [("DELETE FROM vectors", ())])
        found = await fsck(memory, idle, {1}, rebuild=False)
        assert f"Chroma has 2 vectors of space {space}, the database 0" in found.faults
        tasks.cancel_scope.cancel()
    await device.stop()


async def test_fsck_tells_of_pages_of_a_removed_process_and_of_an_interrupted_rebuild(
    store: Store,
) -> None:
    memory = CountedMemory(store, loading.load(store, OWNER))
    process = Process(1, 0, OWNER, "chat", "m", created=0.0, keep=True, bounds=())
    await memory.write(process, [NewPage("good page", 2, "note", OWNER)])
    async with anyio.create_task_group() as tasks:
        vectors = VectorIndex(memory, RecallDevice(None, Supervisor(tasks)))
        assert list((await fsck(memory, vectors, {1}, rebuild=False)).faults) == []
        memory.rebuilding = True
        found = await fsck(memory, vectors, set(), rebuild=False)
        assert "process 1 was removed, its pages were not erased" in found.faults
        assert "the text indexes are incomplete: a rebuild was interrupted" in found.faults
