"""An owner is opened at its first use, closed when it is idle, and broken alone."""

import errno
import os
import resource
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

import anyio
import pytest

from llmasos.drivers.recall import driver
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.values import Recv, Role, Send
from llmasos.kernel.memory.forgetting import forget
from llmasos.kernel.memory.memory import Lag
from llmasos.kernel.memory.recall_device import RecallDevice
from llmasos.kernel.memory.rows import NewPage
from llmasos.kernel.owners.owner import Owner, OwnerContext
from llmasos.kernel.owners.owners import Owners
from llmasos.kernel.process.table import Process
from llmasos.kernel.storage import store as store_module
from llmasos.kernel.storage.database import Database, Schema
from llmasos.kernel.storage.store import Store
from llmasos.kernel.supervisor import Supervisor

pytestmark = pytest.mark.anyio
DEADLINE_S = 30.0


def process(pid: int, owner: str) -> Process:
    return Process(pid, 0, owner, "app", "echo", 0.0, True, ())


def page(text: str) -> NewPage:
    return NewPage(text, len(text.split()), Role.USER, "ann")


class Closings:
    """Waits for owners to be closed."""

    def __init__(self) -> None:
        self.closed: list[str] = []
        self._another = anyio.Event()

    async def close(self, owner: Owner, do: Callable[[Owner], Awaitable[bool]]) -> bool:
        done = await do(owner)
        self.closed += [owner.name] if done else []
        self._another.set()
        return done

    async def reach(self, count: int) -> None:
        with anyio.fail_after(DEADLINE_S):
            while len(self.closed) < count:
                self._another = anyio.Event()
                await self._another.wait()


@pytest.fixture
def closings(monkeypatch: pytest.MonkeyPatch) -> Closings:
    found, do = Closings(), Owner.close_if_idle

    async def close(owner: Owner) -> bool:
        return await found.close(owner, do)

    monkeypatch.setattr(Owner, "close_if_idle", close)
    return found


@asynccontextmanager
async def machine(
    path: Path, alive: set[int], limits_: Mapping[str, int] = MappingProxyType({})
) -> AsyncGenerator[Owners]:
    """The owners of one run, shut down at the end as the kernel does it."""
    store = Store(path)
    async with anyio.create_task_group() as tasks:
        jobs = Supervisor(tasks)
        owners = Owners(OwnerContext(
            store, RecallDevice(None, jobs), jobs, lambda: alive,
            lambda name: limits_.get(name, 0),
        ))  # fmt: skip
        try:
            yield owners
            await owners.finish()
        finally:
            tasks.cancel_scope.cancel()
    store.close()


async def written(owners: Owners, pid: int, name: str, text: str) -> None:
    async with owners.use(name) as owner:
        await owner.memory.write(process(pid, name), [page(text)])


async def texts(owners: Owners, pid: int, name: str) -> list[str]:
    async with owners.use(name) as owner:
        table = await owner.memory.opened(process(pid, name))
        numbers = [number for number, _ in table.pages(0, table.next)]
        return [one.text for one in (await owner.memory.stored(table, numbers)).values()]


