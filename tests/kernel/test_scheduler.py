"""The scheduler's decisions against a simulated device: shares, slots, cells, nobody starves."""

import random

import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.driver import Step
from llmasos.kernel.scheduling.contexts import Clear, Drop
from llmasos.kernel.scheduling.moves import Admit, Grant, Order, Park
from llmasos.kernel.scheduling.scheduler import Claim, DeviceState, decide


class Device:
    """Twenty obvious lines: what an engine does with admissions and grants."""

    def __init__(self, slots: int, width: int, cells: int = 10**9) -> None:
        self.table = DeviceState(slots, width, cells)
        self.computed: dict[int, int] = {}  # by process
        self.order: list[int] = []  # calls that hold a grant, first granted first
        self.now = 0.0

    def add(self, call: int, *, process: int = 0, nice: int = 0, prompt: int = 10) -> Claim:
        weight = limits.NICE_STEP**-nice
        claim = Claim(call, process or call, weight, prompt, prompt + 100)
        self.table.add(claim)
        return claim

    def decide(self) -> None:
        for decision in decide(self.table, self.now):
            match decision:
                case Admit(call):
                    self.table.admit(self.table.claims[call], decision)
                case Park(call, keep):
                    self.table.park(self.table.claims[call], keep=keep)
                case Grant(call, tokens):
                    claim = self.table.claims[call]
                    assert claim.slot is not None
                    self.table.grant(claim, tokens)
                    if claim.call not in self.order:
                        self.order.append(claim.call)
                case Order() | Drop() | Clear():
                    raise AssertionError(decision)  # this engine claims neither
        slots = [c.slot for c in self.table.claims.values() if c.slot is not None]
        assert len(slots) == len(set(slots)) <= self.table.slots
        held = sum(c.cells for c in self.table.claims.values() if c.slot is not None)
        assert held <= self.table.cells
        assert self.table.parked_bytes_left() >= 0

    def step(self) -> None:
        """One batch: up to `width` of those with a grant; a prompt gives as much as it may."""
        self.decide()
        claims = self.table.claims
        able = [
            c for c in self.order if c in claims and claims[c].granted > 0 and not claims[c].stopped
        ]
        for claim in (claims[call] for call in able[: self.table.width]):
            fed = min(claim.prompt, claim.granted)
            spent = fed or 1
            step = Step(claim.call, fed=fed, tokens=spent - fed)
            self.table.advance(claim, step, self.now)
            self.computed[claim.process] = self.computed.get(claim.process, 0) + spent
        self.order = [c for c in self.order if c in claims and claims[c].granted > 0]


def test_everybody_runs_when_there_is_room() -> None:
    device = Device(slots=16, width=16)
    for call in range(1, 17):
        device.add(call)
    for _ in range(100):
        device.step()
    assert set(device.computed) == set(range(1, 17))
    assert max(device.computed.values()) - min(device.computed.values()) <= 10


@pytest.mark.parametrize("nice", [1, 5, 10])
def test_shares_follow_weights_when_seats_are_short(nice: int) -> None:
    """P-03."""
    device = Device(slots=24, width=8)
    for call in range(1, 25):
        device.add(call, nice=nice if call > 12 else 0)
    for _ in range(30_000):
        device.step()
    first = sum(device.computed[p] for p in range(1, 13))
    second = sum(device.computed[p] for p in range(13, 25))
    assert first / second == pytest.approx(limits.NICE_STEP**nice, rel=0.03)
    equals = [device.computed[p] for p in range(1, 13)]
    assert sum(equals) ** 2 / (12 * sum(x * x for x in equals)) > 0.99


@pytest.mark.parametrize("apart", [0, 1, 3, 10])
def test_who_came_first_does_not_pay_for_what_nobody_else_wanted(apart: int) -> None:
    device = Device(slots=24, width=8)
    for call in range(1, 25):
        device.add(call, nice=5 * (call % 2), prompt=20)
        device.decide()
        for _ in range(apart):
            device.step()
    for _ in range(150):
        device.step()
    before = dict(device.computed)
    for _ in range(400):
        device.step()
    got = [device.computed[p] - before[p] for p in range(1, 25)]
    for equals in (got[::2], got[1::2]):
        assert sum(equals) ** 2 / (12 * sum(x * x for x in equals)) > 0.99
    share = sum(got[1::2]) / sum(got)
    assert share == pytest.approx(1 / (1 + limits.NICE_STEP**-5), rel=0.02)


