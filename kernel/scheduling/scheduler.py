"""Who runs next, in which slot, for how many tokens, and which contexts are saved: pure functions.

Weighted fair queueing over tokens: each process has a virtual time that grows by tokens computed
(prompt and answer alike) divided by its weight, and the smallest virtual time runs first. The
device's clock is the virtual time that every running process would have if the shares were exact.
A new process, or one that was idle, starts at that clock, so idle time earns no credit and new
processes starve nobody. Prefill is not a phase: a call has tokens left to compute, and some of them
are its prompt.

Prompts are fed in three groups: those of short calls, the one with the fewest tokens left first;
then those that are neither short nor long; then long ones. In the last two groups the order is that
of the last grants. While a short call is active, also one that decodes, a long prompt waits, but at
most AGING_S for its next piece.

No await, no I/O, no wall clock: the same code runs against a simulated device.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from ..abi import limits
from ..driver import ContextSaved, Step
from .contexts import Clear, ContextPlan, Contexts, Drop
from .moves import Admit, Decision, Grant, Order, Park


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
    domain: str = ""  # contexts are shared between equal domains only
    purged: bool = False  # its domain was purged: nobody else may use its context
    save: int = 0  # number of the context that was in its slot; 0: none, or the save is reported
    share: int = 0  # number for a shared beginning
    begun: bool = False  # what it reuses is in its slot
    whole: int = 0  # prompt tokens to compute when it began; until then an estimate
    fed_at: float = 0.0  # when it began or was last fed
    last_grant: int = 0  # number of its last grant

    @property
    def short(self) -> bool:
        """Whether it has few tokens left to compute, of prompt and answer."""
        return self.left < limits.SHORT_TOKENS

    @property
    def left(self) -> int:
        """Tokens that it will compute at most."""
        return self.cells - self.computed

    @property
    def long(self) -> bool:
        """Whether its prompt would stall the others if it were fed in one step. It stays long to
        its end: the cost of a token grows with the context."""
        return self.whole > limits.LONG_TOKENS


@dataclass(slots=True)
class DeviceState:
    """The calls and slots of one device."""

    slots: int
    width: int
    cells: int
    claims: dict[int, Claim] = field(default_factory=dict[int, Claim])  # by call, oldest first
    contexts: Contexts = field(default_factory=Contexts)  # of idle processes
    # Process -> its virtual time, for idle processes whose virtual time is above the clock.
    virtual_lead: dict[int, float] = field(default_factory=dict[int, float])
    clock: float = 0.0
    can_park: bool = True
    parked_bytes: int = 0  # limit for the saved contexts of all parked claims
    turn: int = limits.PROMPT_QUANTUM_TOKENS  # tokens of one prompt before the next prompt's turn
    ordered: bool = False  # the engine feeds prompts in the order that it is given
    order: Order | None = None  # the last one
    grants: int = 0  # that were made

    def add(self, claim: Claim) -> None:
        claim.virtual = max(self.virtual_lead.pop(claim.process, 0.0), self.clock)
        # An estimate until it begins: what its process has computed is reused.
        claim.whole = claim.prompt - self.contexts.tokens(claim.process)
        self.claims[claim.call] = claim

    def admit(self, claim: Claim, move: Admit) -> None:
        """The claim has a slot, for the first time or again."""
        before = self.contexts.slots.get(move.slot)
        if move.save and before is not None:
            self.contexts.save(move.save, before)
        self.contexts.last_number = max(self.contexts.last_number, move.share)
        self.contexts.enter(move.slot, claim.process, claim.domain)
        claim.slot, claim.save, claim.share = move.slot, move.save, move.share or claim.share
        claim.parked, claim.saved = False, 0

    def grant(self, claim: Claim, tokens: int) -> None:
        """Allow a claim to compute this many more tokens."""
        claim.granted += tokens
        self.grants += 1
        claim.last_grant = self.grants
        if len(self.claims) <= min(self.width, self.slots):
            claim.uncontended_tokens = max(0, claim.granted)

    def running_weight(self) -> float:
        """The weight of all claims that have a slot and are not stopped."""
        return sum([c.weight for c in self.claims.values() if c.slot is not None and not c.stopped])

    def advance(
        self, claim: Claim, step: Step, now: float, running_weight: float | None = None
    ) -> None:
        """Account for a reported step. `running_weight`: see there; None: compute it."""
        if step.recompute:
            claim.prompt = claim.whole = step.recompute
            claim.computed = 0
        if running_weight is None:
            running_weight = self.running_weight()
        self._charge(claim, step.fed + step.tokens, running_weight)
        claim.granted -= step.fed + step.tokens + step.cached
        claim.computed += step.fed + step.tokens + step.cached
        if not claim.begun:
            claim.begun, claim.whole, claim.fed_at = True, claim.prompt - step.cached, now
        claim.prompt = max(0, claim.prompt - step.fed - step.cached)
        if step.fed:
            claim.fed_at = now
            if self.order is not None and self.order.once == claim.call:
                self.order = _remaining(self.order, {*self.order.calls} - {claim.call})
        for saved in step.saved:
            self._record(claim, saved)
        self.contexts.touch(step.source)

    def _record(self, claim: Claim, saved: ContextSaved) -> None:
        """The engine has saved a context for a claim's admission, or not."""
        if saved.number == claim.save:
            claim.save = 0
        if saved.number == claim.share and claim.purged:
            # Purged after the engine had saved it, or before: then the engine still has it.
            self.contexts.obsolete.add(saved.number)
            return
        if saved.number == claim.share:
            self.contexts.share(saved.number, claim.domain)
        self.contexts.report(saved)

    def _charge(self, claim: Claim, tokens: int, running_weight: float) -> None:
        """Account for tokens computed for a claim.

        Uncontended tokens never raise its virtual time above the clock.
        """
        uncontended = min(claim.uncontended_tokens, tokens)
        claim.uncontended_tokens -= uncontended
        claim.virtual = min(
            claim.virtual + uncontended / claim.weight, max(claim.virtual, self.clock)
        )
        claim.virtual += (tokens - uncontended) / claim.weight
        self.clock += tokens / max(running_weight, claim.weight)

    def resume(self, claim: Claim) -> None:
        """Continue a stopped claim. The share that it did not use while stopped is lost."""
        claim.stopped = False
        claim.virtual = max(claim.virtual, self.clock)

    def drop(self, call: int) -> None:
        claim = self.claims.pop(call, None)
        if claim is not None:
            self._leave(claim)
            self.virtual_lead[claim.process] = claim.virtual
            self.virtual_lead = {
                p: v for p, v in self.virtual_lead.items() if self.claims and v > self.clock
            }

    def _leave(self, claim: Claim) -> None:
        """The claim has ended; its context stays in its slot."""
        if claim.slot is not None and (claim.purged or not claim.computed):
            self.contexts.clear(claim.slot)  # so does the engine
        elif claim.slot is not None:
            self.contexts.leave(claim.slot, claim.process, claim.domain, claim.computed)
        if claim.save:  # the engine has not saved it
            self.contexts.drop(claim.save)

    def purge(self, domain: str) -> None:
        """A part of the domain's data was erased: the engine drops its unused contexts."""
        self.contexts.purge(domain)
        for claim in self.claims.values():
            admitted = claim.slot is not None or claim.parked
            claim.purged |= admitted and claim.domain == domain

    def lost(self) -> None:
        """The engine has died, with the contexts of idle processes.

        The claims in its slots are dropped before this; parked ones may stay.
        """
        self.contexts.lost()
        self.order = None

    def parked_bytes_left(self) -> int:
        """Bytes left for the contexts of parked claims."""
        return self.parked_bytes - sum(claim.saved for claim in self.claims.values())

    def context_size(self, claim: Claim) -> int:
        """Bytes of its context if it is saved now, with all granted tokens already computed."""
        return self.contexts.size(min(claim.cells, claim.computed + max(0, claim.granted)))

    def park(self, claim: Claim, *, keep: bool) -> None:
        """Take a claim out of its slot. Without `keep`, its whole context is computed again."""
        if keep:
            claim.saved = self.context_size(claim)
        else:
            claim.saved = 0
            claim.prompt += claim.computed
            claim.whole, claim.computed = claim.prompt, 0
        if claim.slot is not None:
            self.contexts.clear(claim.slot)
        claim.slot, claim.parked = None, True

    def free_slots(self) -> list[int]:
        """Slots without a last process first, then the least recently used first."""
        taken = {c.slot for c in self.claims.values()}
        contents = self.contexts.slots.items()
        order = {slot: one.used for slot, one in contents if one.process is not None}
        free = [slot for slot in range(self.slots) if slot not in taken]
        return sorted(free, key=lambda slot: order.get(slot, -1))