def descriptors(path: Path) -> int:
    """How many files below a directory this process has open."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    found = [str(link.readlink()) for link in links if link.exists()]
    return sum(one.startswith(str(path)) for one in found)


async def test_a_start_opens_no_owner_and_a_use_opens_one(tmp_path: Path) -> None:
    async with machine(tmp_path, {1, 2, 3}) as owners:
        for pid, name in enumerate(("ann", "bob", "cid"), 1):
            await written(owners, pid, name, f"of {name}")
    async with machine(tmp_path, {1, 2, 3}) as owners:
        assert owners.opened() == []
        assert await texts(owners, 2, "bob") == ["of bob"]
        assert [owner.name for owner in owners.opened()] == ["bob"]
        assert descriptors(tmp_path / "owners" / "ann") == 0


async def test_a_closed_owner_has_no_descriptor_and_is_opened_again_with_everything(
    tmp_path: Path,
) -> None:
    async with machine(tmp_path, {1}) as owners:
        await written(owners, 1, "ann", "first")
        async with owners.use("ann") as owner:
            await owner.mail.send(process(1, "ann"), Send(1, "a letter"), "ann")
        assert 0 < descriptors(tmp_path / "owners") <= limits.OWNER_DESCRIPTORS
        assert await owner.close_if_idle()
        assert descriptors(tmp_path / "owners") == 0
        assert owners.messages() == 1
        assert owners.lag().waiting == 1
        with pytest.raises(RuntimeError, match="not open"):
            _ = owner.memory
        await written(owners, 1, "ann", "second")
        assert await texts(owners, 1, "ann") == ["first", "second"]
        async with owners.use("ann") as owner:
            mail = await owner.mail.receive(process(1, "ann"), Recv(1, timeout_s=1), 7)
        assert mail.body == "a letter"


async def test_numbers_of_messages_are_given_once_also_after_a_close(tmp_path: Path) -> None:
    async with machine(tmp_path, {1}) as owners:
        given: list[int] = []
        for _ in range(3):
            async with owners.use("ann") as owner:
                number, _ = await owner.mail.send(process(1, "ann"), Send(1, "x"), "ann")
                await owner.mail.receive(process(1, "ann"), Recv(1, timeout_s=1), 7)
                await owner.mail.receive(process(1, "ann"), Recv(1, done=number, take=False), 7)
            given.append(number)
            assert await closed(owner)
        assert given == sorted(set(given))


async def closed(owner: Owner) -> bool:
    """Close an owner as soon as its acknowledged mail is off the disk."""
    if owner.mailboxes is not None:
        owner.mailboxes.erase_acknowledged()
    return await owner.close_if_idle()


async def test_an_owner_in_use_stays_open(tmp_path: Path) -> None:
    async with machine(tmp_path, {1}) as owners:
        async with owners.use("ann") as owner:
            assert not await owner.close_if_idle()
            assert owner.is_open
        assert await owner.close_if_idle()


async def test_an_owner_with_mail_that_is_delivered_stays_open(tmp_path: Path) -> None:
    async with machine(tmp_path, {1}) as owners:
        async with owners.use("ann") as owner:
            await owner.mail.send(process(1, "ann"), Send(1, "x"), "ann")
            await owner.mail.receive(process(1, "ann"), Recv(1, timeout_s=1), 7)
        assert not await owner.close_if_idle()
        owner.mail.requeue(7)
        assert await closed(owner)


async def test_uses_while_it_is_opened_and_closed_find_it_whole(tmp_path: Path) -> None:
    async with machine(tmp_path, {1}) as owners:
        await written(owners, 1, "ann", "0")

        async def close() -> None:
            await owners.get("ann").close_if_idle()

        for round_ in range(20):
            async with anyio.create_task_group() as several:
                several.start_soon(close)
                for _ in range(3):
                    several.start_soon(texts, owners, 1, "ann")
                several.start_soon(written, owners, 1, "ann", str(round_ + 1))
                several.start_soon(close)
        assert len(await texts(owners, 1, "ann")) == 21


async def test_an_idle_owner_is_closed_after_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closings: Closings
) -> None:
    monkeypatch.setattr(limits, "OWNER_IDLE_S", 0.01)
    async with machine(tmp_path, {1}) as owners:
        await written(owners, 1, "ann", "x")
        await closings.reach(1)
        assert owners.opened() == []


async def test_the_least_recently_used_owners_are_closed_when_many_are_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closings: Closings
) -> None:
    monkeypatch.setattr(limits, "OWNERS_OPEN", 2)
    names = ["ann", "bob", "cid", "dan"]
    async with machine(tmp_path, {1, 2, 3, 4}) as owners:
        for pid, name in enumerate(names, 1):
            await written(owners, pid, name, name)
        await closings.reach(2)
        assert closings.closed == ["ann", "bob"]
        assert [owner.name for owner in owners.opened()] == ["cid", "dan"]
        for pid, name in enumerate(names, 1):
            assert await texts(owners, pid, name) == [name]


async def test_a_damaged_database_disables_its_owners_pages_only(tmp_path: Path) -> None:
    async with machine(tmp_path, {1, 2}) as owners:
        await written(owners, 1, "ann", "of ann")
        await written(owners, 2, "bob", "of bob")
        async with owners.use("ann") as owner:
            await owner.mail.send(process(1, "ann"), Send(1, "a letter"), "ann")
    file = tmp_path / "owners" / "ann" / "pages.db"
    file.write_bytes(file.read_bytes()[:100] + b"\xff" * 8192)
    async with machine(tmp_path, {1, 2}) as owners:
        assert await texts(owners, 2, "bob") == ["of bob"]
        for _ in range(2):  # the second time it is not opened again
            async with owners.use("ann") as owner:
                with pytest.raises(SyscallError, match=r"pages\.db is damaged") as caught:
                    _ = owner.memory
                assert caught.value.errno is Errno.EIO
                mail = await owner.mail.receive(process(1, "ann"), Recv(1, timeout_s=1), 7)
                assert mail.body == "a letter"
                owner.mail.requeue(7)
            await closed(owner)
        assert [one.file for one in owners.damages()] == ["owners/ann/pages.db"]
    file.unlink()
    for end in ("-wal", "-shm"):
        file.with_name(file.name + end).unlink(missing_ok=True)


async def test_what_a_crash_left_is_erased_at_the_first_use(tmp_path: Path) -> None:
    async with machine(tmp_path, {1, 2}) as owners:
        await written(owners, 1, "ann", "stays")
        await written(owners, 2, "ann", "its process was lost")
    async with machine(tmp_path, {1}) as owners:
        async with owners.use("ann") as owner:
            assert owner.memory.tables.get(2) is None
            await owner.sweeper.sweep_now()
            assert await owner.memory.read("SELECT text FROM pages") == [("stays",)]
        assert await texts(owners, 1, "ann") == ["stays"]


async def test_only_owners_with_unfinished_work_are_opened_after_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RECALL_BOOT_S", 0.0)
    async with machine(tmp_path, {1, 2}) as owners:
        await written(owners, 1, "ann", "x")
        await written(owners, 2, "bob", "x")
    async with machine(tmp_path, {1, 2}) as owners:
        await owners.resume()
        assert owners.opened() == []
        async with owners.use("bob") as owner:
            sql = "INSERT INTO derived VALUES('dirty', '')"
            await owner.memory.store.write(owner.memory.database, [(sql, ())])
    async with machine(tmp_path, {1, 2}) as owners:
        await owners.resume()
        assert [owner.name for owner in owners.opened()] == ["bob"]


async def test_after_a_start_the_data_of_closed_owners_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RECALL_BOOT_S", 0.0)
    async with machine(tmp_path, {1, 2, 3}) as owners:
        for pid, name in enumerate(("ann", "bob", "cid"), 1):
            await written(owners, pid, name, f"of {name}")
        async with owners.use("bob") as owner:
            await owner.mail.send(process(2, "bob"), Send(2, "a letter"), "bob")
        assert (owners.lag().waiting, owners.messages(), owners.uncounted) == (3, 1, 0)
    file = tmp_path / "owners" / "cid" / "pages.db"
    file.write_bytes(file.read_bytes()[:100] + b"\xff" * 8192)
    async with machine(tmp_path, {1, 2, 3}) as owners:
        assert (owners.lag().waiting, owners.messages(), owners.uncounted) == (0, 0, 3)
        await owners.resume()
        assert {owner.name for owner in owners.opened()} == {"bob", "cid"}
        assert (owners.lag().waiting, owners.messages(), owners.uncounted) == (2, 1, 1)


@contextmanager
def few_descriptors(free: int) -> Generator[None]:
    """This process can open so many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + free, hard))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(free):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


