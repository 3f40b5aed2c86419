"""Hits and faults of a call, and the alarm of a process that computes the same again and again."""

import pytest

from llmasos.kernel import limits
from llmasos.kernel.driver import Prompt
from llmasos.kernel.memory.faults import Faults, account
from llmasos.kernel.memory.fuse import Ranked
from llmasos.kernel.memory.layout import Stored
from llmasos.kernel.memory.paging import Plan
from llmasos.kernel.memory.recall import Hit
from llmasos.kernel.memory.table import Piece
from llmasos.kernel.values import Role

WINDOW = 100


def plan(tokens: int = 10) -> Plan:
    """Two pages that stayed and one that came back, in this order, of so many tokens each."""
    page = Stored(7, 7, 0, "user", "ann", 0.0, "", "", tokens, "it came back", [])
    back = Hit(page, Ranked(7, 5.0, tokens))
    window = [Piece(0, Role.USER, [0]), Piece(1, Role.ASSISTANT, [1])]
    sizes: dict[int, int] = {0: tokens, 1: tokens, 7: tokens}
    return Plan(Prompt([1] * 3 * tokens, []), [], 1, window, back=[back], sizes=sizes)


@pytest.mark.parametrize(
    ("cached", "hits", "soft", "hard"),
    [(30, 2, 1, set[int]()), (20, 2, 0, {7}), (10, 1, 0, {1, 7}), (0, 0, 0, {0, 1, 7})],
)
def test_what_the_engine_still_had_is_no_fault(
    cached: int, hits: int, soft: int, hard: set[int]
) -> None:
    done = account(plan(), cached)
    assert (done.hits, done.soft, set(done.hard_pages)) == (hits, soft, hard)
    assert (done.hard, done.computed) == (len(hard), 10 * len(hard))


def test_a_process_thrashes_when_more_windows_are_computed_again_than_is_good() -> None:
    faults = Faults()
    alarms: list[str] = []
    whole = plan(WINDOW // 3)  # about a window, none of it in the engine
    for _ in range(limits.THRASH_CALLS):
        alarms.append(faults.charge(1, whole, 0, WINDOW)[1])
    first = next(at for at, alarm in enumerate(alarms) if alarm)
    assert first * 0.99 <= limits.THRASH_WINDOWS < (first + 1) * 0.99
    assert all(alarms[first:])
    assert "process 1 thrashes" in alarms[-1]
    assert faults.of(1).thrashes == faults.total.thrashes == len(alarms) - first
    assert faults.charge(2, whole, 0, WINDOW)[1] == ""  # another process has its own account
    for _ in range(limits.THRASH_CALLS):
        alarms.append(faults.charge(1, whole, WINDOW, WINDOW)[1])
    assert alarms[-1] == ""  # it is over when nothing is computed again any more
