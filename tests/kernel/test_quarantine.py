"""Suspects and poison: against a slow model, against many crashes, and over a restart."""

import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import anyio
import pytest

from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.values import Message, PoisonLift, Role, Sampling, pack_bias
from llmasos.kernel.driver import Cause, Death, Prompt
from llmasos.kernel.scheduling.loader import Loader
from llmasos.kernel.scheduling.moves import Admit, Park
from llmasos.kernel.scheduling.quarantine import Marks, Quarantine, SuspectCall, name
from llmasos.kernel.scheduling.scheduler import Claim, DeviceState, decide
from llmasos.kernel.storage.store import Store
from llmasos.kernel.supervisor import Supervisor
from llmasos.kernel.syscalls.call import CallContext
from llmasos.kernel.syscalls.poison import PoisonSyscalls

CRASH = Death("x")


def suspect_calls(*calls: bytes) -> list[SuspectCall]:
    return [SuspectCall(call, "m", "ann") for call in calls]


@dataclass
class Slow:
    """Everything that ever happened, read from the beginning for each question."""

    life: float
    history: list[tuple[float, str, list[bytes], list[bytes]]] = field(
        default_factory=list[tuple[float, str, list[bytes], list[bytes]]]
    )

    def state(self, call: bytes, now: float) -> str:
        state, since = "", 0.0
        for when, what, inside, parked in self.history:
            if state and when - since >= self.life:
                state = ""
            if what == "died" and inside == [call] and state:
                state, since = "poison", when
            elif what == "died" and call in (*inside, *parked) and not state:
                lone = len(inside) == 1 and inside[0] != call
                if not (lone and self._known(inside[0], when)):
                    state, since = "suspect", when
            elif what == "ended" and inside == [call] and state == "suspect":
                state = ""
        return "" if state and now - since >= self.life else state

    def _known(self, call: bytes, when: float) -> bool:
        before = [event for event in self.history if event[0] < when]
        return bool(Slow(self.life, before).state(call, when))


def test_marks_are_what_a_slow_model_says() -> None:
    for seed in range(60):
        dice = random.Random(seed)
        marks, slow, now = Marks(life_s=50.0), Slow(50.0), 0.0
        calls = [bytes([n]) for n in range(6)]
        for _ in range(60):
            now += dice.uniform(0.1, 8)
            picked = dice.sample(calls, dice.randint(0, 4))
            cut = dice.randint(0, len(picked))
            inside, parked = picked[:cut], picked[cut:]
            if dice.random() < 0.6:
                marks.died(suspect_calls(*inside), suspect_calls(*parked), CRASH, now)
                slow.history.append((now, "died", inside, parked))
            elif inside:
                marks.ended(inside[0])
                slow.history.append((now, "ended", inside[:1], []))
            for call in calls:
                mark = marks.get(call, now)
                told = "" if mark is None else "poison" if mark.poison else "suspect"
                assert told == slow.state(call, now), (seed, call)


def test_the_table_is_bounded_and_the_oldest_go() -> None:
    marks = Marks(most=10)
    for n in range(50):
        marks.died(suspect_calls(bytes([n])), [], CRASH, float(n))
    assert list(marks.by_call) == [bytes([n]) for n in range(40, 50)]


def test_poison_is_forgotten_after_its_time() -> None:
    marks = Marks(life_s=100.0)
    for now in (0.0, 1.0):
        marks.died(suspect_calls(b"a"), [], CRASH, now)
    mark = marks.get(b"a", 100.0)
    assert mark is not None
    assert mark.poison
    assert marks.get(b"a", 101.0) is None


def test_a_kill_from_outside_accuses_nobody() -> None:
    marks = Marks()
    for cause in (Cause.OUTSIDE, Cause.OUTSIDE):
        assert marks.died(suspect_calls(b"a"), suspect_calls(b"b"), Death("x", cause), 0.0) == []
    assert marks.by_call == {}


def test_a_suspect_whose_engine_is_killed_from_outside_stays_a_suspect() -> None:
    marks = Marks()
    marks.died(suspect_calls(b"a", b"b"), [], CRASH, 0.0)
    for now in (1.0, 2.0):
        marks.died(suspect_calls(b"a"), [], Death("x", Cause.OUTSIDE), now)
    assert marks.by_call[b"a"].poison is False
    marks.died(suspect_calls(b"a"), [], CRASH, 3.0)
    assert marks.by_call[b"a"].poison is True


def test_want_of_memory_makes_suspects_and_no_poison() -> None:
    marks = Marks()
    for now in (0.0, 1.0, 2.0):
        marks.died(suspect_calls(b"a"), [], Death("x", Cause.MEMORY), now)
        assert marks.by_call[b"a"].poison is False
    marks.died(suspect_calls(b"a"), [], CRASH, 3.0)
    marks.died(suspect_calls(b"a"), [], Death("x", Cause.MEMORY), 4.0)
    assert marks.by_call[b"a"].poison is True