def decide(state: DeviceState, now: float) -> list[Decision]:
    """The commands for the device now, in order. Changes nothing. `now`: monotonic seconds."""
    moves = list(_assign_slots(state))
    admitted = {move.call for move in moves if isinstance(move, Admit)}
    parked = {move.call for move in moves if isinstance(move, Park)}
    resident = [
        claim
        for claim in state.claims.values()
        if (claim.slot is not None or claim.call in admitted) and claim.call not in parked
    ]
    runnable = [claim for claim in resident if not claim.stopped and not claim.slow_reader]
    grants = list(_grants(runnable, state))
    return [*moves, *_order(resident, grants, state, now), *grants]


def _assign_slots(state: DeviceState) -> Iterable[Admit | Park | Drop | Clear]:
    """Slots for waiting calls, smallest virtual time first.

    When the first does not fit, none of those after it is admitted.
    """
    waiting = [c for c in state.claims.values() if c.slot is None and not c.stopped]
    if not waiting and not state.contexts.surplus:
        return
    plan = _SlotPlan(state)
    yield from plan.contexts.drops()
    for claim in sorted(waiting, key=lambda c: c.virtual):
        yield from plan.park_until_fits(claim)
        if not plan.fits(claim):
            return
        yield from plan.admit(claim)


class _SlotPlan:
    """Slots and cells as they will be after a decision. Changes nothing in the state.

    The calls with a slot have the cells of their largest contexts. Idle contexts and those of
    parked calls have what is left of the pool: a call that needs it takes it, in this order.
    """

    def __init__(self, state: DeviceState) -> None:
        self._state = state
        self.contexts = ContextPlan(state.contexts)
        self._free = state.free_slots()
        self._resident = [c for c in state.claims.values() if c.slot is not None]
        self._stopped = [c for c in self._resident if c.stopped]
        parked = [c for c in state.claims.values() if c.parked]
        # Call -> cells of its saved context.
        self._parked = {c.call: state.contexts.saved_cells(c.saved) for c in parked if c.saved}
        self._bytes_left = state.parked_bytes_left()

    def fits(self, claim: Claim) -> bool:
        """Whether it can get a slot."""
        if claim.exclusive or any(c.exclusive for c in self._resident):
            return not self._resident
        room = len(self._resident) < self._state.slots
        return room and self._state.contexts.cells(claim.cells) <= self._cells_left()

    def _cells_left(self) -> int:
        """Cells that no call with a slot may need."""
        cells = self._state.contexts.cells
        return self._state.cells - sum(cells(c.cells) for c in self._resident)

    def park_until_fits(self, claim: Claim) -> Iterable[Park]:
        """Take stopped calls out of their slots."""
        while not self.fits(claim) and self._stopped and self._state.can_park:
            parked = self._stopped.pop()
            self._resident = [c for c in self._resident if c.call != parked.call]
            self._free.append(parked.slot if parked.slot is not None else 0)
            size = self._state.context_size(parked)
            keep = size <= self._bytes_left
            if keep:
                self._bytes_left -= size
                self._parked[parked.call] = self._state.contexts.saved_cells(size)
            yield Park(parked.call, keep=keep)

    def admit(self, claim: Claim) -> Iterable[Drop | Clear | Park | Admit]:
        """Give it a slot, and give up the contexts whose cells it needs."""
        own = (s for s in self._free if self._state.contexts.process(s) == claim.process)
        slot = next(own, self._free[0])
        self._free.remove(slot)
        self._resident.append(claim)
        self._parked.pop(claim.call, None)
        left = self._cells_left()
        entry = self.contexts.enter(slot, claim.process, left - sum(self._parked.values()))
        yield from entry.before
        yield from self._drop_parked(left)
        share = 0 if claim.parked else self.contexts.share(claim.prompt)
        yield Admit(claim.call, slot, entry.save, share)
        yield from entry.after

    def _drop_parked(self, cells: int) -> Iterable[Park]:
        """Drop the saved contexts of parked calls, the oldest first, until they fit."""
        while sum(self._parked.values()) > cells:
            call = next(iter(self._parked))
            del self._parked[call]
            yield Park(call, keep=False)


