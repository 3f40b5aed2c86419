"""Who runs next, on which slot, for how many tokens: a plain function of a device's state.

Weighted fair queueing over tokens: each process has a virtual time that grows by tokens computed
(prompt and answer alike) over its weight, and the smallest goes first. The device's clock is the
virtual time that everybody at work would have if the shares were exact; who was idle, or comes
anew, starts there, so nobody banks credit and nobody is starved by newcomers. Prefill is not a
phase: a call owes tokens, and some of them happen to be its prompt.

No await, no I/O, no clock of its own: it runs unchanged against a simulated device.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from . import limits


@dataclass(slots=True)
class Claim:
    """A call's claim on a device."""

    call: int
    process: int
    weight: float
    prompt: int  # tokens of it not computed yet
    cells: int  # tokens it may come to hold: prompt and answer
    virtual: float = 0.0  # tokens computed over weight, since the device came up
    slot: int | None = None
    granted: int = 0  # tokens it may compute without asking again; below 0: debt, see driver.py
    free: int = 0  # of those: given while nobody else wanted them
    stopped: bool = False
    parked: bool = False  # admitted before, its context saved outside a slot
    held: int = 0  # tokens of it that have been computed, and lie in its slot or are saved
    saved: int = 0  # bytes of its saved context, counted while it is parked
    behind: bool = False  # its reader is too slow: no further quantum
    alone: bool = False  # nobody else may hold a slot while it does


@dataclass(slots=True)
class Table:
    """What a device holds."""

    slots: int
    width: int
    cells: int
    claims: dict[int, Claim] = field(default_factory=dict[int, Claim])  # by call, oldest first
    # Slot -> process last in it, the least recently used slot first.
    last: dict[int, int] = field(default_factory=dict[int, int])
    ahead: dict[int, float] = field(default_factory=dict[int, float])  # idle, beyond the clock
    clock: float = 0.0
    can_park: bool = True
    parked_bytes: int = 0  # saved contexts may take so much
    context_bytes: int = 0  # a saved context takes this, and token_bytes for each token in it
    token_bytes: int = 0
    turn: int = limits.PROMPT_QUANTUM_TOKENS  # tokens of one prompt before another's turn

    def add(self, claim: Claim) -> None:
        claim.virtual = max(self.ahead.pop(claim.process, 0.0), self.clock)
        self.claims[claim.call] = claim

    def grant(self, claim: Claim, tokens: int) -> None:
        """It may compute so many more."""
        claim.granted += tokens
        if len(self.claims) <= min(self.width, self.slots):
            claim.free = max(0, claim.granted)

    def charge(self, claim: Claim, tokens: int) -> None:
        """So many tokens have been computed for a claim. What nobody else wanted is no debt."""
        free = min(claim.free, tokens)
        claim.free -= free
        claim.virtual = min(claim.virtual + free / claim.weight, max(claim.virtual, self.clock))
        claim.virtual += (tokens - free) / claim.weight
        working = [c.weight for c in self.claims.values() if c.slot is not None and not c.stopped]
        self.clock += tokens / max(sum(working), claim.weight)

    def go_on(self, claim: Claim) -> None:
        """It was stopped: what it did not use then is not owed to it."""
        claim.stopped = False
        claim.virtual = max(claim.virtual, self.clock)

    def drop(self, call: int) -> None:
        claim = self.claims.pop(call, None)
        if claim is not None:
            if claim.slot is not None:
                self.enter(claim.slot, claim.process)
            self.ahead[claim.process] = claim.virtual
            self.ahead = {p: v for p, v in self.ahead.items() if self.claims and v > self.clock}

    def enter(self, slot: int, process: int) -> None:
        """The process is in the slot, or was until now."""
        self.last.pop(slot, None)
        self.last[slot] = process

    def forget(self, process: int) -> None:
        """It will not come back: its slots are as good as new."""
        self.last = {slot: other for slot, other in self.last.items() if other != process}

    def room(self) -> int:
        """Bytes that are left for contexts of parked claims."""
        return self.parked_bytes - sum(claim.saved for claim in self.claims.values())

    def size(self, claim: Claim) -> int:
        """Bytes of its context if it is saved now; what is granted may be computed already."""
        if not self.token_bytes:
            return 0
        tokens = min(claim.cells, claim.held + max(0, claim.granted))
        return self.context_bytes + self.token_bytes * tokens

    def park(self, claim: Claim, *, keep: bool) -> None:
        """It leaves its slot; without its context, all of it is to be computed again."""
        if keep:
            claim.saved = self.size(claim)
        else:
            claim.prompt += claim.held
            claim.held = 0
        if claim.slot is not None:
            self.last.pop(claim.slot, None)
        claim.slot, claim.parked = None, True

    def unpark(self, claim: Claim) -> None:
        """It has a slot again."""
        claim.parked, claim.saved = False, 0

    def free_slots(self) -> list[int]:
        """Those that nobody will come back to, then the least recently used first."""
        taken = {c.slot for c in self.claims.values()}
        order = {slot: place for place, slot in enumerate(self.last)}
        free = [slot for slot in range(self.slots) if slot not in taken]
        return sorted(free, key=lambda slot: order.get(slot, -1))


