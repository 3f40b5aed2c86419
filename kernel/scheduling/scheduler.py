"""Who runs next, on which slot, for how many tokens: a plain function of a device's state.

Weighted fair queueing over tokens: each process has a virtual time that grows by tokens computed
(prompt and answer alike) divided by its weight, and the smallest virtual time runs first. The
device's clock is the virtual time that every running process would have if the shares were exact.
A new process, or one that was idle, starts at that clock, so idle time earns no credit and new
processes starve nobody. Prefill is not a phase: a call has tokens left to compute, and some of them
are its prompt.

No await, no I/O, no wall clock: the same code runs against a simulated device.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from ..abi import limits


@dataclass(slots=True)
class Claim:
    """A call's claim on a device."""

    call: int
    process: int
    weight: float
    prompt: int  # prompt tokens not computed yet
    cells: int  # maximum size of its context in tokens: prompt and answer
    virtual: float = 0.0  # tokens computed divided by weight, since the device came up
    slot: int | None = None
    granted: int = 0  # tokens it may still compute; negative: debt, see Engine.grant in driver.py
    uncontended_tokens: int = 0  # of those, granted while no other call waited for them
    stopped: bool = False
    parked: bool = False  # admitted before, its context saved outside a slot
    computed: int = 0  # tokens of its context, in its slot or saved
    saved: int = 0  # bytes of its saved context, counted while it is parked
    slow_reader: bool = False  # too much of its answer is unread: no further quantum
    exclusive: bool = False  # no other call may hold a slot while this one does


@dataclass(slots=True)
class DeviceState:
    """The calls and slots of one device."""

    slots: int
    width: int
    cells: int
    claims: dict[int, Claim] = field(default_factory=dict[int, Claim])  # by call, oldest first
    # Slot -> the process that used it last, the least recently used slot first.
    last_process: dict[int, int] = field(default_factory=dict[int, int])
    # Process -> its virtual time, for idle processes whose virtual time is above the clock.
    virtual_lead: dict[int, float] = field(default_factory=dict[int, float])
    clock: float = 0.0
    can_park: bool = True
    parked_bytes: int = 0  # limit for the saved contexts of all parked claims
    context_bytes: int = 0  # fixed size of a saved context; each token in it adds token_bytes
    token_bytes: int = 0
    turn: int = limits.PROMPT_QUANTUM_TOKENS  # tokens of one prompt before the next prompt's turn

    def add(self, claim: Claim) -> None:
        claim.virtual = max(self.virtual_lead.pop(claim.process, 0.0), self.clock)
        self.claims[claim.call] = claim

    def grant(self, claim: Claim, tokens: int) -> None:
        """Allow a claim to compute this many more tokens."""
        claim.granted += tokens
        if len(self.claims) <= min(self.width, self.slots):
            claim.uncontended_tokens = max(0, claim.granted)

    def charge(self, claim: Claim, tokens: int) -> None:
        """Account for tokens computed for a claim.

        Uncontended tokens never raise its virtual time above the clock.
        """
        uncontended = min(claim.uncontended_tokens, tokens)
        claim.uncontended_tokens -= uncontended
        claim.virtual = min(
            claim.virtual + uncontended / claim.weight, max(claim.virtual, self.clock)
        )
        claim.virtual += (tokens - uncontended) / claim.weight
        running = [c.weight for c in self.claims.values() if c.slot is not None and not c.stopped]
        self.clock += tokens / max(sum(running), claim.weight)

    def resume(self, claim: Claim) -> None:
        """Continue a stopped claim. The share that it did not use while stopped is lost."""
        claim.stopped = False
        claim.virtual = max(claim.virtual, self.clock)

    def drop(self, call: int) -> None:
        claim = self.claims.pop(call, None)
        if claim is not None:
            if claim.slot is not None:
                self.mark_used(claim.slot, claim.process)
            self.virtual_lead[claim.process] = claim.virtual
            self.virtual_lead = {
                p: v for p, v in self.virtual_lead.items() if self.claims and v > self.clock
            }

    def mark_used(self, slot: int, process: int) -> None:
        """Make the slot the most recently used one, with this as its last process."""
        self.last_process.pop(slot, None)
        self.last_process[slot] = process

    def forget(self, process: int) -> None:
        """The process has ended: its slots count as never used."""
        self.last_process = {
            slot: other for slot, other in self.last_process.items() if other != process
        }

    def parked_bytes_left(self) -> int:
        """Bytes left for the contexts of parked claims."""
        return self.parked_bytes - sum(claim.saved for claim in self.claims.values())

    def context_size(self, claim: Claim) -> int:
        """Bytes of its context if it is saved now, with all granted tokens already computed."""
        if not self.token_bytes:
            return 0
        tokens = min(claim.cells, claim.computed + max(0, claim.granted))
        return self.context_bytes + self.token_bytes * tokens

    def park(self, claim: Claim, *, keep: bool) -> None:
        """Take a claim out of its slot. Without `keep`, its whole context is computed again."""
        if keep:
            claim.saved = self.context_size(claim)
        else:
            claim.prompt += claim.computed
            claim.computed = 0
        if claim.slot is not None:
            self.last_process.pop(claim.slot, None)
        claim.slot, claim.parked = None, True

    def unpark(self, claim: Claim) -> None:
        """The claim has a slot again."""
        claim.parked, claim.saved = False, 0

    def free_slots(self) -> list[int]:
        """Slots without a last process first, then the least recently used first."""
        taken = {c.slot for c in self.claims.values()}
        order = {slot: position for position, slot in enumerate(self.last_process)}
        free = [slot for slot in range(self.slots) if slot not in taken]
        return sorted(free, key=lambda slot: order.get(slot, -1))


