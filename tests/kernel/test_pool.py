"""One pool of cells for running calls, idle slots and saved contexts, against an obvious engine.

The engine of this test shares nothing between contexts: the worst case for its pool.
"""

import random
from dataclasses import dataclass, field

from llmasos.kernel.driver import ContextSaved, Step
from llmasos.kernel.scheduling.contexts import Clear, Drop
from llmasos.kernel.scheduling.moves import Admit, Grant, Park
from llmasos.kernel.scheduling.scheduler import Claim, DeviceState, decide

BLOCK, TOKEN = 8, 4


def blocks(tokens: int) -> int:
    return (tokens + BLOCK - 1) // BLOCK


@dataclass
class Pool:
    """An engine whose contexts are numbers of tokens."""

    slots: dict[int, int] = field(default_factory=dict[int, int])
    saved: dict[int, int] = field(default_factory=dict[int, int])
    parked: dict[int, int] = field(default_factory=dict[int, int])

    @property
    def used(self) -> int:
        every = (*self.slots.values(), *self.saved.values(), *self.parked.values())
        return BLOCK * sum(map(blocks, every))


class Device:
    """The kernel's table, and the engine that executes its decisions."""

    def __init__(self, slots: int, cells: int, kept_bytes: int = 10**9) -> None:
        self.table = DeviceState(slots, slots, cells, parked_bytes=10**9)
        contexts = self.table.contexts
        contexts.kept_bytes, contexts.block_tokens = kept_bytes, BLOCK
        contexts.context_bytes, contexts.token_bytes = BLOCK * TOKEN, TOKEN
        self.pool = Pool()
        self.gone: list[Drop | Clear] = []
        self.recomputed: set[int] = set()
        self.calls = 0

    def call(self, process: int, tokens: int = 100) -> Claim:
        self.calls += 1
        claim = Claim(self.calls, process, 1.0, tokens // 2, tokens, domain="abc"[process % 3])
        self.table.add(claim)
        self.decide()
        return claim

    def decide(self) -> None:
        for decision in decide(self.table, 0.0):
            match decision:
                case Admit(call):
                    self.admit(self.table.claims[call], decision)
                case Park(call, keep):
                    self.park(self.table.claims[call], keep=keep)
                case Drop(number):
                    self.table.contexts.drop(number)
                    del self.pool.saved[number]
                    self.gone.append(decision)
                case Clear(slot):
                    assert slot not in {c.slot for c in self.table.claims.values()}
                    self.table.contexts.clear(slot)
                    del self.pool.slots[slot]
                    self.gone.append(decision)
                case Grant(call, tokens):
                    self.table.grant(self.table.claims[call], tokens)
                case _:
                    raise AssertionError(decision)

    def admit(self, claim: Claim, move: Admit) -> None:
        parked = claim.parked
        self.table.admit(claim, move)
        before = self.pool.slots.pop(move.slot, 0)
        if move.save:
            self.pool.saved[move.save] = before
            saved = ContextSaved(move.save, BLOCK * TOKEN * blocks(before))
            self.table.advance(claim, Step(claim.call, saved=[saved]), 0.0)
        self.pool.slots[move.slot] = self.pool.parked.pop(claim.call, 0) if parked else 0
        assert self.pool.slots[move.slot] == claim.computed
        assert move.share == 0

    def park(self, claim: Claim, *, keep: bool) -> None:
        tokens = self.pool.parked.pop(claim.call, 0)
        if claim.slot is not None:
            tokens = self.pool.slots.pop(claim.slot)
        if keep:
            self.pool.parked[claim.call] = tokens
        else:
            self.recomputed.add(claim.call)
        self.table.park(claim, keep=keep)

    def compute(self, claim: Claim) -> None:
        """All that it is granted, in an engine that fails when its pool is full."""
        if claim.slot is None or claim.stopped or claim.granted <= 0:
            return
        tokens = min(claim.granted, claim.left)
        fed = min(tokens, claim.prompt)
        self.table.advance(claim, Step(claim.call, fed=fed, tokens=tokens - fed), 0.0)
        self.pool.slots[claim.slot] += tokens
        assert self.pool.used <= self.table.cells

    def run(self) -> list[Claim]:
        """Compute all calls once; those that have not ended."""
        for claim in list(self.table.claims.values()):
            self.compute(claim)
            if not claim.left:
                self.end(claim)
        return list(self.table.claims.values())

    def end(self, claim: Claim) -> None:
        if claim.slot is not None and not claim.computed:
            del self.pool.slots[claim.slot]
        self.pool.parked.pop(claim.call, None)
        self.table.drop(claim.call)

    def turn(self, process: int, tokens: int = 100) -> None:
        claim = self.call(process, tokens)
        while claim.left:
            self.compute(claim)
            self.decide()
        self.end(claim)


def test_a_short_conversation_takes_what_it_uses_and_a_long_one_what_the_pool_has() -> None:
    device = Device(slots=4, cells=800)
    for process in range(1, 5):
        device.turn(process, 50)
    assert device.pool.used == 4 * 56
    device.turn(5, 800)
    assert device.pool.used == 800
    assert device.gone == [Clear(1), Clear(2), Clear(3)]  # it has the slot of the oldest
    assert device.table.contexts.saved == {}


def test_idle_contexts_are_given_up_oldest_first_and_only_as_many_as_needed() -> None:
    device = Device(slots=3, cells=400)
    for process in (3, 6, 9):  # of one domain
        device.turn(process, 104)
    device.turn(3, 104)  # it comes back: the oldest is that of 6 now
    device.turn(12, 104)  # gets the slot of 6, whose context does not fit any more
    assert device.gone == []
    assert {one.process for one in device.table.contexts.slots.values()} == {9, 3, 12}
    device.turn(15, 288)
    assert [one.process for one in device.table.contexts.slots.values()] == [12, 15]


def test_what_an_ended_process_left_counts_until_its_slot_is_used() -> None:
    device = Device(slots=2, cells=200)
    device.turn(1, 104)
    device.table.contexts.forget(1)
    assert device.table.free_slots() == [0, 1]
    device.turn(2, 200)
    assert device.gone == []
    assert device.pool.used == 200


def test_a_process_that_comes_back_loses_its_own_context_last_and_when_it_has_its_slot() -> None:
    device = Device(slots=1, cells=320)
    device.turn(3, 104)
    device.turn(6, 104)
    [number] = device.table.contexts.saved
    claim = Claim(9, 3, 1.0, 100, 304)
    device.table.add(claim)
    admit, drop, *_ = decide(device.table, 0.0)
    assert (admit, drop) == (Admit(9, 0), Drop(number))


def test_a_parked_call_is_computed_again_when_its_cells_are_needed() -> None:
    device = Device(slots=1, cells=200)
    stopped = device.call(1, 104)
    device.compute(stopped)
    stopped.stopped = True
    device.turn(2, 50)
    assert device.recomputed == set()
    device.turn(2, 192)
    assert device.recomputed == {stopped.call}
    device.table.resume(stopped)
    device.decide()
    assert stopped.slot == 0
    assert (stopped.computed, stopped.left) == (0, 104)


def history(device: Device, dice: random.Random) -> None:
    """Calls that begin, compute, stop, continue and end."""
    for _ in range(300):
        claims = device.table.claims.values()
        idle = sorted(set(range(1, 13)) - {claim.process for claim in claims})
        if len(claims) < 8:
            device.call(dice.choice(idle), dice.choice([10, 60, 150, 300]))
        for claim in device.run():
            if dice.random() < 0.05:
                device.end(claim)
            elif dice.random() < 0.1:
                claim.stopped = not claim.stopped
        if dice.random() < 0.05:
            forget(device, dice.choice(idle))
        device.decide()
        assert device.pool.used <= device.table.cells
        assert set(device.pool.saved) == set(device.table.contexts.saved)


def complete(device: Device) -> None:
    """Let all calls run to their ends."""
    for claim in device.table.claims.values():
        claim.stopped = False
    for _ in range(500):
        device.decide()
        device.run()


def test_random_histories_never_exceed_the_pool_and_end_every_call() -> None:
    gone = recomputed = 0
    for seed in range(20):
        dice = random.Random(seed)
        cells, kept = BLOCK * dice.randint(38, 80), dice.choice([0, 10**9])
        device = Device(dice.randint(1, 5), cells, kept)
        history(device, dice)
        complete(device)
        assert not device.table.claims
        gone += len(device.gone)
        recomputed += len(device.recomputed)
    assert gone > 100
    assert recomputed > 20


def forget(device: Device, process: int) -> None:
    for number, one in list(device.table.contexts.saved.items()):
        if one.process == process:
            del device.pool.saved[number]
    device.table.contexts.forget(process)