# --- a simulated device -----------------------------------------------------------------------
class Device:
    """A device whose engine dies when a poisonous call computes; everybody asks again."""

    def __init__(self, dice: random.Random, poisons: set[int], calls: int) -> None:
        self.dice, self.poisons = dice, poisons
        self.marks, self.now = Marks(), 0.0
        self.table = DeviceState(slots=dice.randint(2, 8), width=8, cells=10**9)
        self.left = dict.fromkeys(range(calls), 3)  # times that each call is still to be answered
        self.refused: set[int] = set()
        self.deaths = 0

    def ask(self) -> None:
        for call in self.left:
            mark = self.marks.get(bytes([call]), self.now)
            if call in self.table.claims or not self.left[call] or call in self.refused:
                continue
            if mark is not None and mark.poison:
                self.refused.add(call)
            elif self.dice.random() < 0.5:
                claim = Claim(call, call, 1.0, 5, 10, exclusive=mark is not None)
                self.table.add(claim)

    def turn(self) -> None:
        self.now += 1
        self.ask()
        for decision in decide(self.table, self.now):
            match decision:
                case Admit(call):
                    self.table.admit(self.table.claims[call], decision)
                case Park(call, keep):
                    self.table.park(self.table.claims[call], keep=keep)
                case _:
                    pass
        inside = [c for c in self.table.claims.values() if c.slot is not None]
        assert len(inside) == 1 or not any(c.exclusive for c in inside)
        running = [c for c in inside if not c.stopped]
        if any(c.call in self.poisons for c in running) and self.dice.random() < 0.5:
            self.die(inside)
        elif running and self.dice.random() < 0.3:
            self.end(self.dice.choice(running))
        for claim in list(self.table.claims.values()):
            if self.dice.random() < 0.1:
                claim.stopped = not claim.stopped

    def die(self, inside: list[Claim]) -> None:
        self.deaths += 1
        parked = [c for c in self.table.claims.values() if c.parked]
        first, second = [
            suspect_calls(*(bytes([c.call]) for c in some)) for some in (inside, parked)
        ]
        self.marks.died(first, second, CRASH, self.now)
        for claim in (*inside, *parked):
            self.table.drop(claim.call)
        for claim in self.table.claims.values():
            claim.exclusive = self.marks.get(bytes([claim.call]), self.now) is not None

    def end(self, claim: Claim) -> None:
        if claim.call in self.poisons:
            return  # it never gets so far
        self.left[claim.call] -= 1
        self.table.drop(claim.call)
        if claim.exclusive:
            self.marks.ended(bytes([claim.call]))


def test_bystanders_are_never_refused_and_always_answered() -> None:
    for seed in range(20):
        dice = random.Random(seed)
        poisons = set(dice.sample(range(20), dice.randint(1, 5)))
        device = Device(dice, poisons, 20)
        for _ in range(5_000):
            device.turn()
        assert device.refused == poisons, seed
        assert all(not left for call, left in device.left.items() if call not in poisons), seed
        assert device.deaths <= 2 * len(poisons), seed  # the first in the crowd, the second alone


def test_a_crash_that_nobody_caused_refuses_nobody() -> None:
    """The engine is killed from outside, once, at any moment of any history."""
    for seed in range(40):
        dice = random.Random(seed)
        device = Device(dice, set(), 12)
        when = dice.randint(0, 60)
        for turn in range(2_000):
            device.turn()
            if turn == when:
                device.die([c for c in device.table.claims.values() if c.slot is not None])
        assert device.refused == set(), seed
        assert not any(device.left.values()), seed
        assert device.deaths == 1
        assert device.marks.by_call == {}, seed  # each was answered alone since


# --- alone ------------------------------------------------------------------------------------
def test_a_suspect_waits_for_the_others_and_nobody_overtakes_it() -> None:
    table = DeviceState(slots=4, width=4, cells=10**9)
    for call in (1, 2):
        table.add(Claim(call, call, 1.0, 5, 10, slot=call))
    table.add(Claim(3, 3, 1.0, 5, 10, exclusive=True))
    table.add(Claim(4, 4, 1.0, 5, 10))
    assert not any(isinstance(d, Admit) for d in decide(table, 0.0))
    table.drop(1)
    assert not any(isinstance(d, Admit) for d in decide(table, 0.0))
    table.drop(2)
    (admit,) = [d for d in decide(table, 0.0) if isinstance(d, Admit)]
    assert admit.call == 3
    table.claims[3].slot = admit.slot
    assert not any(isinstance(d, Admit) for d in decide(table, 0.0))
    table.drop(3)
    assert [d.call for d in decide(table, 0.0) if isinstance(d, Admit)] == [4]


