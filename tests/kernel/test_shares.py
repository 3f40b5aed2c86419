"""Shares of each user: nobody can fill a table of the machine, or push out what is another's."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.table import TABLE
from llmasos.kernel.abi.values import Send
from llmasos.kernel.access.decisions import Policy
from llmasos.kernel.driver import Cause, ContextSaved, Death
from llmasos.kernel.process import mailboxes
from llmasos.kernel.process.mailboxes import Mailboxes
from llmasos.kernel.process.table import Process, ProcessTable
from llmasos.kernel.scheduling.contexts import ContextPlan, Contexts
from llmasos.kernel.scheduling.quarantine import Marks, Quarantine, SuspectCall
from llmasos.kernel.storage.store import Store
from llmasos.kernel.watch import FollowLimits

pytestmark = pytest.mark.anyio
OWNER = "olga"


def process(pid: int, owner: str) -> Process:
    return Process(pid, 0, owner, "app", "echo", 0.0, True, ())


def full(table: ProcessTable, owner: str, most: int) -> int:
    """How many entries a user gets, and EAGAIN says so."""
    with ExitStack() as held:
        for count in range(most + 1):
            try:
                held.enter_context(table.reserve(1, owner))
            except SyscallError as error:
                assert error.errno is Errno.EAGAIN
                return count
    return most + 1


async def test_no_user_takes_all_processes_and_the_owner_keeps_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PROCESSES", 20)
    monkeypatch.setattr(limits, "USER_PROCESSES", 8)
    monkeypatch.setattr(limits, "OWNER_PROCESSES", 5)
    store = Store(tmp_path)
    table = ProcessTable(store, OWNER)
    assert full(table, "ann", 30) == 8
    with table.reserve(8, "ann"):
        assert full(table, "bob", 30) == 7  # 20, less ann's 8, less the owner's 5
        with pytest.raises(SyscallError, match="ann has 8, 8 are allowed"), table.reserve(1, "ann"):
            pass
        with table.reserve(7, "bob"):
            match = "0 entries of the process table are free"
            with pytest.raises(SyscallError, match=match), table.reserve(1, "eve"):
                pass
            assert full(table, OWNER, 30) == 5
    assert full(table, OWNER, 30) == 20
    with table.reserve(18, OWNER):
        assert full(table, "ann", 30) == 2
    store.close()


async def test_entries_are_counted_also_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "USER_PROCESSES", 3)
    store = Store(tmp_path)
    table = ProcessTable(store, OWNER)
    await table.add([process(1, "ann"), process(2, "ann")])
    for each in (table, ProcessTable(store, OWNER)):
        assert full(each, "ann", 5) == 1
    await table.exit(table.all()[0], 0, "TERM")
    assert full(table, "ann", 5) == 1  # an ended one still has its entry
    await table.reap(table.all()[0])
    for each in (table, ProcessTable(store, OWNER)):
        assert full(each, "ann", 5) == 2
    store.close()


async def test_ended_processes_are_not_counted_as_alive(tmp_path: Path) -> None:
    store = Store(tmp_path)
    table = ProcessTable(store, OWNER)
    await table.add([process(pid, "ann") for pid in range(1, 5)])
    await table.exit(table.all()[0], 0, "TERM")
    await table.exit(table.all()[1], 0, "TERM")
    for each in (table, ProcessTable(store, OWNER)):
        assert each.alive == 2
    await table.reap(table.all()[0])
    assert table.alive == 2
    table.all()[-1].begin(7)
    assert [one.pid for one in table.busy()] == [4]
    store.close()


async def test_one_users_ended_processes_do_not_remove_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "USER_ENDED", 3)
    store = Store(tmp_path)
    table = ProcessTable(store, OWNER)
    await table.add([process(pid, "bob" if pid == 1 else "ann") for pid in range(1, 8)])
    for one in table.all():
        await table.exit(one, 0, "TERM")
    assert [one.pid for one in table.surplus("ann")] == [2, 3, 4]
    assert table.surplus("bob") == table.surplus(OWNER) == []
    store.close()


async def test_short_messages_fill_only_their_owners_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "OWNER_MAIL", 3)
    store = Store(tmp_path)
    boxes, bobs = Mailboxes(store, "ann", None), Mailboxes(store, "bob", None)
    mine, other = process(1, "ann"), process(2, "ann")
    for to in (mine, mine, other):
        await boxes.send(to, Send(to.pid, ""), "ann")
    with pytest.raises(SyscallError, match="3 messages wait for processes of ann") as caught:
        await boxes.send(other, Send(2, ""), "ann")
    assert caught.value.errno is Errno.EAGAIN
    await bobs.send(process(3, "bob"), Send(3, ""), "bob")
    await boxes.drop(mine)
    await boxes.send(other, Send(2, ""), "ann")
    store.close()
    store = Store(tmp_path)
    waiting = [len(mailboxes.load(store, owner).waiting) for owner in ("ann", "bob")]
    assert waiting == [2, 1]
    store.close()


def marked(marks: Marks, owner: str, *calls: bytes) -> None:
    marks.died([SuspectCall(call, "m", owner) for call in calls], [], Death("x", Cause.CRASH), 1.0)


def test_one_users_suspects_do_not_push_out_anothers() -> None:
    marks = Marks(most=10)
    marked(marks, "bob", b"poison", b"of bob")
    for n in range(20):
        marked(marks, "ann", b"a%d" % n, b"b%d" % n)
    assert {b"poison", b"of bob"} <= set(marks.by_call)
    assert len(marks.by_call) == 10
    assert b"b19" in marks.by_call


async def test_suspects_on_disk_are_shared_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MARKS", 4)
    store = Store(tmp_path)
    suspects = Quarantine(store)
    death = Death("x", Cause.CRASH)
    suspects.died(
        [SuspectCall(b"1" * 16, "m", "bob"), SuspectCall(b"2" * 16, "m", "bob")], [], death
    )
    for n in range(6):
        calls = [SuspectCall(bytes([n, m]) * 8, "m", "ann") for m in range(2)]
        suspects.died(calls, [], death)
    store.close()
    sql = "SELECT owner, count(*) FROM marks GROUP BY owner ORDER BY owner"
    assert Store(tmp_path).peek("suspects.db", sql) == [("ann", 2), ("bob", 2)]


def test_one_users_questions_leave_anothers_decisions_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "USER_DECISIONS", 10)
    monkeypatch.setattr(limits, "DECISIONS", 25)
    policy = Policy(TABLE, OWNER, tmp_path / "policy.csv")
    bob = ("u:bob", "r:careful")
    first = policy.check(bob, "read_mem", "/proc/own/1/mem")
    for pid in range(1000):
        for user in ("u:ann", "u:eve"):
            policy.check((user, "r:careful"), "read_mem", f"/proc/{pid}/mem")
    assert policy.check(bob, "read_mem", "/proc/own/1/mem") is first
    held = [len(mine) for mine in policy._cache.values()]  # pyright: ignore[reportPrivateUsage]
    assert max(held) <= 10
    assert sum(held) <= 25
    for n in range(100):
        policy.check((f"u:user{n}", "r:careful"), "ps", "/proc")
    held = [len(mine) for mine in policy._cache.values()]  # pyright: ignore[reportPrivateUsage]
    assert sum(held) <= 25


def test_one_user_follows_so_much_and_the_others_too() -> None:
    following = FollowLimits()
    with ExitStack() as held:
        for _ in range(limits.USER_FOLLOWERS):
            held.enter_context(following.call("ann"))
        with pytest.raises(SyscallError, match="calls of ann follow") as caught:
            held.enter_context(following.call("ann"))
        assert caught.value.errno is Errno.EAGAIN
        held.enter_context(following.call("bob"))
    with following.call("ann"):
        pass


def test_one_users_contexts_do_not_drop_anothers() -> None:
    contexts = Contexts(kept_bytes=100)
    contexts.share(1, "bob")
    contexts.report(ContextSaved(1, 10))
    for number in range(2, 50):
        contexts.share(number, "ann")
        contexts.report(ContextSaved(number, 10))
        for drop in ContextPlan(contexts).drops():
            contexts.drop(drop.number)
    assert 1 in contexts.saved
    assert (contexts.bytes, len(contexts.saved)) == (100, 10)
