"""Reference cycles are freed whether the machine is idle or not."""

import gc
import weakref
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import pairwise

import anyio
import pytest

from llmasos.kernel import garbage
from llmasos.kernel.abi import limits

pytestmark = pytest.mark.anyio
DEADLINE_S = 60.0  # a guard against hangs


@dataclass
class Replies:
    """The load of a machine."""

    pending_replies: int


class Node:
    """An object in a cycle of many."""

    next: "Node"


def cycle(count: int) -> Node:
    nodes = [Node() for _ in range(count)]
    for one, other in pairwise([*nodes, nodes[0]]):
        one.next = other
    return nodes[0]


@pytest.fixture(params=[0, 1], ids=["idle", "busy"])
async def collector(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """The collector of a machine that has no reply pending, or always has one."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(garbage.collect_when_idle, Replies(request.param))
        await anyio.wait_all_tasks_blocked()
        yield
        tasks.cancel_scope.cancel()
    gc.unfreeze()


@pytest.mark.usefixtures("collector")
async def test_cycles_of_new_objects_are_freed_by_what_is_allocated() -> None:
    gc.collect()
    first = cycle(1_000)
    freed = weakref.ref(first)
    gc.collect(1)  # they are old now, and not frozen
    del first
    kept = [[number] for number in range(400_000)]
    assert freed() is None
    assert kept


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GARBAGE_S", 0.01)


@pytest.mark.usefixtures("often", "collector")
async def test_cycles_of_frozen_objects_are_freed_when_memory_has_grown() -> None:
    first, freed = cycle(1_000), anyio.Event()
    weakref.finalize(first, freed.set)
    gc.collect()  # they are frozen now
    kept = [[float(number)] for number in range(500_000)]
    del first
    with anyio.fail_after(DEADLINE_S):
        await freed.wait()
    assert kept
