"""The contexts of parked calls: saved at once, then copied into shared memory.

A context is saved where the library has it, which takes no time where slots share blocks. Its copy
in shared memory is made in slices between steps; then the first copy is freed, so that each context
is counted once. A new process of the engine gets the parked calls of the last one with the regions
of their contexts. Such a context is loaded only if its header and its checksum are right; otherwise
its tokens are computed again, and the log says why. Used by the engine thread.
"""

import mmap
import sys
from collections.abc import Sequence
from dataclasses import replace

from llmasos.drivers.frames import Frame
from llmasos.kernel.abi.errors import DeviceFault
from llmasos.kernel.driver import token_digest

from . import frames
from .calls import EngineCall
from .prefix import Saved
from .shared_memory import HEADER_BYTES, ContextHeader, Region, SharedMemory, checksum
from .shared_state import SharedState
from .slots import ContextSlot, Slots

SLICE_BYTES = 256 * 1024  # copied between two steps: 0.3 ms


class CopyJob:
    """The copy of one context into shared memory, in slices."""

    def __init__(self, saved: Saved, header: ContextHeader, memory: SharedMemory) -> None:
        state = saved.state
        if state is None:
            raise DeviceFault("there is nothing to copy")
        self._memory, self._header = memory, header
        self._pieces = state.pieces()
        self._region = memory.allocate(HEADER_BYTES + header.size)
        self._mapped: mmap.mmap = memory.map(self._region)
        self._at, self._checksum = HEADER_BYTES, 0

    def slice(self) -> SharedState | None:
        """Copy the next slice; the state when it is complete."""
        end = self._at + SLICE_BYTES
        for piece in self._pieces:
            self._mapped[self._at : self._at + len(piece)] = piece
            self._checksum = checksum(piece, self._checksum)
            self._at += len(piece)
            if self._at >= end:
                return None
        header = replace(self._header, checksum=self._checksum)
        self._mapped[:HEADER_BYTES] = header.encode()
        self._mapped.close()
        return SharedState(self._memory, self._region, header, trusted=True)

    def abort(self) -> None:
        """Free what was copied."""
        self._mapped.close()
        self._memory.free(self._region)


class Parking:
    """The parked calls of one engine."""

    def __init__(
        self, slots: Slots, limit: int, memory: SharedMemory | None, identity: ContextHeader
    ) -> None:
        self._slots, self._limit = slots, limit
        self._memory, self._identity = memory, identity
        self._bytes = 0  # of all saved contexts
        self._waiting: dict[int, EngineCall] = {}  # whose contexts are to be copied, by call
        self._job: CopyJob | None = None  # of the first of these
        self.notices: list[Frame] = []  # for the kernel, after the steps so far

    @property
    def busy(self) -> bool:
        """Whether there is something to copy or to send."""
        return bool(self._waiting or self.notices)

    def park(self, call: EngineCall, *, keep: bool) -> None:
        """Save its context and free its slot. A context that cannot be saved is recomputed."""
        slot = call.slot
        if slot is None:  # it is parked
            if not keep:
                self.recompute(call)
            return
        call.saved = self._slots.saved(slot) if keep else None
        if call.saved is not None:
            self._bytes += call.saved.nbytes
        if call.saved is None or self._bytes > self._limit:
            self.drop(call)
            call.drop(list(slot.tokens), tainted=slot.tainted)
        if self._memory is not None:
            self.notices.append(_parked(call))
            if call.saved is not None and call.saved.state is not None:
                self._waiting[call.admission.call] = call
        call.slot = None
        self._slots.clear(slot)

    def attach(self, call: EngineCall, region: Region | None, size: int) -> None:
        """A call that the last process had parked; `region`: its context."""
        tokens, admission = call.parked_tokens, call.admission
        if self._memory is None or region is None:
            call.drop(tokens, tainted=call.tainted)
            if size:
                _log(call, "it is not in shared memory")
            return
        header = self._header(tokens, size)
        state = SharedState(self._memory, region, header, trusted=False)
        call.saved = Saved(
            state, tokens, call.exact, admission.domain, admission.history, call.tainted
        )
        self._bytes += call.saved.nbytes

    def check(self, call: EngineCall) -> None:
        """Drop a saved context that is not what it has to be."""
        saved = call.saved
        if saved is None or not isinstance(saved.state, SharedState):
            return
        if reason := saved.state.problem():
            self.recompute(call, reason)

    def load(self, call: EngineCall, slot: ContextSlot) -> None:
        """Put its context into the slot; its tokens are computed again if that fails."""
        if call.saved is None:
            return
        try:
            self._slots.load(slot, call.saved, len(call.saved.tokens))
        except DeviceFault as error:
            self.recompute(call, error.message)

    def purge(self, call: EngineCall) -> None:
        """Its domain was purged: its tokens are computed again, and shared with nobody."""
        call.tainted = True
        self.recompute(call)

    def free(self, region: Region | None) -> None:
        """Free the context of a call that cannot continue."""
        if self._memory is not None and region is not None:
            self._memory.free(region)

    def recompute(self, call: EngineCall, reason: str = "") -> None:
        """Drop its saved context: its tokens are computed again after UNPARK."""
        if reason:
            _log(call, reason)
        saved = call.saved
        if saved is not None:
            call.drop(saved.tokens, tainted=saved.tainted or call.tainted)
            self.drop(call)

    def drop(self, call: EngineCall) -> None:
        """Its saved context is used no more."""
        if call is next(iter(self._waiting.values()), None) and self._job is not None:
            self._job.abort()
            self._job = None
        self._waiting.pop(call.admission.call, None)
        if call.saved is not None:
            self._bytes -= call.saved.nbytes
            call.saved.free()
            call.saved = None

    def copy(self) -> None:
        """Copy a slice of the first waiting context."""
        call = next(iter(self._waiting.values()), None)
        if call is None or call.saved is None or self._memory is None:
            return
        saved = call.saved
        try:
            if self._job is None:
                header = self._header(saved.tokens, saved.nbytes)
                self._job = CopyJob(saved, header, self._memory)
            state = self._job.slice()
        except (DeviceFault, MemoryError):  # it stays where it is, and ends with this process
            if self._job is not None:
                self._job.abort()
                self._job = None
            del self._waiting[call.admission.call]
            return
        if state is not None:
            self._job = None
            del self._waiting[call.admission.call]
            saved.free()
            saved.state = state
            self.notices.append([
                frames.SHARED, call.admission.call, *state.region, state.nbytes
            ])  # fmt: skip

    def _header(self, tokens: Sequence[int], size: int) -> ContextHeader:
        digest = token_digest(tokens).hex()
        return replace(self._identity, tokens=digest, count=len(tokens), size=size)


def _parked(call: EngineCall) -> Frame:
    """PARKED: what a new process needs to continue the call."""
    one = call.admission
    tokens = frames.tokens_out(one.prompt.tokens)
    head = [frames.PARKED, one.call, one.history, one.domain, tokens]
    return [*head, one.sampling, call.state().encode()]


def _log(call: EngineCall, reason: str) -> None:
    number = call.admission.call
    sys.stderr.write(f"call {number}: its saved context is not loaded: {reason}\n")
    sys.stderr.flush()