@pytest.mark.parametrize("free", [0, 1, 3, 4, 5, 6])
async def test_idle_owners_are_closed_when_no_descriptor_is_free(
    tmp_path: Path, closings: Closings, free: int
) -> None:
    async with machine(tmp_path, {1, 2, 3, 4}) as owners:
        for pid, name in enumerate(("ann", "bob", "cid", "dan"), 1):
            await written(owners, pid, name, name)
        assert await closed(owners.get("dan"))
        async with owners.use("cid"):
            with few_descriptors(free):
                assert await texts(owners, 4, "dan") == ["dan"]
        assert closings.closed == ["dan", "ann", "bob"]
        assert owners.damages() == []
        assert await texts(owners, 1, "ann") == ["ann"]


@pytest.mark.parametrize("free", [0, 1, 3, 4, 5, 6])
async def test_without_an_idle_owner_the_use_fails_and_nothing_is_disabled(
    tmp_path: Path, free: int
) -> None:
    async with machine(tmp_path, {1}) as owners:
        await written(owners, 1, "ann", "x")
        assert await closed(owners.get("ann"))
        before = len(os.listdir("/proc/self/fd"))
        with few_descriptors(free), pytest.raises(SyscallError) as caught:
            await texts(owners, 1, "ann")
        assert caught.value.errno is Errno.EAGAIN
        assert len(os.listdir("/proc/self/fd")) == before
        assert owners.damages() == []
        assert await texts(owners, 1, "ann") == ["x"]


