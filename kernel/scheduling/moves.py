"""What the scheduler decides: commands for a device, in order."""

from collections.abc import Sequence
from dataclasses import dataclass

from .contexts import Clear, Drop


@dataclass(frozen=True, slots=True)
class Admit:
    """Give a waiting (or parked) call a slot."""

    call: int
    slot: int
    save: int = 0  # save what is in the slot under this number first; 0: do not
    share: int = 0  # number under which a beginning of its prompt may be saved for other calls


@dataclass(frozen=True, slots=True)
class Park:
    """Take a stopped call out of its slot, which another call waits for.

    Of a call that is parked: drop its saved context, whose cells another call needs.
    """

    call: int
    keep: bool = True  # save its context; False: it is computed again


@dataclass(frozen=True, slots=True)
class Grant:
    """Let a resident call compute this many more tokens."""

    call: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Order:
    """Feed the prompts of these calls only, in this order, until the next order."""

    calls: Sequence[int]
    once: int = 0  # one of these that is fed in one step only; 0: none


Decision = Admit | Park | Drop | Clear | Order | Grant