def test_an_idle_process_banks_no_credit() -> None:
    device = Device(slots=2, width=1)
    device.add(1)
    for _ in range(5_000):
        device.step()
    device.add(2)
    before = device.computed[1]
    for _ in range(1_000):
        device.step()
    assert device.computed[1] - before == pytest.approx(500, abs=2 * limits.QUANTUM_TOKENS)


def test_a_process_cannot_leave_its_debt_by_ending_its_call() -> None:
    device = Device(slots=2, width=1)
    device.add(1, process=7)
    device.add(2, process=8)
    for call in range(10, 40):
        for _ in range(100):
            device.step()
        device.table.drop(1 if call == 10 else call - 1)
        device.add(call, process=7, prompt=1)
    assert device.computed[7] == pytest.approx(device.computed[8], rel=0.1)


def test_waiters_get_slots_in_order_of_virtual_time_and_nobody_starves() -> None:
    random.seed(3)
    device = Device(slots=4, width=4)
    call = 0
    waiting: dict[int, int] = {}
    for turn in range(2_000):
        if len(device.table.claims) < 12:
            call += 1
            device.add(call, process=random.randint(1, 8))
            waiting[call] = turn
        device.step()
        for claim in list(device.table.claims.values()):
            if claim.slot is not None:
                waiting.pop(claim.call, None)
                if random.random() < 0.05:
                    device.table.drop(claim.call)
        assert all(turn - since < 500 for since in waiting.values())


def test_a_call_too_large_for_the_free_cells_is_not_overtaken() -> None:
    device = Device(slots=4, width=4, cells=300)
    device.add(1, prompt=100)
    device.step()
    device.add(2, prompt=150)
    device.add(3, prompt=10)
    device.decide()
    assert device.table.claims[2].slot is None
    assert device.table.claims[3].slot is None
    device.table.drop(1)
    device.decide()
    assert device.table.claims[2].slot is not None


def test_a_stopped_call_gets_nothing_and_gives_its_slot_to_who_waits() -> None:
    device = Device(slots=1, width=1)
    claim = device.add(1)
    device.step()
    claim.stopped = True
    had = device.computed[1]
    device.step()
    assert claim.slot == 0  # nobody waits: it stays where it is
    device.add(2)
    device.step()
    assert claim.parked
    assert claim.slot is None
    assert device.table.claims[2].slot == 0
    claim.stopped = False
    device.table.drop(2)
    device.step()
    assert claim.slot == 0
    assert device.computed[1] > had


def test_contexts_of_stopped_calls_are_saved_within_the_limit_and_others_computed_again() -> None:
    device = Device(slots=4, width=4)
    device.table.parked_bytes = 500
    device.table.contexts.token_bytes, device.table.contexts.context_bytes = 4, 100
    stopped = [device.add(call) for call in range(1, 5)]
    for _ in range(4):
        device.step()
    held = [claim.computed for claim in stopped]
    assert all(held)
    for claim in stopped:
        claim.stopped = True
    waiting = [device.add(call) for call in range(5, 9)]
    device.step()
    assert all(claim.slot is not None for claim in waiting)  # nobody waits for who is stopped
    assert all(claim.parked for claim in stopped)
    kept = [claim for claim in stopped if claim.saved]
    assert 0 < len(kept) < 4
    for claim, before in zip(stopped, held, strict=True):
        assert (claim.computed, claim.prompt) == ((before, 0) if claim.saved else (0, before))
        # What is granted may be computed before the engine hears of it.
        assert not claim.saved or claim.saved == 100 + 4 * (before + claim.granted)
    assert device.table.parked_bytes_left() == 500 - sum(claim.saved for claim in kept) >= 0
    for claim in waiting:
        device.table.drop(claim.call)
    for claim in stopped:
        device.table.resume(claim)
    device.step()
    assert all(claim.slot is not None for claim in stopped)
    assert device.table.parked_bytes_left() == 500


def test_without_a_limit_every_context_is_saved() -> None:
    device = Device(slots=2, width=2)
    stopped = [device.add(call) for call in (1, 2)]
    device.step()
    for claim in stopped:
        claim.stopped = True
    for call in (3, 4):
        device.add(call)
    assert [d.keep for d in decide(device.table, 0.0) if isinstance(d, Park)] == [True, True]


def test_a_slow_reader_gets_no_further_quantum() -> None:
    device = Device(slots=2, width=2)
    claim = device.add(1)
    device.add(2)
    device.step()
    claim.slow_reader = True
    for _ in range(200):
        device.step()
    assert device.computed[1] <= 10 + 2 * limits.QUANTUM_TOKENS
    assert device.computed[2] >= 200


