"""Threads for blocking work: nobody can fill them, and nobody who asks once waits for a crowd."""

import threading
from collections import Counter

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from llmasos.kernel.storage.threads import FairThreads

pytestmark = pytest.mark.anyio


async def test_one_user_cannot_fill_the_threads() -> None:
    turns, gate = FairThreads(2, 4), threading.Event()
    inside: Counter[str] = Counter()
    entered = threading.Semaphore(0)

    def hold(user: str) -> None:
        inside[user] += 1
        entered.release()
        assert gate.wait(30)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(turns.run, "greedy", hold, "greedy")
            for _ in range(2):
                assert await anyio.to_thread.run_sync(entered.acquire)
            assert await turns.run("other", lambda: 7) == 7
            assert inside == {"greedy": 2}
            gate.set()
    assert inside == {"greedy": 50}


async def test_who_asks_once_comes_after_one_of_each_user_and_not_after_all() -> None:
    """With one thread for all, the second in line is whoever asked second, not a crowd."""
    turns, gate, order = FairThreads(1, 1), threading.Event(), list[str]()
    entered = threading.Event()

    def first() -> None:
        entered.set()
        assert gate.wait(30)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(turns.run, "greedy", first)
            assert await anyio.to_thread.run_sync(entered.wait, 30)
            for _ in range(20):
                tasks.start_soon(turns.run, "greedy", order.append, "greedy")
            tasks.start_soon(turns.run, "other", order.append, "other")
            await anyio.lowlevel.checkpoint()
            gate.set()
    assert order.index("other") <= 1
    assert len(order) == 21


async def test_what_is_cancelled_or_fails_leaves_its_place() -> None:
    turns = FairThreads(1, 1)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await turns.run("one", lambda: None)
    with pytest.raises(ZeroDivisionError):
        await turns.run("one", lambda: 1 // 0)
    with anyio.fail_after(30):
        assert await turns.run("one", lambda: 1) == 1