@pytest.mark.parametrize("file", ["pages.db", "mail.db"])
@pytest.mark.parametrize("failure", [errno.EMFILE, errno.ENOSPC, errno.EROFS])
async def test_what_may_pass_is_an_error_of_that_use_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, failure: int
) -> None:
    """No free descriptor, a full disk, a disk that is read-only now."""
    async with machine(tmp_path, {1}) as owners:
        await written(owners, 1, "ann", "x")
        async with owners.use("ann") as owner:
            await owner.mail.send(process(1, "ann"), Send(1, "a letter"), "ann")
        assert await owner.close_if_idle()

        def database(path: Path, schema: Schema, limit_bytes: int) -> Database:
            if path.name == file:
                raise OSError(failure, os.strerror(failure))
            return Database(path, schema, limit_bytes)

        with monkeypatch.context() as patch:
            patch.setattr(store_module, "Database", database)
            with pytest.raises(SyscallError) as caught:
                await texts(owners, 1, "ann")
            assert caught.value.errno in (Errno.EAGAIN, Errno.ENOSPC, Errno.EROFS)
            assert caught.value.hint
            assert owner.uses == 0
        assert owners.damages() == []
        assert await texts(owners, 1, "ann") == ["x"]
        assert owners.messages() == 1


@pytest.mark.parametrize("file", ["pages.db", "mail.db"])
async def test_an_owner_that_cannot_be_closed_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    async with machine(tmp_path, {1}) as owners:
        await written(owners, 1, "ann", "x")
        async with owners.use("ann") as owner:
            await owner.mail.send(process(1, "ann"), Send(1, "a letter"), "ann")
        retire = Store.retire

        async def failing(store: Store, name: str) -> None:
            if name.endswith(file):
                raise SyscallError(Errno.EIO, "the flush failed")
            await retire(store, name)

        with monkeypatch.context() as patch:
            patch.setattr(Store, "retire", failing)
            await owner.close_if_idle()
        assert await texts(owners, 1, "ann") == ["x"]
        async with owners.use("ann") as owner:
            mail = await owner.mail.receive(process(1, "ann"), Recv(1, timeout_s=1), 7)
        assert mail.body == "a letter"
        owner.mail.requeue(7)
        assert await closed(owner)


async def test_one_owner_cannot_fill_the_disk_of_all(tmp_path: Path) -> None:
    """ENOSPC from the limit on, and again after a start; what is removed makes room."""
    text, most, count = "x" * 100_000, 1_000_000, 0
    for _ in range(2):
        async with machine(tmp_path, {1, 2}, {"ann": most}) as owners:
            with pytest.raises(SyscallError, match=r"pages.db takes 1.\d MB; 1.0 MB") as error:
                while count < 10:
                    await written(owners, 1, "ann", text)
                    count += 1
            assert error.value.errno is Errno.ENOSPC
            assert len(await texts(owners, 1, "ann")) == count > 3
            for _ in range(10):
                await written(owners, 2, "bob", text)
    async with machine(tmp_path, {1, 2}, {"ann": most}) as owners:
        async with owners.use("ann") as owner:
            table = await owner.memory.opened(process(1, "ann"))
            numbers = [number for number, _ in table.pages(0, 3)]
            await forget(owner.memory, owner.vectors, table, numbers, lambda pages, pids: None)
        await written(owners, 1, "ann", text)


async def test_the_pages_of_a_closed_owner_that_have_no_vector_wait_for_a_search(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    jobs = Supervisor(anyio.create_task_group())
    device = RecallDevice(driver.recall({"embedder": "none"}, tmp_path / "log", tmp_path), jobs)
    owner = Owner("ann", OwnerContext(store, device, jobs, set))
    assert owner.indexing() == ("idle", "the pages are not counted yet")
    owner.note_counts(Lag(3, 1.0), 0)
    assert owner.indexing() == ("idle", "no search yet")
    owner.note_counts(Lag(), 0)
    assert owner.indexing() == ("current", "")
    store.close()
