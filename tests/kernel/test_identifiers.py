"""P-08: no number that identifies something is given twice, not even after a power cut."""

from pathlib import Path

import anyio
import pytest

from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.values import Profile, Send, Spawn
from llmasos.kernel.access.identity import Caller
from llmasos.kernel.process import mailboxes
from llmasos.kernel.process.mailboxes import Mailboxes
from llmasos.kernel.process.table import Process, ProcessTable
from llmasos.kernel.storage.database import Schema
from llmasos.kernel.storage.identifiers import TABLE, Identifiers
from llmasos.kernel.storage.journal import Entry, Journal
from llmasos.kernel.storage.store import Store
from tests.system.power import Power

pytestmark = pytest.mark.anyio
NUMBERS = Schema("numbers", (TABLE,))


@pytest.fixture
def power(monkeypatch: pytest.MonkeyPatch) -> Power:
    return Power(monkeypatch)


@pytest.fixture
def lives(tmp_path: Path, power: Power) -> "Lives":
    return Lives(tmp_path, power)


class Lives:
    """One state directory after another: each is what a power cut left of the one before."""

    def __init__(self, root: Path, power: Power) -> None:
        self._root, self._power = root, power
        self._number = 0
        self._state = root / "state0"

    def begin(self) -> Store:
        return Store(self._state)

    def cut(self, store: Store) -> None:
        """The power goes now; what is still queued would be lost, too."""
        self._number += 1
        self._state = self._power.cut(self._state, self._root / f"state{self._number}")
        store.close()


def numbers(store: Store, *, block: int = 10) -> Identifiers:
    return Identifiers(store, store.open("numbers.db", NUMBERS), "one", block=block)


async def test_calls_are_numbered_anew_behind_what_was_lost(lives: Lives) -> None:
    given: list[int] = []
    for _ in range(3):
        store = lives.begin()
        journal = Journal(store, lambda _: None)
        given += [await journal.append_and_wait(Entry("call")) for _ in range(50)]
        given += [journal.append(Entry("refused")) for _ in range(5)]  # told before it is written
        lives.cut(store)
    assert given == sorted(set(given))
    assert 0 not in given


async def test_messages_are_numbered_anew_behind_what_was_lost(lives: Lives) -> None:
    given: list[int] = []
    process = Process(1, 0, "ann", "app", "echo", 0.0, True, ())
    for _ in range(3):
        store = lives.begin()
        boxes = Mailboxes(store, "ann", mailboxes.load(store, "ann"))
        given += [(await boxes.send(process, Send(1, "hello"), "ann"))[0] for _ in range(20)]
        lives.cut(store)
    assert given == sorted(set(given))


async def test_pids_are_given_once_also_when_their_process_never_came(lives: Lives) -> None:
    given: list[int] = []
    caller = Caller(0, "ann", Profile.OPEN, ("u:ann",))
    for _ in range(3):
        store = lives.begin()
        processes = ProcessTable(store, "alice")
        for _ in range(3):
            spawned = await processes.spawn(caller, Spawn("echo"), "echo")
            given += [spawned.pid]
        await processes.pids.ready(2)
        given += [processes.pids.next() for _ in range(2)]  # of a fork that did not come that far
        lives.cut(store)
    assert given == sorted(set(given))


async def test_an_orderly_end_hands_back_what_was_not_used(tmp_path: Path) -> None:
    given: list[int] = []
    for _ in range(3):
        store = Store(tmp_path)
        one = numbers(store)
        await one.ready(2)
        given += [one.next(), one.next()]
        store.close()
    assert given == [1, 2, 3, 4, 5, 6]


async def test_blocks_follow_one_another_without_waiting(lives: Lives) -> None:
    store = lives.begin()
    one = numbers(store, block=8)
    given: list[int] = []
    while len(given) < 100:
        await one.ready()
        given.append(one.next())
    assert given == list(range(1, 101))
    lives.cut(store)
    store = lives.begin()
    again = numbers(store)
    await again.ready()
    assert 100 < again.next() <= 100 + 2 * 8
    store.close()


async def test_many_may_wait_for_numbers_at_once(lives: Lives) -> None:
    store = lives.begin()
    one = numbers(store, block=4)
    given: list[int] = []

    async def take(count: int) -> None:
        await one.ready(count)
        given.extend(one.next() for _ in range(count))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for count in range(1, 20):
                tasks.start_soon(take, count)
    assert sorted(given) == list(range(1, sum(range(1, 20)) + 1))
    store.close()


async def test_without_a_reservation_no_number_is_given(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one = numbers(store)
    (tmp_path / "numbers.db").unlink()
    assert one.next() == 0
    with pytest.raises(SyscallError) as caught:
        await one.ready()
    assert caught.value.errno is Errno.EIO
    store.close()
