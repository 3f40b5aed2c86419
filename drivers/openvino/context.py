"""The slots of a paged model: their block tables, one mixed batch a step, saved contexts."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llmasos.drivers.local.context import Exactness, Run, SavedState, StateSize
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault

from .blocks import BLOCK_TOKENS, BlockCopy, BlockTable, BlockTables
from .model import Floats, PagedModel
from .settings import OpenVinoSettings
from .steps import ROWS, Part, inputs


@dataclass(slots=True)
class SavedBlocks:
    """Implements local.SavedState: the blocks of a sequence, which other sequences may share."""

    tables: BlockTables
    table: BlockTable
    model: PagedModel
    freed: bool = False

    @property
    def nbytes(self) -> int:
        """As if no other sequence shared its blocks."""
        return len(self.table.blocks) * self.model.block_bytes

    def pieces(self) -> Iterator[memoryview]:
        """Of each layer all blocks."""
        for view in self.model.views:
            for block in self.table.blocks:
                yield view[block].data

    def free(self) -> None:
        if not self.freed:
            self.freed = True
            self.tables.release(self.table)


class PagedContext:
    """Implements local.Context. The last block of the model is for additional rows."""

    copies_slots = True  # slots share blocks
    # A row has the same bits in every step of two rows or more, and in every run of two tokens or
    # more, with keys and values in F16, or in 8 bits with a scale for each token.
    exactness = Exactness(BLOCK_TOKENS, alone=False, answers_together=True)

    def __init__(self, model: PagedModel, settings: OpenVinoSettings, vocab_size: int) -> None:
        self.slots, self._window = settings.slots, settings.window
        self.batch_tokens = max(settings.batch, settings.slots)
        self.vocab_size, self.threads = vocab_size, settings.threads
        # A deterministic engine computes whole blocks of a prompt, so a step may exceed the size.
        self._most = self.batch_tokens + 2 * BLOCK_TOKENS * settings.slots
        self._model = model
        self._spare = model.blocks - 1
        self._pairs = not settings.deterministic  # there a token may have neighbours or not
        self._tables = BlockTables(settings.slots, self._spare)
        self._rows = 0  # of the output that a run asked for
        self._output: Floats | None = None
        self._thread: int | None = None  # the thread that used it first

    @property
    def exact_runs(self) -> int:
        """All: a token that is computed alone is computed as a run of two."""
        return self._window if self._pairs else 0

    @property
    def trial_sizes(self) -> Sequence[int]:
        """Every size of a small step: the first step of a size takes milliseconds longer.

        Then a part of a prompt, twice: the second time shows how long its tokens take.
        """
        part = min(limits.CHUNK_TOKENS, self.batch_tokens, self._window)
        return (*range(1, ROWS + 1), part, part)

    # --- one batch --------------------------------------------------------------------------------
    def decode(self, runs: Sequence[Run]) -> dict[int, int]:
        """Compute one batch; the index of the first logits of each slot that asks for them."""
        self._check(runs)
        self._rows, self._output = 0, None
        computed = self._paired(runs)
        self._copy(self._tables.extend([(run.slot, len(run.tokens)) for run in computed]))
        parts = [Part(r.first, r.tokens, self._tables.blocks(r.slot), r.asks) for r in computed]
        try:
            self._output = self._model.compute(inputs(parts, self._spare))
        except DeviceFault:
            for run in runs:
                self._tables.truncate(run.slot, run.first)
            raise
        for run in runs if computed is not runs else ():
            self._tables.truncate(run.slot, run.first + 1)
        asked: dict[int, int] = {}
        for run in runs:
            if run.asks:
                asked[run.slot] = self._rows
                self._rows += run.asks
        return asked

    def _paired(self, runs: Sequence[Run]) -> Sequence[Run]:
        """A token that is computed alone with another one after it, which is removed again.

        The step has a second row anyway. So the results are those of longer runs.
        """
        run = runs[0]
        full = run.first + 1 >= self._window
        if not self._pairs or len(runs) > 1 or len(run.tokens) > 1 or full:
            return runs
        return [Run(run.slot, run.first, [*run.tokens, 0], 2 * run.asks)]

    def _check(self, runs: Sequence[Run]) -> None:
        """DeviceFault for a batch that OpenVINO would compute wrongly or crash on."""
        self._check_use()
        if not runs:
            raise DeviceFault("the batch has no runs")
        if len({run.slot for run in runs}) < len(runs):
            raise DeviceFault(f"two of the {len(runs)} runs of a batch are of one slot")
        at = 0
        for run in runs:
            at += len(run.tokens)
            if not run.tokens or at > self._most:
                raise DeviceFault(f"the batch has {at} tokens; 1 to {self._most} are allowed")
            if not 0 <= run.asks <= len(run.tokens):
                raise DeviceFault(f"a run of {len(run.tokens)} tokens asks for {run.asks} logits")
            self._check_run(run)

    def _check_run(self, run: Run) -> None:
        length, last = self.length(run.slot), run.first + len(run.tokens) - 1
        if run.first != length:
            raise DeviceFault(
                f"slot {run.slot} has {length} tokens; a run cannot start at position {run.first}"
            )
        if last >= self._window:
            raise DeviceFault(
                f"position {last} of slot {run.slot} exceeds the window of {self._window} tokens"
            )
        if min(run.tokens) < 0 or max(run.tokens) >= self.vocab_size:
            raise DeviceFault(
                f"a token id is out of range: the vocabulary has 0 to {self.vocab_size - 1}"
            )

    def _check_use(self, slot: int = 0) -> None:
        self._thread = self._thread or threading.get_ident()
        if self._thread != threading.get_ident():
            raise DeviceFault("the context is used by a second thread")
        if not 0 <= slot < self.slots:
            raise DeviceFault(f"no slot {slot}: the context has {self.slots} slots")

    def logits(self, index: int) -> Floats:
        """The logits after a token of the last batch; valid until the next one."""
        self._check_use()
        if self._output is None or not 0 <= index < self._rows:
            raise DeviceFault(f"no logits at index {index}")
        scores: Floats = self._output[index]
        return scores

    def keep_hidden(self, on: bool) -> None:
        """The graph has no output for them."""

    def hidden(self, index: int) -> Floats:
        """The logits: see `keep_hidden`."""
        return self.logits(index)

    # --- slots ------------------------------------------------------------------------------------
    def length(self, slot: int) -> int:
        """Tokens in a slot."""
        self._check_use(slot)
        return self._tables.length(slot)

    def keep(self, slot: int, tokens: int) -> int:
        """Truncate a slot to its first `tokens`; the number that was kept: these."""
        self._check_use(slot)
        self._tables.truncate(slot, tokens)
        return tokens

    def copy(self, slot: int, other: int) -> None:
        """Let an empty slot share the blocks of another one."""
        self._check_use(slot)
        self._check_use(other)
        self._tables.copy(slot, other)

    def _copy(self, copies: Sequence[BlockCopy]) -> None:
        for view in self._model.views if copies else ():
            for one in copies:
                view[one.target] = view[one.source]

    def save(self, slot: int) -> "SavedBlocks":
        """A slot's blocks, shared with the slot: nothing is copied."""
        self._check_use(slot)
        return SavedBlocks(self._tables, self._tables.capture(slot), self._model)

    def load(self, slot: int, state: SavedState) -> None:
        """Let an empty slot share saved blocks."""
        self._check_use(slot)
        if not isinstance(state, SavedBlocks) or state.tables is not self._tables:
            raise DeviceFault("cannot load a state of another context")
        if state.freed:
            raise DeviceFault("cannot load a state that was freed")
        self._tables.restore(slot, state.table)

    def load_bytes(self, slot: int, tokens: int, data: memoryview) -> None:
        """Copy saved blocks into free ones. DeviceFault when there are too few of these."""
        self._check_use(slot)
        count = -(-tokens // BLOCK_TOKENS)
        if self.length(slot) or len(data) != count * self._model.block_bytes:
            raise DeviceFault(f"cannot load {len(data)} bytes into slot {slot}")
        self._tables.extend([(slot, tokens)])
        blocks, at = list(self._tables.blocks(slot)), 0
        for view in self._model.views:
            rows = np.frombuffer(data, np.uint8, count * view.shape[1], at)
            view[blocks] = rows.reshape(count, -1)
            at += rows.nbytes

    def state_size(self) -> StateSize:
        """Whole blocks are saved."""
        token = -(-self._model.block_bytes // BLOCK_TOKENS)
        return StateSize(self._model.block_bytes, token)

    def set_threads(self, threads: int) -> None:
        self._check_use()
        self.threads = threads
        self._model.use_threads(threads)
