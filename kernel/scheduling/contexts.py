"""Where the contexts of idle processes are: in the slot that they used last, saved, or nowhere.

A plain table with a limit of bytes. It gives each saved context its number and decides which ones
are dropped; the engine saves, loads and drops by number. A saved context belongs to a process, or
is a shared beginning, which any call of its domain may load. At the limit the least recently used
contexts of the domain with most bytes are dropped, so one domain cannot evict another's.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count

from ..abi import limits
from ..driver import ContextSaved


@dataclass(frozen=True, slots=True)
class SlotContents:
    """What is in a slot: of the call that uses it, or that used it last."""

    process: int
    domain: str = ""
    tokens: int = 0  # that the last call left; 0 while a call uses the slot


@dataclass(slots=True)
class SavedContext:
    """A saved context in the engine."""

    number: int
    process: int | None  # None: a shared beginning
    domain: str
    tokens: int  # 0: unknown
    bytes: int  # an estimate until the engine has reported it


@dataclass(frozen=True, slots=True)
class Drop:
    """Drop a saved context."""

    number: int


@dataclass(slots=True)
class Contexts:
    """The contexts of the idle processes of one device."""

    kept_bytes: int = 0  # limit of all saved contexts; 0: the engine saves none
    context_bytes: int = 0  # fixed size of a saved context; each token in it adds token_bytes
    token_bytes: int = 0
    last_number: int = 0  # that was given to a saved context
    slots: dict[int, SlotContents] = field(default_factory=dict[int, SlotContents])  # oldest first
    saved: dict[int, SavedContext] = field(default_factory=dict[int, SavedContext])  # oldest first
    obsolete: set[int] = field(default_factory=set[int])  # numbers to be dropped next
    bytes: int = 0  # of all saved contexts

    @property
    def surplus(self) -> bool:
        """Whether contexts are to be dropped."""
        return bool(self.obsolete) or self.bytes > self.kept_bytes

    def size(self, tokens: int) -> int:
        """Bytes of a saved context of this many tokens; 0: unknown."""
        return self.context_bytes + self.token_bytes * tokens if self.token_bytes else 0

    def tokens(self, process: int) -> int:
        """Tokens of the longest context of a process."""
        in_slots = [one.tokens for one in self.slots.values() if one.process == process]
        saved = [one.tokens for one in self.saved.values() if one.process == process]
        return max([*in_slots, *saved], default=0)

    # --- slots ----------------------------------------------------------------------------------
    def enter(self, slot: int, process: int, domain: str) -> None:
        """A call of this process uses the slot: it is the most recently used one."""
        self.slots.pop(slot, None)
        self.slots[slot] = SlotContents(process, domain)

    def leave(self, slot: int, process: int, domain: str, tokens: int) -> None:
        """The call that used the slot ended."""
        self.slots.pop(slot, None)
        self.slots[slot] = SlotContents(process, domain, tokens)

    def clear(self, slot: int) -> None:
        """The slot is empty."""
        self.slots.pop(slot, None)

    def process(self, slot: int) -> int | None:
        """The process that used the slot last."""
        contents = self.slots.get(slot)
        return contents.process if contents is not None else None

    # --- saved contexts -------------------------------------------------------------------------
    def save(self, number: int, contents: SlotContents) -> None:
        """The engine was told to save these contents of a slot."""
        self.last_number = max(self.last_number, number)
        size = self.size(contents.tokens)
        self.saved[number] = SavedContext(
            number, contents.process, contents.domain, contents.tokens, size
        )
        self.bytes += size

    def share(self, number: int, domain: str) -> None:
        """The engine has saved a beginning for other calls of the domain."""
        self.saved[number] = SavedContext(number, None, domain, 0, 0)

    def report(self, report: ContextSaved) -> None:
        """The engine has saved a context, or not.

        Those of the same process that are beginnings of it are of no more use.
        """
        found = self.saved.get(report.number)
        if found is None:  # forgotten or dropped meanwhile, also by the engine
            return
        if not report.bytes:
            self.drop(report.number)
            return
        self.bytes += report.bytes - found.bytes
        found.bytes = report.bytes
        for other in report.beginnings:
            if other in self.saved and self.saved[other].process == found.process:
                self.obsolete.add(other)

    def touch(self, number: int) -> None:
        """A call has loaded this context: it is the most recently used one."""
        found = self.saved.pop(number, None)
        if found is not None:
            self.saved[number] = found

    def drop(self, number: int) -> None:
        found = self.saved.pop(number, None)
        self.bytes -= found.bytes if found is not None else 0
        self.obsolete.discard(number)

    # --- what the engine drops by itself ----------------------------------------------------------
    def forget(self, process: int) -> None:
        """The process has ended."""
        self.slots = {s: one for s, one in self.slots.items() if one.process != process}
        for saved in [one for one in self.saved.values() if one.process == process]:
            self.drop(saved.number)

    def purge(self, domain: str) -> None:
        """A part of the domain's data was erased. Contexts in use are not in this table."""
        self.slots = {
            slot: one for slot, one in self.slots.items() if one.domain != domain or not one.tokens
        }
        for saved in [one for one in self.saved.values() if one.domain == domain]:
            self.drop(saved.number)

    def lost(self) -> None:
        """The engine has died."""
        self.slots.clear()
        self.saved.clear()
        self.obsolete.clear()
        self.bytes = 0


class SavePlan:
    """The saved contexts as they will be after a decision. Changes nothing in the table."""

    def __init__(self, contexts: Contexts) -> None:
        self._contexts = contexts
        self._saved = dict(contexts.saved)
        self._numbers = count(contexts.last_number + 1)

    def drops(self) -> Iterable[Drop]:
        """Those that are of no more use, and as many others as exceed the limit."""
        yield from [self._drop(number) for number in sorted(self._contexts.obsolete)]
        yield from self._shrink()

    def save(self, slot: int, process: int) -> tuple[int, Iterable[Drop]]:
        """The number under which the slot's contents are saved before `process` gets the slot.

        0: they are not saved. And what is dropped to keep the limit.
        """
        contents = self._contexts.slots.get(slot)
        if contents is None or contents.process == process:
            return 0, ()
        size = self._contexts.size(contents.tokens)
        if contents.tokens < limits.SHARE_TOKENS or not self._fits(size):
            return 0, ()
        drops = self._shrink(size)
        number = next(self._numbers)
        self._saved[number] = SavedContext(
            number, contents.process, contents.domain, contents.tokens, size
        )
        return number, drops

    def share(self, tokens: int) -> int:
        """The number for a shared beginning of a prompt of so many tokens; 0: none is saved."""
        return next(self._numbers) if self._fits(self._contexts.size(tokens)) else 0

    def _fits(self, size: int) -> bool:
        return 0 < self._contexts.kept_bytes >= size

    def _shrink(self, room: int = 0) -> list[Drop]:
        """Drop contexts until `room` bytes are free."""
        dropped: list[Drop] = []
        excess = sum(one.bytes for one in self._saved.values()) + room - self._contexts.kept_bytes
        while excess > 0 and self._saved:
            domains = Counter[str]()
            for one in self._saved.values():
                domains[one.domain] += one.bytes
            [(largest, _)] = domains.most_common(1)
            oldest = next(one for one in self._saved.values() if one.domain == largest)
            excess -= oldest.bytes
            dropped.append(self._drop(oldest.number))
        return dropped

    def _drop(self, number: int) -> Drop:
        self._saved.pop(number, None)
        return Drop(number)
