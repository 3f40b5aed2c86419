"""Where contexts of idle processes live, against an obvious engine that saves and drops."""

import random
from collections import Counter

from llmasos.kernel.abi import limits
from llmasos.kernel.driver import ContextSaved, Step
from llmasos.kernel.scheduling.contexts import Drop
from llmasos.kernel.scheduling.moves import Admit, Grant
from llmasos.kernel.scheduling.scheduler import Claim, DeviceState, decide

FIXED, TOKEN = 100, 4


class Device:
    """Contexts are numbers of bytes; every admitted call ends when a test says so."""

    def __init__(self, slots: int = 1, kept_bytes: int = 10_000) -> None:
        self.table = DeviceState(slots, slots, 10**9)
        contexts = self.table.contexts
        contexts.kept_bytes, contexts.context_bytes, contexts.token_bytes = kept_bytes, FIXED, TOKEN
        self.store: dict[int, int] = {}  # number -> bytes
        self.numbers: list[int] = []  # all that were given
        self.calls = 0

    def call(self, process: int, tokens: int = 100, domain: str = "a") -> Claim:
        """A call that is admitted and computes its whole context."""
        self.calls += 1
        claim = Claim(self.calls, process, 1.0, tokens, tokens, domain=domain)
        self.table.add(claim)
        self.decide()
        return claim

    def decide(self) -> None:
        for decision in decide(self.table, 0.0):
            match decision:
                case Admit(call):
                    self.admit(self.table.claims[call], decision)
                case Drop(number):
                    self.table.contexts.drop(number)
                    self.store.pop(number, None)
                case Grant(call, tokens):
                    self.table.grant(self.table.claims[call], tokens)
                case _:
                    raise AssertionError(decision)

    def admit(self, claim: Claim, move: Admit) -> None:
        self.numbers += [number for number in (move.save, move.share) if number]
        before = self.table.contexts.slots.get(move.slot)
        self.table.admit(claim, move)
        if move.save:
            assert before is not None
            self.store[move.save] = FIXED + TOKEN * before.tokens
            report(self, claim, move.save, self.store[move.save])
        self.table.advance(claim, Step(claim.call, fed=claim.prompt), 0.0)

    def end(self, claim: Claim) -> None:
        self.table.drop(claim.call)

    def turn(self, process: int, tokens: int = 100, domain: str = "a") -> None:
        self.end(self.call(process, tokens, domain))

    def share(self, claim: Claim, tokens: int) -> None:
        """The engine saved a beginning for others."""
        size = FIXED + TOKEN * tokens
        self.store[claim.share] = size
        report(self, claim, claim.share, size)

    @property
    def processes(self) -> list[int | None]:
        """Those whose contexts are saved, the least recently used first."""
        return [saved.process for saved in self.table.contexts.saved.values()]


def report(device: Device, claim: Claim, number: int, size: int, *beginnings: int) -> None:
    saved = ContextSaved(number, size, beginnings)
    device.table.advance(claim, Step(claim.call, saved=[saved]), 0.0)


def test_the_context_of_a_process_is_saved_when_another_gets_its_slot() -> None:
    device = Device()
    device.turn(1)
    device.turn(1, 200)  # it continues in its slot
    assert device.processes == []
    device.turn(2)
    assert device.processes == [1]
    assert device.table.contexts.bytes == FIXED + TOKEN * 200 == sum(device.store.values())


def test_what_is_too_short_to_share_or_too_large_is_not_saved() -> None:
    device = Device(kept_bytes=1000)
    for process, tokens in enumerate((limits.SHARE_TOKENS - 1, 1000, limits.SHARE_TOKENS), start=1):
        device.turn(process, tokens)
    device.turn(9)
    assert device.processes == [3]


def test_an_engine_without_saved_contexts_is_asked_for_none() -> None:
    device = Device(kept_bytes=0)
    for process in (1, 2, 3):
        device.turn(process)
    assert device.numbers == []


def test_the_least_recently_used_context_of_the_largest_domain_is_dropped() -> None:
    size = FIXED + TOKEN * 100
    device = Device(kept_bytes=3 * size)
    for process, domain in ((1, "a"), (2, "b"), (3, "a"), (4, "a")):
        device.turn(process, domain=domain)
    assert device.processes == [1, 2, 3]
    [first] = [n for n, saved in device.table.contexts.saved.items() if saved.process == 1]
    device.table.contexts.touch(first)
    device.turn(5)
    assert device.processes == [2, 1, 4]
    assert sorted(device.store) == sorted(device.table.contexts.saved)


