"""Slots, and what lies in them: who continues where, who copies from whom, what is kept aside.

A call goes on from the longest beginning of its prompt that its domain has computed: in its own
slot, in another's, or in a saved context. When another call is just computing such a beginning, it
waits for that one: sixteen agents with one system prompt compute it once. What an idle process
leaves in a slot is saved when the slot goes to somebody else, so that it comes back by a copy.
"""

from dataclasses import dataclass, field

from llmasos.kernel import limits
from llmasos.kernel.errors import DeviceFault

from .cpp import Context
from .prefix import Kept, Saved, common


@dataclass(slots=True)
class Slot:
    """What lies in the context at one sequence id."""

    number: int
    tokens: list[int] = field(default_factory=list[int])
    exact: int = 0  # of the first tokens: see Saved
    domain: str = ""  # who may share them
    history: int | None = None  # whose they are; None: of a process that is gone
    call: int | None = None  # who computes here; None: free
    tainted: bool = False  # its domain was purged while somebody computed: not for others
    prompt: list[int] = field(default_factory=list[int])  # of that call: what will lie here


class Slots:
    """Every slot of one context. `pieces`: of a deterministic engine, the size of its cuts."""

    def __init__(self, context: Context, *, pieces: int = 0, kept: Kept | None = None) -> None:
        self._context = context
        self._pieces = pieces
        self._kept = kept or Kept()
        self._slots = [Slot(number) for number in range(context.slots)]

    def free(self, number: int) -> Slot:
        """A slot by its number. DeviceFault when it is taken or does not exist."""
        if not 0 <= number < len(self._slots):
            raise DeviceFault(f"slot {number} of {len(self._slots)}")
        slot = self._slots[number]
        if slot.call is not None:
            raise DeviceFault(f"slot {number} is taken by call {slot.call}")
        return slot

    # --- beginnings that are shared ---------------------------------------------------------------
    def enter(self, slot: Slot, domain: str, history: int, prompt: list[int]) -> None:
        """A prompt comes into a free slot. What the slot holds stays if the prompt begins so."""
        same = self._same(slot, domain, prompt)
        if slot.history not in (None, history):
            self._keep_aside(slot, same)
        kept = self._context.keep(slot.number, same)
        del slot.tokens[kept:]
        slot.exact = min(slot.exact, kept)
        slot.domain, slot.history, slot.prompt = domain, history, prompt

    def _keep_aside(self, slot: Slot, same: int) -> None:
        """Save what an idle process left, unless the newcomer goes on from nearly all of it."""
        if slot.history is not None and len(slot.tokens) >= same + limits.SHARE_TOKENS:
            saved = self.saved(slot)
            if saved is not None:
                self._kept.put(saved)

    def leader(self, slot: Slot) -> Slot | None:
        """Who is about to compute more of this slot's prompt than there is to go on from yet."""
        best, most = None, self._best(slot)[1] + limits.SHARE_TOKENS
        for other in self._slots:
            if other is slot or other.call is None or other.domain != slot.domain:
                continue
            if other.tainted:
                continue
            same = common(other.prompt, slot.prompt)
            shared = self._usable(same, same, slot.prompt)
            ahead = (len(other.tokens), -other.call) > (len(slot.tokens), -(slot.call or 0))
            if shared >= most and ahead and len(other.tokens) < shared:
                best, most = other, shared
        return best

    def adopt(self, slot: Slot) -> int:
        """Go on from the longest beginning that there is; how many tokens the slot then holds."""
        source, same = self._best(slot)
        if source is not None and same >= len(slot.tokens) + limits.SHARE_TOKENS:
            self._copy(source, slot, same)
        return len(slot.tokens)

    def _best(self, slot: Slot) -> tuple[Slot | Saved | None, int]:
        """The longest beginning of the slot's prompt, and where it lies; saved ones first."""
        best: Slot | Saved | None = None
        most = len(slot.tokens)
        for saved in self._kept.find(slot.domain, slot.prompt):
            same = self._usable(common(saved.tokens, slot.prompt), saved.exact, slot.prompt)
            if same > most:
                best, most = saved, same
        for other in self._slots:
            if other is slot:
                continue
            same = self._same(other, slot.domain, slot.prompt)
            nearer = self._context.on_gpu and isinstance(best, Saved) and same == most
            if same > most or nearer:
                best, most = other, same
        return best, most

    def _same(self, slot: Slot, domain: str, prompt: list[int]) -> int:
        if slot.domain != domain or slot.tainted:
            return 0
        return self._usable(common(slot.tokens, prompt), slot.exact, prompt)

    def _usable(self, same: int, exact: int, prompt: list[int]) -> int:
        """The last token is computed again for its scores; pieces are shared whole."""
        same = max(0, min(same, len(prompt) - 1))
        if not self._pieces:
            return same
        return min(same, exact) // self._pieces * self._pieces

    def _copy(self, source: "Slot | Saved", slot: Slot, same: int) -> None:
        """Load a whole context and cut it; keep the beginning, if several may want it.

        On a GPU a slot is copied there: through the processor it takes many times as long.
        """
        if self._context.on_gpu and isinstance(source, Slot):
            self._context.keep(slot.number, 0)
            self._context.copy(source.number, slot.number)
            kept = self._context.keep(slot.number, same)
            slot.tokens, slot.exact = source.tokens[:kept], min(source.exact, kept)
            return
        saved = source if isinstance(source, Saved) else self.save(source)
        self.load(slot, saved, same)
        self._kept.touch(saved)
        if isinstance(source, Slot) or len(saved.tokens) >= 2 * same:
            tight = self.saved(slot)
            if tight is not None:
                tight.history = None
                self._kept.put(tight)

    def saved(self, slot: Slot) -> Saved | None:
        """Its context in memory; None where there is no room for it."""
        try:
            return self.save(slot)
        except (DeviceFault, MemoryError):
            return None

    # --- whole contexts ---------------------------------------------------------------------------
    def save(self, slot: Slot) -> Saved:
        state = self._context.save(slot.number) if slot.tokens else bytearray()
        tokens, tainted = list(slot.tokens), slot.tainted
        return Saved(state, tokens, slot.exact, slot.domain, slot.history, tainted)

    def load(self, slot: Slot, saved: Saved, tokens: int) -> None:
        """Put the first `tokens` of a saved context into a slot, in place of what it holds."""
        self._context.keep(slot.number, 0)
        slot.tokens, slot.exact = [], 0
        if tokens:
            self._context.load(slot.number, saved.state)
            kept = self._context.keep(slot.number, tokens)
            slot.tokens, slot.exact = saved.tokens[:kept], min(saved.exact, kept)
            slot.tainted = saved.tainted

    def clear(self, slot: Slot) -> None:
        self._context.keep(slot.number, 0)
        slot.tokens, slot.exact, slot.domain = [], 0, ""
        slot.history, slot.call, slot.prompt = None, None, []
        slot.tainted = False

    def leave(self, slot: Slot) -> None:
        """The call ended; its tokens stay for whoever begins alike."""
        slot.call, slot.prompt = None, []
        if slot.tainted:
            self.clear(slot)

    def purge(self, domain: str) -> None:
        """What idle processes of a domain left is dropped: something of it was forgotten.

        What lies where somebody computes is shared with nobody from now on, and dropped when that
        call ends.
        """
        self._kept.purge(domain)
        for slot in self._slots:
            if slot.domain == domain and slot.call is None:
                self.clear(slot)
            elif slot.domain == domain:
                slot.tainted = True

    def forget(self, history: int) -> None:
        """A process is gone. What it left in a slot is its domain's until somebody writes there."""
        self._kept.forget(history)
        for slot in self._slots:
            if slot.history == history and slot.call is None:
                slot.history = None