@dataclass(frozen=True, slots=True)
class Admit:
    """Give a waiting (or parked) call a slot."""

    call: int
    slot: int


@dataclass(frozen=True, slots=True)
class Park:
    """Take a stopped call out of its slot, which another call waits for."""

    call: int
    slot: int
    keep: bool = True  # save its context; False: it is computed again


@dataclass(frozen=True, slots=True)
class Grant:
    """Let a resident call compute this many more tokens."""

    call: int
    tokens: int


Decision = Admit | Park | Grant


def decide(state: DeviceState) -> list[Decision]:
    """The commands for the device now, in order. Changes nothing."""
    moves = list(_assign_slots(state))
    admitted = {move.call for move in moves if isinstance(move, Admit)}
    parked = {move.call for move in moves if isinstance(move, Park)}
    runnable = [
        claim
        for claim in state.claims.values()
        if (claim.slot is not None or claim.call in admitted)
        and claim.call not in parked
        and not claim.stopped
        and not claim.slow_reader
    ]
    return [*moves, *_grants(runnable, state)]


def _assign_slots(state: DeviceState) -> Iterable[Admit | Park]:
    """Slots for waiting calls, smallest virtual time first.

    When the first does not fit, none of those after it is admitted.
    """
    free = state.free_slots()
    resident: list[Claim] = [c for c in state.claims.values() if c.slot is not None]
    idle = [c for c in resident if c.stopped]
    waiting = [c for c in state.claims.values() if c.slot is None and not c.stopped]
    bytes_left = state.parked_bytes_left()
    for claim in sorted(waiting, key=lambda c: c.virtual):
        while not _fits(claim, resident, state) and idle and state.can_park:
            parked = idle.pop()
            resident = [c for c in resident if c.call != parked.call]
            free.append(parked.slot if parked.slot is not None else 0)
            size = state.context_size(parked)
            yield Park(parked.call, free[-1], keep=size <= bytes_left)
            bytes_left -= size if size <= bytes_left else 0
        if not _fits(claim, resident, state):
            return
        slot = next((s for s in free if state.last_process.get(s) == claim.process), free[0])
        free.remove(slot)
        resident.append(claim)
        yield Admit(claim.call, slot)


def _fits(claim: Claim, resident: list[Claim], state: DeviceState) -> bool:
    if claim.exclusive or any(c.exclusive for c in resident):
        return not resident
    used = sum(c.cells for c in resident)
    return len(resident) < state.slots and used + claim.cells <= state.cells


def _grants(runnable: list[Claim], state: DeviceState) -> Iterable[Grant]:
    """A quantum for each call that needs one.

    With more calls than places in a batch, only for the smallest virtual times.
    """
    if len(runnable) > state.width:
        yield from _batch_grants(runnable, state.width)
        return
    for claim in runnable:
        if not claim.prompt and claim.granted < limits.QUANTUM_TOKENS // 2:
            yield Grant(claim.call, limits.QUANTUM_TOKENS - claim.granted)
    yield from _prompt_grants([claim for claim in runnable if claim.prompt], state.turn)


def _prompt_grants(runnable: list[Claim], longest: int) -> Iterable[Grant]:
    """Prompts share the time of a step in turns; the length of a turn is proportional to weight.

    A turn is granted when half of the last one is left, so that no step runs without tokens. The
    last part of a prompt comes with a quantum for the answer: otherwise the call would lose a step
    between the two.
    """
    heaviest = max((claim.weight for claim in runnable), default=1.0)
    for claim in sorted(runnable, key=lambda c: c.virtual):
        share = claim.weight / heaviest
        turn = max(limits.CHUNK_MIN_TOKENS, int(longest * share))
        due = min(claim.prompt, turn)
        if claim.granted >= min(claim.prompt + 1, turn // 2):
            continue
        answer = limits.QUANTUM_TOKENS if due == claim.prompt else 0
        yield Grant(claim.call, due + answer - min(0, claim.granted))


def _batch_grants(runnable: list[Claim], width: int) -> Iterable[Grant]:
    """A short quantum for the calls next in line, one for each place in the batch that gets free.

    `width`: places in a batch.
    """
    # A last token is computed in the current step: the next in line must be ready when it ends.
    seated = sum(claim.granted > 1 for claim in runnable)
    waiting = sorted((c for c in runnable if c.granted <= 1), key=lambda c: c.virtual)
    for claim in islice(waiting, max(0, width - seated)):
        # No longer quantum: a call that runs ahead of a small share would then wait for long.
        quantum = min(claim.prompt, limits.CHUNK_TOKENS) or limits.SEAT_TOKENS
        yield Grant(claim.call, quantum - min(0, claim.granted))
