"""The slots of a context and the reuse of their contents.

A call reuses the longest prefix of its prompt that its domain has computed: in its own slot, in
another slot, or in a saved context. When another call is computing a longer common prefix, it waits
for that call: sixteen agents with one system prompt compute it once. When a slot is assigned to
another process, the kernel decides whether what is in it is saved, so that it is restored by a
copy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault
from llmasos.kernel.driver import ContextSaved

from .context import Context, Exactness
from .prefix import ContextStore, Saved
from .prefix_tree import common
from .shared_state import SharedState


@dataclass(slots=True)
class ContextSlot:
    """The contents of one sequence id of the context."""

    number: int
    tokens: list[int] = field(default_factory=list[int])
    exact: int = 0  # see Saved
    domain: str = ""  # that may reuse the tokens
    history: int | None = None  # of which process; None: it has ended
    call: int | None = None  # that uses the slot; None: free
    tainted: bool = False  # its domain was purged during the call: not shared
    prompt: list[int] = field(default_factory=list[int])  # of the call


@dataclass(frozen=True, slots=True)
class Reuse:
    """What a call reuses."""

    tokens: int  # in its slot
    source: int = 0  # number of the saved context that they come from; 0: from a slot
    saved: Sequence[ContextSaved] = ()  # a beginning that was saved for other calls


class Slots:
    """All slots of one context."""

    def __init__(self, context: Context, exactness: Exactness) -> None:
        self._context = context
        self._exactness = exactness
        self.store = ContextStore(exact=exactness.piece_tokens > 0)
        self._slots = [ContextSlot(number) for number in range(context.slots)]

    def free_slot(self, number: int) -> ContextSlot:
        """A slot by its number. DeviceFault when it is in use or does not exist."""
        if not 0 <= number < len(self._slots):
            raise DeviceFault(f"no slot {number}: the context has {len(self._slots)} slots")
        slot = self._slots[number]
        if slot.call is not None:
            raise DeviceFault(f"slot {number} is used by call {slot.call}")
        return slot

    # --- shared prefixes --------------------------------------------------------------------------
    def enter(
        self, slot: ContextSlot, domain: str, history: int, prompt: list[int], save: int
    ) -> Sequence[ContextSaved]:
        """Assign a free slot to a prompt. The slot keeps its tokens up to the common prefix.

        What was in it is saved under the number `save`, unless that is 0; the report of this.
        """
        same = self._same(slot, domain, prompt)
        reports = [self._save_idle(slot, same, save)] if save else []
        kept = self._context.keep(slot.number, same)
        del slot.tokens[kept:]
        slot.exact = min(slot.exact, kept)
        slot.domain, slot.history, slot.prompt = domain, history, prompt
        return reports

    def _save_idle(self, slot: ContextSlot, same: int, number: int) -> ContextSaved:
        """Save the context of an idle process, unless the new prompt reuses nearly all of it."""
        if slot.history is None or len(slot.tokens) < same + limits.SHARE_TOKENS:
            return ContextSaved(number, 0)
        return self._put(number, self.saved(slot))

    def _put(self, number: int, saved: Saved | None) -> ContextSaved:
        if saved is None:
            return ContextSaved(number, 0)
        return ContextSaved(number, saved.nbytes, self.store.put(number, saved))

    def leader(self, slot: ContextSlot) -> ContextSlot | None:
        """The slot whose call is computing a longer prefix of this slot's prompt than exists."""
        best, longest = None, self._best(slot)[1] + limits.SHARE_TOKENS
        for other in self._slots:
            if other is slot or other.call is None or other.domain != slot.domain:
                continue
            if other.tainted:
                continue
            same = common(other.prompt, slot.prompt)
            shared = self._usable(same, same, slot.prompt)
            first = (len(other.tokens), -other.call) > (len(slot.tokens), -(slot.call or 0))
            if shared >= longest and first and len(other.tokens) < shared:
                best, longest = other, shared
        return best

    def adopt(self, slot: ContextSlot, share: int) -> Reuse:
        """Copy the longest computed prefix into the slot.

        It is saved for others under the number `share`, unless that is 0.
        """
        source, same = self._best(slot)
        if source is None or same < len(slot.tokens) + limits.SHARE_TOKENS:
            return Reuse(len(slot.tokens))
        reports = self._copy(source, slot, same, share)
        return Reuse(len(slot.tokens), source.number if isinstance(source, Saved) else 0, reports)

    def _best(self, slot: ContextSlot) -> tuple[ContextSlot | Saved | None, int]:
        """The longest computed prefix of the slot's prompt: its source and its length."""
        best: ContextSlot | Saved | None = None
        longest = len(slot.tokens)
        saved, same = self.store.find(slot.domain, slot.prompt)
        if saved is not None and (same := self._usable(same, saved.exact, slot.prompt)) > longest:
            best, longest = saved, same
        for other in self._slots:
            if other is slot:
                continue
            same = self._same(other, slot.domain, slot.prompt)
            # Of equal length: a copy between slots may be faster than one from memory.
            faster = self._context.copies_slots and isinstance(best, Saved) and same == longest
            if same > longest or faster:
                best, longest = other, same
        return best, longest

    def _same(self, slot: ContextSlot, domain: str, prompt: list[int]) -> int:
        if slot.domain != domain or slot.tainted:
            return 0
        return self._usable(common(slot.tokens, prompt), slot.exact, prompt)

    def _usable(self, same: int, exact: int, prompt: list[int]) -> int:
        """The reusable part of a common prefix.

        The last token is always computed for its logits; pieces are reused as a whole.
        """
        same = max(0, min(same, len(prompt) - 1))
        if not self._exactness.piece_tokens:
            return same
        return self._exactness.reusable(min(same, exact), len(prompt))

    def _copy(
        self, source: "ContextSlot | Saved", slot: ContextSlot, same: int, share: int
    ) -> Sequence[ContextSaved]:
        """Load a context and truncate it to `same` tokens; save the prefix if others may reuse it.

        A slot is copied directly where that is faster: on a GPU, and where slots share KV blocks.
        """
        if self._context.copies_slots and isinstance(source, ContextSlot):
            self._context.keep(slot.number, 0)
            self._context.copy(source.number, slot.number)
            kept = self._context.keep(slot.number, same)
            slot.tokens, slot.exact = source.tokens[:kept], min(source.exact, kept)
            return ()
        saved = source if isinstance(source, Saved) else self.save(source)
        self.load(slot, saved, same)
        if not share or (isinstance(source, Saved) and len(saved.tokens) < 2 * same):
            return ()
        prefix = self.saved(slot)
        if prefix is not None:
            prefix.history = None
        return [self._put(share, prefix)]

    def saved(self, slot: ContextSlot) -> Saved | None:
        """A copy of its context; None if there is no memory for it."""
        try:
            return self.save(slot)
        except (DeviceFault, MemoryError):
            return None

    # --- whole contexts ---------------------------------------------------------------------------
    def save(self, slot: ContextSlot) -> Saved:
        state = self._context.save(slot.number) if slot.tokens else None
        tokens, tainted = list(slot.tokens), slot.tainted
        return Saved(state, tokens, slot.exact, slot.domain, slot.history, tainted)

    def load(self, slot: ContextSlot, saved: Saved, tokens: int) -> None:
        """Put the first `tokens` of a saved context into a slot, in place of what it holds."""
        self._context.keep(slot.number, 0)
        slot.tokens, slot.exact = [], 0
        if tokens and saved.state is not None:
            if isinstance(saved.state, SharedState):
                data = saved.state.payload()
                self._context.load_bytes(slot.number, len(saved.tokens), data)
            else:
                self._context.load(slot.number, saved.state)
            kept = self._context.keep(slot.number, tokens)
            slot.tokens, slot.exact = saved.tokens[:kept], min(saved.exact, kept)
            slot.tainted = slot.tainted or saved.tainted

    def remove_last(self, slot: ContextSlot | None, count: int) -> None:
        """Remove the last `count` tokens of a slot."""
        if slot is not None and count:
            kept = self._context.keep(slot.number, len(slot.tokens) - count)
            del slot.tokens[kept:]

    def clear(self, slot: ContextSlot) -> None:
        self._context.keep(slot.number, 0)
        slot.tokens, slot.exact, slot.domain = [], 0, ""
        slot.history, slot.call, slot.prompt = None, None, []
        slot.tainted = False

    def clear_idle(self, number: int) -> None:
        """Drop what is in a slot, unless a call uses it."""
        slot = self._slots[number]
        if slot.call is None:
            self.clear(slot)

    def leave(self, slot: ContextSlot) -> None:
        """Free the slot of a call that ended. Its tokens stay for reuse."""
        slot.call, slot.prompt = None, []
        if slot.tainted:
            self.clear(slot)

    def purge(self, domain: str) -> None:
        """Drop the contexts of a domain after the erasure of a part of its data.

        A slot in use is not shared from now on, and is cleared when its call ends.
        """
        self.store.purge(domain)
        for slot in self._slots:
            if slot.domain == domain and slot.call is None:
                self.clear(slot)
            elif slot.domain == domain:
                slot.tainted = True

    def forget(self, history: int) -> None:
        """Release the contexts of a process that ended.

        Its domain may reuse its slot until the slot is assigned to another prompt.
        """
        self.store.forget(history)
        for slot in self._slots:
            if slot.history == history and slot.call is None:
                slot.history = None