def test_a_suspect_that_is_stopped_gives_way() -> None:
    table = DeviceState(slots=4, width=4, cells=10**9)
    table.add(Claim(1, 1, 1.0, 5, 10, slot=0, stopped=True, exclusive=True))
    table.add(Claim(2, 2, 1.0, 5, 10))
    assert [type(d) for d in decide(table, 0.0)][:2] == [Park, Admit]


# --- on disk ----------------------------------------------------------------------------------
PROMPT = Prompt([1, 2, 3], ())
SAMPLING = Sampling(max_tokens=5, seed=1)


@pytest.mark.anyio
async def test_suspects_and_poison_survive_a_restart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    suspects = Quarantine(store)
    bystander = suspects.hash("m", Prompt([9], ()), SAMPLING)
    deadly = suspects.hash("m", PROMPT, SAMPLING)
    suspects.died(suspect_calls(deadly, bystander), [], Death("boom\nsecond line"))
    assert suspects.is_suspect(deadly)
    assert suspects.poison(deadly) is None
    suspects.died(suspect_calls(deadly), [], Death("boom again\nsecond line"))
    store.close()
    store = Store(tmp_path)
    suspects = Quarantine(store)
    assert suspects.hash("m", PROMPT, SAMPLING) == deadly
    refusal = suspects.poison(deadly)
    assert refusal is not None
    assert refusal.errno is Errno.EPOISON
    assert "boom again" in refusal.message
    assert "second line" not in refusal.message
    assert "prompt" in refusal.hint
    assert f"`llmasos poison lift {name(deadly)}`" in refusal.hint
    mark = suspects.marks()[deadly]
    assert (mark.model, mark.owner, mark.poison) == ("m", "ann", True)
    assert suspects.is_suspect(bystander)
    assert suspects.ended(bystander)
    assert not suspects.ended(deadly)
    store.close()
    store = Store(tmp_path)
    suspects = Quarantine(store)
    assert not suspects.is_suspect(bystander)
    await suspects.lift([deadly])
    assert suspects.poison(deadly) is None
    store.close()
    store = Store(tmp_path)
    assert Quarantine(store).marks() == {}
    store.close()


@pytest.mark.anyio
async def test_a_call_is_known_by_what_it_makes_the_engine_do(tmp_path: Path) -> None:
    store = Store(tmp_path)
    known = Quarantine(store)
    hash_ = known.hash("m", PROMPT, SAMPLING)
    same = [replace(SAMPLING, seed=2), replace(SAMPLING, temperature=0.1, max_tokens=7)]
    assert all(known.hash("m", PROMPT, sampling) == hash_ for sampling in same)
    others = [
        known.hash("n", PROMPT, SAMPLING),
        known.hash("m", Prompt([1, 2, 4], ()), SAMPLING),
        known.hash("m", Prompt([], (), [Message(Role.USER, "hi")]), SAMPLING),
        known.hash("m", PROMPT, replace(SAMPLING, grammar="root ::= 'a'")),
        known.hash("m", PROMPT, replace(SAMPLING, temperature=0.0)),
        known.hash("m", PROMPT, replace(SAMPLING, bias=pack_bias({1: 2.0}))),
    ]
    assert len({hash_, *others}) == 1 + len(others)
    store.close()
    (tmp_path / "other").mkdir()
    elsewhere = Store(tmp_path / "other")
    assert Quarantine(elsewhere).hash("m", PROMPT, SAMPLING) != hash_  # keyed
    elsewhere.close()


@pytest.mark.anyio
async def test_more_digits_are_asked_for_when_two_ids_begin_alike(tmp_path: Path) -> None:
    store = Store(tmp_path)
    suspects = Quarantine(store)
    suspects.died(suspect_calls(b"\xab\x01", b"\xab\x02", b"\xcd\x03"), [], CRASH)
    syscalls = PoisonSyscalls(Loader(suspects, Supervisor(anyio.create_task_group()), 0.0))
    call = cast("CallContext", None)  # it is not used
    with pytest.raises(SyscallError, match="2 ids begin with ab") as caught:
        await syscalls.poison_lift(call, PoisonLift("ab"))
    assert caught.value.errno is Errno.EINVAL
    assert len((await syscalls.poison_lift(call, PoisonLift("ab01"))).poisons) == 1
    assert set(suspects.marks()) == {b"\xab\x02", b"\xcd\x03"}
    await syscalls.poison_lift(call, PoisonLift(all=True))
    assert suspects.marks() == {}
    store.close()