@dataclass(frozen=True, slots=True)
class Admit:
    """Give a waiting (or parked) call a slot."""

    call: int
    slot: int


@dataclass(frozen=True, slots=True)
class Park:
    """Take a stopped call out of its slot: somebody waits for it."""

    call: int
    slot: int
    keep: bool = True  # save its context; else it is computed again


@dataclass(frozen=True, slots=True)
class Grant:
    """Let a resident call compute this many more tokens."""

    call: int
    tokens: int


Decision = Admit | Park | Grant


def decide(table: Table) -> list[Decision]:
    """What to tell the device now, in order. Changes nothing."""
    moves = list(_places(table))
    admitted = {move.call for move in moves if isinstance(move, Admit)}
    parked = {move.call for move in moves if isinstance(move, Park)}
    able = [
        claim
        for claim in table.claims.values()
        if (claim.slot is not None or claim.call in admitted)
        and claim.call not in parked
        and not claim.stopped
        and not claim.behind
    ]
    return [*moves, *_grants(able, table)]


def _places(table: Table) -> Iterable[Admit | Park]:
    """Slots for those who wait, smallest virtual time first; nobody overtakes who does not fit."""
    free = table.free_slots()
    inside: list[Claim] = [c for c in table.claims.values() if c.slot is not None]
    idle = [c for c in inside if c.stopped]
    waiting = [c for c in table.claims.values() if c.slot is None and not c.stopped]
    room = table.room()
    for claim in sorted(waiting, key=lambda c: c.virtual):
        while not _fits(claim, inside, table) and idle and table.can_park:
            out = idle.pop()
            inside = [c for c in inside if c.call != out.call]
            free.append(out.slot if out.slot is not None else 0)
            size = table.size(out)
            yield Park(out.call, free[-1], keep=size <= room)
            room -= size if size <= room else 0
        if not _fits(claim, inside, table):
            return
        slot = next((s for s in free if table.last.get(s) == claim.process), free[0])
        free.remove(slot)
        inside.append(claim)
        yield Admit(claim.call, slot)


def _fits(claim: Claim, inside: list[Claim], table: Table) -> bool:
    if claim.alone or any(c.alone for c in inside):
        return not inside
    held = sum(c.cells for c in inside)
    return len(inside) < table.slots and held + claim.cells <= table.cells


def _grants(able: list[Claim], table: Table) -> Iterable[Grant]:
    """A quantum for whoever needs one; when seats are short, for the smallest virtual times."""
    if len(able) > table.width:
        yield from _seats(able, table.width)
        return
    for claim in able:
        if not claim.prompt and claim.granted < limits.QUANTUM_TOKENS // 2:
            yield Grant(claim.call, limits.QUANTUM_TOKENS - claim.granted)
    yield from _prompts([claim for claim in able if claim.prompt], table.turn)


def _prompts(able: list[Claim], longest: int) -> Iterable[Grant]:
    """Prompts take turns in a step's time: a turn is as long as the weight is large.

    Half a turn ahead, so that no step goes without. The last part of a prompt comes with a quantum
    for the answer, or the call would lose a step between the two.
    """
    heaviest = max((claim.weight for claim in able), default=1.0)
    for claim in sorted(able, key=lambda c: c.virtual):
        share = claim.weight / heaviest
        turn = max(limits.CHUNK_MIN_TOKENS, int(longest * share))
        due = min(claim.prompt, turn)
        if claim.granted >= min(claim.prompt + 1, turn // 2):
            continue
        answer = limits.QUANTUM_TOKENS if due == claim.prompt else 0
        yield Grant(claim.call, due + answer - min(0, claim.granted))


def _seats(able: list[Claim], width: int) -> Iterable[Grant]:
    """A short quantum for the next in line, one for each seat that is getting free."""
    # One token left is already asked for: the next in line must be ready when that step ends.
    seated = sum(claim.granted > 1 for claim in able)
    hungry = sorted((c for c in able if c.granted <= 1), key=lambda c: c.virtual)
    for claim in islice(hungry, max(0, width - seated)):
        # Not a token more: who gets ahead of a small share would wait long for the others.
        quantum = min(claim.prompt, limits.CHUNK_TOKENS) or limits.SEAT_TOKENS
        yield Grant(claim.call, quantum - min(0, claim.granted))
