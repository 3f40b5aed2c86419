"""The order of prompts against a simulated engine: short ones first, and nobody stands still."""

import itertools
import random
from dataclasses import dataclass

from llmasos.kernel.abi import limits
from llmasos.kernel.driver import Step
from llmasos.kernel.scheduling.moves import Admit, Grant, Order, Park
from llmasos.kernel.scheduling.scheduler import Claim, DeviceState, decide

ROOM = 128  # prompt tokens of a step
STEP_S, TOKEN_S = 0.05, 0.002


@dataclass
class Computed:
    """What the engine has of a call."""

    prompt: int
    left: int  # tokens to be fed: of the prompt, or of a context that was lost
    answered: int = 0  # tokens of the answer
    lost: bool = False


class Device:
    """An engine that obeys: it feeds the order's calls, in this order, and nobody else.

    `dice`: calls reuse a part of their prompt, and contexts are lost, by chance.
    """

    def __init__(self, slots: int = 8, dice: random.Random | None = None) -> None:
        self.dice = dice
        self.table = DeviceState(slots, slots, 10**9, ordered=True)
        self.calls: dict[int, Computed] = {}
        self.order: list[int] = []
        self.once = 0
        self.orders: list[Order] = []
        self.now = 100.0
        self.fed: dict[int, list[float]] = {}  # when a call was fed

    def add(self, call: int, prompt: int, answer: int, process: int = 0) -> Claim:
        claim = Claim(call, process or call, 1.0, prompt, prompt + answer)
        self.calls[call] = Computed(prompt, prompt)
        self.table.add(claim)
        return claim

    def decide(self) -> None:
        for decision in decide(self.table, self.now):
            match decision:
                case Admit(call):
                    self.admit(self.table.claims[call], decision)
                case Park(call, keep):
                    self.table.park(self.table.claims[call], keep=keep)
                    saved = keep and not (self.dice and self.dice.random() < 0.5)
                    self.calls[call].lost |= not saved
                case Order(calls, once):
                    assert (list(calls), once) != (self.order, self.once)
                    self.order, self.once = list(calls), once
                    self.table.order = decision
                    self.orders.append(decision)
                case Grant(call, tokens):
                    self.table.grant(self.table.claims[call], tokens)
                case _:
                    raise AssertionError(decision)

    def admit(self, claim: Claim, move: Admit) -> None:
        begun = claim.begun
        self.table.admit(claim, move)
        computed = self.calls[claim.call]
        if not begun:
            reused = [0, 0, claim.prompt // 2, claim.prompt - 1]
            cached = self.dice.choice(reused) if self.dice else 0
            computed.left -= cached
            self.table.advance(claim, Step(claim.call, cached=cached), self.now)
        elif computed.lost:
            # The last token of the answer was not in the slot yet.
            computed.left = computed.prompt + max(0, computed.answered - 1)
            computed.lost = False
            self.table.advance(claim, Step(claim.call, recompute=computed.left), self.now)

    def step(self) -> None:
        """Compute one step and report it."""
        self.decide()
        self.decide()  # after what was reported at once
        resident = [claim for claim in self.table.claims.values() if claim.slot is not None]
        assert all(claim.prompt == self.calls[claim.call].left for claim in resident)
        active = [claim for claim in resident if claim.granted > 0]
        decoding = [claim for claim in active if not self.calls[claim.call].left]
        feeding = [c for c in active if c not in decoding and c.call in self.order]
        assert decoding or feeding or not active, "nobody moves, though somebody may"
        feeding.sort(key=lambda claim: self.order.index(claim.call))
        self.now += STEP_S
        room = ROOM
        for claim in feeding:
            room -= self.feed(claim, room)
        for claim in decoding:
            self.calls[claim.call].answered += 1
            self.table.advance(claim, Step(claim.call, tokens=1), self.now)
            if claim.left <= 0:
                self.table.drop(claim.call)

    def feed(self, claim: Claim, room: int) -> int:
        computed = self.calls[claim.call]
        size = min(computed.left, claim.granted, room)
        if size:
            computed.left -= size
            self.now += TOKEN_S * size
            self.fed.setdefault(claim.call, []).append(self.now)
            if claim.call == self.once:
                self.order.remove(claim.call)
                self.once = 0
            self.table.advance(claim, Step(claim.call, fed=size), self.now)
        return size


def test_short_calls_go_first_then_middle_ones_then_long_ones() -> None:
    device = Device()
    for call, (prompt, answer) in enumerate(
        [(2000, 100), (100, 100), (30, 30), (2000, 100), (20, 20), (200, 20)], start=1
    ):
        device.add(call, prompt, answer)
    device.decide()
    assert device.order == [5, 3, 2, 6]
    assert device.once == 0
    for _ in range(100):
        device.step()
        if {3, 5}.isdisjoint(device.table.claims):
            break
    device.decide()
    assert [call for call in device.order if call in (1, 4)] == [1, 4]


def test_a_long_prompt_waits_for_a_short_answer_that_is_being_decoded() -> None:
    device = Device()
    short = device.add(1, 20, 30)
    while short.prompt:
        device.step()
    device.add(2, 2000, 30)
    device.decide()
    assert 2 not in device.order
    device.table.drop(1)
    device.decide()
    assert device.order == [2]


def test_a_long_prompt_is_long_to_its_end() -> None:
    device = Device()
    long = device.add(1, 600, 100)
    for _ in range(4):
        device.step()
    assert 0 < long.prompt <= 100
    device.add(2, 20, 20)
    device.decide()
    assert device.order == [2]


def test_a_process_that_comes_back_to_a_long_context_is_not_long() -> None:
    device = Device(3)
    device.add(1, 20, 30)
    device.step()
    device.table.contexts.leave(1, 7, "", 1900)
    device.add(2, 2000, 30, process=7)
    device.add(3, 2000, 30, process=8)
    [order] = [one for one in decide(device.table, device.now) if isinstance(one, Order)]
    assert list(order.calls) == [2]


def test_an_order_that_changes_nothing_is_not_sent() -> None:
    device = Device()
    long = device.add(1, 2000, 100)
    device.add(2, 100, 400)
    for _ in range(200):
        device.step()
        if not long.prompt:
            break
    assert not long.prompt
    assert [order.calls for order in device.orders] == [(2, 1)]


def test_a_stream_of_short_calls_gives_a_long_prompt_a_piece_in_each_aging_time() -> None:
    """P-03: short ones go first, and nobody starves."""
    device = Device()
    long = [device.add(call, 1500, 30) for call in (1, 2)]
    device.step()
    call = 10
    begun = device.now
    while any(claim.prompt for claim in long):
        if not any(claim.call >= 10 for claim in device.table.claims.values()):
            call += 1
            device.add(call, 20, 30)
        device.step()
        assert device.order == [] or device.order[0] >= 10 or device.once
        assert device.now - begun < 200
    for claim in long:
        times = [begun, *(time for time in device.fed[claim.call] if time > begun)]
        waits = [after - before for before, after in itertools.pairwise(times)]
        assert max(waits) < limits.AGING_S + 1
        assert sum(wait >= limits.AGING_S for wait in waits[1:]) >= len(waits) - 3


def test_nobody_stands_still_in_random_histories() -> None:
    for seed in range(20):
        dice = random.Random(seed)
        device = Device(dice.randint(1, 6), dice)
        for call in range(1, 60):
            prompt, answer = dice.choice([5, 40, 90, 300, 900]), dice.choice([3, 30, 100])
            device.add(call, prompt, answer, process=dice.randint(1, 9))
            for _ in range(dice.randint(0, 8)):
                device.step()
            disturb(device, dice)
        for claim in device.table.claims.values():
            claim.slow_reader = False
            device.table.resume(claim)
        for _ in range(20_000):
            device.step()
            if not device.table.claims:
                break
        assert not device.table.claims, seed


def disturb(device: Device, dice: random.Random) -> None:
    """A call ends, stops or is read slowly, or all go on."""
    claims = list(device.table.claims.values())
    move = dice.random()
    if move < 0.3:
        for claim in claims:
            device.table.resume(claim)
    elif claims and move < 0.45:
        device.table.drop(dice.choice(claims).call)
    elif claims and move < 0.6:
        dice.choice(claims).stopped = True
    elif claims and move < 0.7:
        victim = dice.choice(claims)
        victim.slow_reader = not victim.slow_reader