def _order(
    resident: Sequence[Claim], grants: Sequence[Grant], state: DeviceState, now: float
) -> Iterable[Order]:
    """The order in which prompts are fed, if it is not that of the last order.

    It names some call whenever there is one to feed, unless a short call decodes: the report of
    each of its steps runs the scheduler again, so that a long prompt waits for no timer.
    """
    if not state.ordered:
        return
    new = {grant.call: at for at, grant in enumerate(grants)}
    active = [claim for claim in resident if claim.granted > 0 or claim.call in new]
    feeding = [claim for claim in active if claim.prompt]
    if not feeding:
        return
    # A grant moves its call to the end: prompts take turns.
    feeding.sort(key=lambda c: (c.call in new, new.get(c.call, c.last_grant)))
    short = sorted((claim for claim in feeding if claim.short), key=lambda c: c.left)
    middle = [claim for claim in feeding if not claim.short and not claim.long]
    long = [claim for claim in feeding if not claim.short and claim.long]
    once = 0
    if any(claim.short for claim in active):
        aged = [claim for claim in long if claim.begun and now - claim.fed_at >= limits.AGING_S]
        long = aged[:1]  # one in a step: the short calls wait for each of them
        once = long[0].call if long else 0
    order = Order(tuple(claim.call for claim in (*short, *middle, *long)), once)
    if order != _remaining(state.order, {claim.call for claim in feeding}):
        yield order


def _remaining(order: Order | None, feeding: set[int]) -> Order | None:
    """The last order without the calls that have nothing to feed now."""
    if order is None:
        return None
    calls = tuple(call for call in order.calls if call in feeding)
    return Order(calls, order.once if order.once in feeding else 0)


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
