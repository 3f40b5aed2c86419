"""Where the contexts of idle processes are: in the slot that they used last, saved, or nowhere.

A plain table with two limits: the bytes of all saved contexts, and the cells of the pool, if slots
and saved contexts share one. It gives each saved context its number and decides which contexts are
dropped; the engine saves, loads and drops. A saved context belongs to a process, or is a shared
beginning, which any call of its domain may load. At a limit the least recently used contexts of the
domain with most of it are dropped, so one domain cannot evict another's.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TypeVar

from ..abi import limits
from ..driver import ContextSaved


@dataclass(frozen=True, slots=True)
class SlotContents:
    """What is in a slot: of the call that uses it, or that used it last."""

    process: int | None  # None: it has ended; its domain may still reuse the tokens
    domain: str = ""
    tokens: int = 0  # that the last call left; 0 while a call uses the slot
    used: int = 0  # contexts used later have larger numbers


@dataclass(slots=True)
class SavedContext:
    """A saved context in the engine."""

    number: int
    process: int | None  # None: a shared beginning
    domain: str
    tokens: int  # 0: unknown
    bytes: int  # an estimate until the engine has reported it
    used: int  # as in SlotContents


@dataclass(frozen=True, slots=True)
class Drop:
    """Drop a saved context."""

    number: int


@dataclass(frozen=True, slots=True)
class Clear:
    """Drop what is in an idle slot."""

    slot: int


@dataclass(slots=True)
class Contexts:
    """The contexts of the idle processes of one device."""

    kept_bytes: int = 0  # limit of all saved contexts; 0: the engine saves none
    context_bytes: int = 0  # fixed size of a saved context; each token in it adds token_bytes
    token_bytes: int = 0
    block_tokens: int = 0  # see Facts; 0: idle contexts hold no cells of a pool
    last_number: int = 0  # that was given to a saved context
    slots: dict[int, SlotContents] = field(default_factory=dict[int, SlotContents])  # oldest first
    saved: dict[int, SavedContext] = field(default_factory=dict[int, SavedContext])  # oldest first
    obsolete: set[int] = field(default_factory=set[int])  # numbers to be dropped next
    bytes: int = 0  # of all saved contexts
    uses: int = 0  # of contexts so far

    @property
    def surplus(self) -> bool:
        """Whether contexts are to be dropped."""
        return bool(self.obsolete) or self.bytes > self.kept_bytes

    def size(self, tokens: int) -> int:
        """Bytes of a saved context of this many tokens; 0: unknown."""
        return self.context_bytes + self.token_bytes * tokens if self.token_bytes else 0

    def cells(self, tokens: int) -> int:
        """Cells of the pool that so many tokens take: whole blocks."""
        block = self.block_tokens or 1
        return -(-tokens // block) * block

    def saved_cells(self, size: int) -> int:
        """Cells of the pool that a saved context of so many bytes takes."""
        pooled = self.block_tokens and self.token_bytes
        return self.cells(-(-size // self.token_bytes)) if pooled else 0

    def tokens(self, process: int) -> int:
        """Tokens of the longest context of a process."""
        in_slots = [one.tokens for one in self.slots.values() if one.process == process]
        saved = [one.tokens for one in self.saved.values() if one.process == process]
        return max([*in_slots, *saved], default=0)

    # --- slots ----------------------------------------------------------------------------------
    def enter(self, slot: int, process: int, domain: str) -> None:
        """A call of this process uses the slot: it is the most recently used one."""
        self.leave(slot, process, domain, 0)

    def leave(self, slot: int, process: int, domain: str, tokens: int) -> None:
        """The call that used the slot ended."""
        self.slots.pop(slot, None)
        self.slots[slot] = SlotContents(process, domain, tokens, self._use())

    def clear(self, slot: int) -> None:
        """The slot is empty."""
        self.slots.pop(slot, None)

    def process(self, slot: int) -> int | None:
        """The process that used the slot last."""
        contents = self.slots.get(slot)
        return contents.process if contents is not None else None

    def _use(self) -> int:
        self.uses += 1
        return self.uses

    # --- saved contexts -------------------------------------------------------------------------
    def save(self, number: int, contents: SlotContents) -> None:
        """The engine was told to save these contents of a slot."""
        self.last_number = max(self.last_number, number)
        self.saved[number] = self.planned(number, contents)
        self.bytes += self.saved[number].bytes

    def planned(self, number: int, contents: SlotContents) -> SavedContext:
        """These contents of a slot, saved."""
        size = self.size(contents.tokens)
        return SavedContext(
            number, contents.process, contents.domain, contents.tokens, size, contents.used
        )

    def share(self, number: int, domain: str) -> None:
        """The engine has saved a beginning for other calls of the domain."""
        self.saved[number] = SavedContext(number, None, domain, 0, 0, self._use())

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
            found.used = self._use()
            self.saved[number] = found

    def drop(self, number: int) -> None:
        found = self.saved.pop(number, None)
        self.bytes -= found.bytes if found is not None else 0
        self.obsolete.discard(number)

    # --- what the engine drops by itself ----------------------------------------------------------
    def forget(self, process: int) -> None:
        """The process has ended. What is in its slot stays there, for its domain."""
        for slot, one in self.slots.items():
            if one.process == process:
                self.slots[slot] = replace(one, process=None)
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


IdleContext = SlotContents | SavedContext
_Idle = TypeVar("_Idle", SavedContext, IdleContext)


@dataclass(frozen=True, slots=True)
class SlotEntry:
    """What happens to idle contexts when a call gets a slot."""

    save: int  # the slot's contents are saved under this number first; 0: they are not
    before: list[Drop | Clear]
    after: list[Drop | Clear]  # the call may reuse them: dropped when it has its slot


class ContextPlan:
    """The idle contexts as they will be after a decision. Changes nothing in the table."""

    def __init__(self, contexts: Contexts) -> None:
        self._contexts = contexts
        self._saved = dict(contexts.saved)
        self._slots = {slot: one for slot, one in contexts.slots.items() if one.tokens}
        self._numbers = count(contexts.last_number + 1)

    def drops(self) -> Iterable[Drop]:
        """Those that are of no more use, and as many others as exceed the limit of bytes."""
        yield from [self._drop(number) for number in sorted(self._contexts.obsolete)]
        yield from self._shrink_saved()

    def enter(self, slot: int, process: int, room: int) -> SlotEntry:
        """A call of the process gets the slot; idle contexts may have `room` cells then."""
        contents, drops, number = self._slots.pop(slot, None), list[Drop | Clear](), 0
        if contents is not None and self._is_worth_saving(contents, process):
            drops += self._shrink_saved(self._contexts.size(contents.tokens))
            number = next(self._numbers)
            self._saved[number] = self._contexts.planned(number, contents)
        others, own = self._shrink_pool(room, process)
        save = number if number in self._saved else 0
        return SlotEntry(save, [one for one in (*drops, *others) if one != Drop(number)], own)

    def share(self, tokens: int) -> int:
        """The number for a shared beginning of a prompt of so many tokens; 0: none is saved.

        Contexts that share blocks need none: each is a beginning for others.
        """
        shares = not self._contexts.block_tokens and self._fits(self._contexts.size(tokens))
        return next(self._numbers) if shares else 0

    def _is_worth_saving(self, contents: SlotContents, process: int) -> bool:
        if contents.process in (None, process) or contents.tokens < limits.SHARE_TOKENS:
            return False
        return self._fits(self._contexts.size(contents.tokens))

    def _fits(self, size: int) -> bool:
        return 0 < self._contexts.kept_bytes >= size

    def _shrink_saved(self, room: int = 0) -> list[Drop]:
        """Drop saved contexts until `room` bytes are free."""
        dropped: list[Drop] = []
        excess = sum(one.bytes for one in self._saved.values()) + room - self._contexts.kept_bytes
        while excess > 0 and self._saved:
            oldest = _oldest(self._saved.values(), lambda one: one.bytes)
            excess -= oldest.bytes
            dropped.append(self._drop(oldest.number))
        return dropped

    def _shrink_pool(
        self, room: int, process: int
    ) -> tuple[list[Drop | Clear], list[Drop | Clear]]:
        """Drop idle contexts until they have at most `room` cells, those of the process last.

        Those of other processes, and those of the process.
        """
        drops: tuple[list[Drop | Clear], list[Drop | Clear]] = [], []
        if not self._contexts.block_tokens:
            return drops
        excess = sum(map(self._cells, self._idle())) - room
        while excess > 0 and (idle := self._idle()):
            others = [one for one in idle if one.process != process]
            oldest = _oldest(others or idle, self._cells)
            excess -= self._cells(oldest)
            drops[not others].append(self._give_up(oldest))
        return drops

    def _idle(self) -> list[IdleContext]:
        return [*self._slots.values(), *self._saved.values()]

    def _cells(self, one: IdleContext) -> int:
        if isinstance(one, SavedContext):
            return self._contexts.saved_cells(one.bytes)
        return self._contexts.cells(one.tokens)

    def _give_up(self, one: IdleContext) -> Drop | Clear:
        if isinstance(one, SavedContext):
            return self._drop(one.number)
        slot = next(slot for slot, other in self._slots.items() if other is one)
        del self._slots[slot]
        return Clear(slot)

    def _drop(self, number: int) -> Drop:
        self._saved.pop(number, None)
        return Drop(number)


def _oldest(contexts: Collection[_Idle], size: Callable[[_Idle], int]) -> _Idle:
    """The least recently used context of the domain that has most."""
    domains = Counter[str]()
    for one in contexts:
        domains[one.domain] += size(one)
    [(largest, _)] = domains.most_common(1)
    return min((one for one in contexts if one.domain == largest), key=lambda one: one.used)
