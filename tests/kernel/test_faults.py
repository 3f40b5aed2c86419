"""Hits and faults of a call, and the alarm of a process that computes the same again and again."""

from dataclasses import replace

import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.values import Role
from llmasos.kernel.driver import Cut, Prompt
from llmasos.kernel.memory.faults import Counts, Faults, account
from llmasos.kernel.memory.layout import Stored
from llmasos.kernel.memory.paging import PagingPlan
from llmasos.kernel.memory.recall import RecallHit
from llmasos.kernel.memory.table import Piece
from llmasos.kernel.recall.ranking import Ranked

WINDOW = 100


def plan(tokens: int = 10) -> PagingPlan:
    """Two pages that stayed and one that came back, in this order, of so many tokens each."""
    page = Stored(7, 7, 0, "user", "ann", 0.0, "", "", tokens, "it came back", [])
    back = RecallHit(page, Ranked(7, 5.0, tokens))
    window = [Piece(0, Role.USER, [0]), Piece(1, Role.ASSISTANT, [1])]
    sizes: dict[int, int] = {0: tokens, 1: tokens, 7: tokens}
    return PagingPlan(Prompt([1] * 3 * tokens, []), [], 1, window, recalled=[back], sizes=sizes)


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


def test_the_alarm_is_on_above_the_limit_and_not_at_it() -> None:
    faults = Faults()
    half, window = plan(), 60  # half a window a call, which adds up without rounding
    most = int(limits.THRASH_WINDOWS / 0.5)
    assert most < limits.THRASH_CALLS
    alarms = [faults.charge(1, half, 0, window)[1] for _ in range(most + 1)]
    assert [bool(alarm) for alarm in alarms] == [False] * most + [True]
    assert f"last {most + 1} calls computed 3.5 windows of 60 tokens" in alarms[-1]
    for _ in range(limits.THRASH_CALLS - most - 1):  # the calls before are all still counted
        assert faults.charge(1, half, 30, window)[1]
    assert faults.charge(1, half, 30, window)[1] == ""  # the first is not


def test_a_process_that_is_gone_leaves_no_alarm_to_the_next_of_its_number() -> None:
    faults = Faults()
    for _ in range(limits.THRASH_CALLS):
        faults.charge(1, plan(), 0, 30)
    assert faults.of(1).thrashes > 0
    thrashes = faults.total.thrashes
    faults.forget(1)
    assert faults.charge(1, plan(), 0, 30)[1] == ""
    assert (faults.of(1).thrashes, faults.of(1).hard) == (0, 3)
    assert faults.total.thrashes == thrashes  # the machine's are kept


def test_calls_are_added_up_for_the_machine_and_for_each_process() -> None:
    faults = Faults()
    for pid, cached in ((1, 30), (1, 20), (2, 0)):
        faults.charge(pid, replace(plan(), evicted=[3, 4]), cached, 1000)
    assert faults.of(1) == Counts(hits=4, soft=1, hard=1, evicted=4)
    assert faults.of(2) == Counts(hits=0, soft=0, hard=3, evicted=2)
    assert faults.total == Counts(hits=4, soft=1, hard=4, evicted=6)


@pytest.mark.parametrize(
    ("cached", "hard"), [(33, set[int]()), (22, {7}), (20, {1, 7}), (11, {1, 7})]
)
def test_what_a_template_adds_is_spread_and_new_pages_are_neither(
    cached: int, hard: set[int]
) -> None:
    fresh = Cut("a new page", 10)
    prompt = Prompt([1] * 44, [])  # four pages of ten, and one token of the template with each
    done = account(replace(plan(), prompt=prompt, cuts=[[fresh]], kept=[[0]]), cached)
    assert done.hits + done.soft + done.hard == 3
    assert (set(done.hard_pages), done.computed) == (hard, 10 * len(hard))