def test_a_context_that_begins_a_later_one_of_its_process_is_dropped() -> None:
    device = Device()
    device.turn(1)
    device.turn(2)
    device.turn(1, 200)
    claim = device.call(3)
    saved = device.table.contexts.saved
    older, newer = (n for n, one in saved.items() if one.process == 1)
    other = next(n for n, one in saved.items() if one.process == 2)
    report(device, claim, newer, saved[newer].bytes, older, other)
    device.decide()
    assert sorted(device.store) == sorted(saved) == sorted((newer, other))


def test_what_the_engine_did_not_save_is_forgotten() -> None:
    device = Device()
    device.turn(1)
    claim = Claim(9, 2, 1.0, 100, 100)
    device.table.add(claim)
    [move] = [one for one in decide(device.table, 0.0) if isinstance(one, Admit)]
    device.table.admit(claim, move)
    assert device.processes == [1]
    report(device, claim, move.save, 0)
    assert device.processes == []
    assert device.table.contexts.bytes == 0


def test_a_call_that_ends_before_the_report_has_saved_nothing() -> None:
    device = Device()
    device.turn(1)
    claim = Claim(9, 2, 1.0, 100, 100)
    device.table.add(claim)
    [move] = [one for one in decide(device.table, 0.0) if isinstance(one, Admit)]
    device.table.admit(claim, move)
    device.table.drop(9)
    assert device.processes == []


def test_a_shared_beginning_counts_for_its_domain_and_survives_its_process() -> None:
    device = Device()
    claim = device.call(1)
    device.share(claim, 50)
    device.end(claim)
    device.table.contexts.forget(1)
    assert device.processes == [None]
    assert device.table.contexts.bytes == FIXED + TOKEN * 50


def test_an_ended_process_and_a_purged_domain_leave_nothing() -> None:
    device = Device(slots=2)
    for process, domain in ((1, "a"), (2, "b"), (3, "a"), (4, "b")):
        device.turn(process, domain=domain)
    assert device.processes == [1, 2]
    device.table.contexts.forget(1)
    assert device.processes == [2]
    running = device.call(5, domain="b")
    device.table.purge("b")
    assert device.processes == [3]
    device.end(running)
    assert [one.process for one in device.table.contexts.slots.values()] == []


def test_a_beginning_that_was_saved_during_a_purge_is_dropped() -> None:
    device = Device()
    claim = device.call(1)
    device.table.purge("a")
    device.share(claim, 50)
    device.decide()
    assert device.processes == []
    assert device.store == {}


def test_an_engine_that_died_has_no_contexts() -> None:
    device = Device()
    for process in (1, 2):
        device.turn(process)
    device.table.lost()
    assert (device.processes, device.table.contexts.bytes) == ([], 0)
    device.turn(3)
    assert device.numbers == sorted(set(device.numbers))


def test_random_histories_keep_the_limit_and_the_numbers() -> None:
    """The store of the engine is that of the table, within the limit, but for shared beginnings
    that were not reported before a decision."""
    for seed in range(30):
        dice = random.Random(seed)
        limit = dice.randint(0, 5_000)
        device = Device(dice.randint(1, 5), limit)
        running: list[Claim] = []
        for _ in range(400):
            idle = set(range(1, 21)) - {claim.process for claim in running}
            process = dice.choice(sorted(idle))
            tokens = dice.choice([10, 50, 300, 900])
            running.append(device.call(process, tokens, "abc"[process % 3]))
            assert sum(device.store.values()) <= limit
            if running[-1].share and dice.random() < 0.2:
                device.share(running[-1], 40)
            if dice.random() < 0.9 or len(running) > 10:
                device.end(running.pop(dice.randrange(len(running))))
            chance = dice.random()
            if chance < 0.1:
                device.table.contexts.touch(dice.choice([*device.store, 0]))
            elif chance < 0.15:
                gone = dice.choice([*device.processes, None])
                if gone is not None:
                    forget(device, gone)
            device.decide()
            contexts = device.table.contexts
            assert device.store == {n: saved.bytes for n, saved in contexts.saved.items()}
            assert sum(device.store.values()) == contexts.bytes <= limit
        assert max(Counter(device.numbers).values(), default=1) == 1


def forget(device: Device, process: int) -> None:
    saved = device.table.contexts.saved
    for number in [n for n, one in saved.items() if one.process == process]:
        del device.store[number]
    device.table.contexts.forget(process)
