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
    stopped: bool = False
    parked: bool = False  # admitted before, its context saved outside a slot
    behind: bool = False  # its reader is too slow: no further quantum


@dataclass(slots=True)
class Table:
    """What a device holds."""

    slots: int
    width: int
    cells: int
    claims: dict[int, Claim] = field(default_factory=dict[int, Claim])  # by call, oldest first
    last: dict[int, int] = field(default_factory=dict[int, int])  # slot -> process last in it
    ahead: dict[int, float] = field(default_factory=dict[int, float])  # idle, beyond the clock
    clock: float = 0.0
    can_park: bool = True

    def add(self, claim: Claim) -> None:
        claim.virtual = max(self.ahead.pop(claim.process, 0.0), self.clock)
        self.claims[claim.call] = claim

    def charge(self, claim: Claim, tokens: int) -> None:
        """So many tokens have been computed for a claim."""
        claim.virtual += tokens / claim.weight
        working = [c.weight for c in self.claims.values() if c.slot is not None and not c.stopped]
        self.clock += tokens / max(sum(working), claim.weight)

    def go_on(self, claim: Claim) -> None:
        """It was stopped: what it did not use then is not owed to it."""
        claim.stopped = False
        claim.virtual = max(claim.virtual, self.clock)

    def drop(self, call: int) -> None:
        claim = self.claims.pop(call, None)
        if claim is not None:
            self.ahead[claim.process] = claim.virtual
            self.ahead = {p: v for p, v in self.ahead.items() if self.claims and v > self.clock}

    def free_slots(self) -> list[int]:
        taken = {c.slot for c in self.claims.values()}
        return [slot for slot in range(self.slots) if slot not in taken]


@dataclass(frozen=True, slots=True)
class Admit:
    """Give a waiting (or parked) call a slot."""

    call: int
    slot: int


@dataclass(frozen=True, slots=True)
class Park:
    """Save a stopped call's context: somebody waits for its slot."""

    call: int
    slot: int


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
    return [*moves, *_grants(able, table.width)]


def _places(table: Table) -> Iterable[Admit | Park]:
    """Slots for those who wait, smallest virtual time first; nobody overtakes who does not fit."""
    free = table.free_slots()
    held = sum(c.cells for c in table.claims.values() if c.slot is not None)
    waiting = [c for c in table.claims.values() if c.slot is None and not c.stopped]
    idle = [c for c in table.claims.values() if c.slot is not None and c.stopped]
    for claim in sorted(waiting, key=lambda c: c.virtual):
        while (not free or held + claim.cells > table.cells) and idle and table.can_park:
            out = idle.pop()
            held -= out.cells
            free.append(out.slot if out.slot is not None else 0)
            yield Park(out.call, free[-1])
        if not free or held + claim.cells > table.cells:
            return
        slot = next((s for s in free if table.last.get(s) == claim.process), free[0])
        free.remove(slot)
        held += claim.cells
        yield Admit(claim.call, slot)


def _grants(able: list[Claim], width: int) -> Iterable[Grant]:
    """A quantum for whoever needs one; when seats are short, for the smallest virtual times."""
    if len(able) <= width:
        for claim in able:
            if claim.granted < limits.QUANTUM_TOKENS // 2:
                yield Grant(claim.call, claim.prompt + limits.QUANTUM_TOKENS - claim.granted)
        return
    # One token left is already asked for: the next in line must be ready when that step ends.
    seated = sum(claim.granted > 1 for claim in able)
    hungry = sorted((c for c in able if c.granted <= 1), key=lambda c: c.virtual)
    for claim in islice(hungry, max(0, width - seated)):
        quantum = limits.CHUNK_TOKENS if claim.prompt else limits.QUANTUM_TOKENS
        yield Grant(claim.call, quantum - min(0, claim.granted))