def test_a_process_returns_to_the_slot_that_holds_its_tokens() -> None:
    device = Device(slots=4, width=4)
    for slot in range(4):
        device.table.contexts.leave(slot, 100 + slot, "", 0)
    device.add(1, process=102)
    device.decide()
    assert device.table.claims[1].slot == 2


def test_a_free_slot_that_nobody_comes_back_to_is_taken_first_then_the_least_recent() -> None:
    device = Device(slots=4, width=4)
    for slot, process in ((2, 102), (0, 100), (1, 101)):  # 2 was used longest ago
        device.table.contexts.leave(slot, process, "", 0)
    assert device.table.free_slots() == [3, 2, 0, 1]
    for call, slot in ((1, 3), (2, 2), (3, 0), (4, 1)):
        device.add(call)
        device.decide()
        assert device.table.claims[call].slot == slot
    device.step()
    device.table.contexts.enter(3, 1, "")
    for call in (3, 1, 4, 2):
        device.table.drop(call)
    assert device.table.free_slots() == [0, 3, 1, 2]  # in the order in which they were left
    device.table.contexts.forget(2)
    assert device.table.free_slots() == [2, 0, 3, 1]  # its process is gone


@pytest.mark.parametrize("width", [1, 4])
def test_a_debt_for_what_was_cached_is_paid_with_the_next_grant(width: int) -> None:
    device = Device(slots=4, width=width)
    for call in range(1, 5):
        device.add(call, prompt=1000)
    device.decide()
    claim = device.table.claims[1]
    claim.prompt, claim.granted = 10, claim.granted - 990  # the engine found 990 of them
    for _ in range(100):
        device.step()
    assert device.computed[1] > 10


def test_deciding_changes_nothing() -> None:
    device = Device(slots=2, width=1)
    for call in range(1, 6):
        device.add(call)
    before = repr(device.table)
    assert decide(device.table, 1.0) == decide(device.table, 1.0)
    assert repr(device.table) == before


def test_random_histories_keep_the_invariants() -> None:
    for seed in range(30):
        random.seed(seed)
        device = Device(random.randint(1, 6), random.randint(1, 6), random.randint(200, 2000))
        device.table.parked_bytes = random.randint(0, 2000)
        device.table.contexts.token_bytes = 4
        for call in range(1, 200):
            device.add(call, process=random.randint(1, 9), nice=random.randint(-5, 5))
            for _ in range(random.randint(0, 5)):
                device.step()
            if device.table.claims:
                victim = random.choice(list(device.table.claims.values()))
                move = random.random()
                if move < 0.5:
                    device.table.drop(victim.call)
                elif move < 0.7:
                    victim.stopped = not victim.stopped
                elif move < 0.8:
                    victim.slow_reader = not victim.slow_reader


def test_newcomers_do_not_starve_who_has_a_history() -> None:
    device = Device(slots=4, width=4)
    call = 0
    for _ in range(10):  # on an idle machine, the old one computes alone
        call += 1
        device.add(call, process=1)
        for _ in range(200):
            device.step()
        device.table.drop(call)
    call += 1
    old = call
    waited = 0
    for _ in range(3_000):  # every request of the others is a new process
        while len(device.table.claims) < 8:
            call += 1
            device.add(call, process=call)
        if old not in device.table.claims:
            device.add(old, process=1)
        device.step()
        claim = device.table.claims[old]
        waited = 0 if claim.slot is not None else waited + 1
        assert waited < 200
        for other in list(device.table.claims.values()):
            if other.call != old and other.slot is not None and other.virtual > 40 + claim.virtual:
                device.table.drop(other.call)


def test_a_stopped_call_is_not_paid_for_the_time_it_was_stopped() -> None:
    device = Device(slots=2, width=1)
    stopped = device.add(1)
    device.add(2)
    for _ in range(200):
        device.step()
    stopped.stopped = True
    for _ in range(5_000):
        device.step()
    device.table.resume(stopped)
    before = dict(device.computed)
    for _ in range(1_000):
        device.step()
    assert device.computed[2] - before[2] == pytest.approx(500, abs=3 * limits.QUANTUM_TOKENS)


def test_a_call_that_has_left_can_be_dropped_again() -> None:
    device = Device(1, 1)
    for call in (1, 2):
        device.add(call)
    for _ in range(2):
        device.table.drop(1)
    assert list(device.table.claims) == [2]
