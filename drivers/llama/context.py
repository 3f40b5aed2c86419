# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""The KV cache and the batches of llama.cpp. Imported in child processes only.

An invalid argument ends the process (an assert, a C++ exception, a bad pointer), so every argument
is checked here before the call: token ids, positions, sequence ids, sizes, and that logits exist
where they are read. An error that llama.cpp returns is a DeviceFault.
"""

import ctypes
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmasos.drivers.local.context import Exactness, Run, SavedState, StateSize
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault

from .library import lib
from .model import LlamaModel
from .settings import LlamaSettings

Floats = NDArray[np.float32]
_BF16 = 30  # of enum ggml_type
_PIECE_BYTES = 64 * 1024
_WHOLE_CELLS = 256  # in use: more are divided among the threads


@dataclass(slots=True)
class StateBytes:
    """Implements local.SavedState: a copy in memory."""

    data: bytearray

    @property
    def nbytes(self) -> int:
        return len(self.data)

    def pieces(self) -> Iterator[memoryview]:
        whole = memoryview(self.data)
        for at in range(0, len(whole), _PIECE_BYTES):
            yield whole[at : at + _PIECE_BYTES]

    def free(self) -> None:
        self.data = bytearray()


class LlamaContext:
    """llama.cpp's context: the KV cache of all slots, and one batch. Used by one thread."""

    def __init__(self, model: LlamaModel, settings: LlamaSettings) -> None:
        slots = settings.slots
        self.batch_tokens = max(settings.batch, slots)
        self.slots, self._window = slots, settings.window
        self.vocab_size = model.vocab.size
        self._hidden_size: int = lib.llama_model_n_embd(model.handle)
        self.threads = settings.threads
        self._on_gpu, self._flash = settings.gpu_layers > 0, settings.flash
        # On a GPU a slot is copied on the device: through the CPU it takes many times as long.
        self.copies_slots = self._on_gpu
        # On a GPU the kernel of a matrix product depends on its number of rows, and the split of
        # attention on the longest of all contexts: a short trial would not detect that.
        self.exactness = Exactness(
            limits.PIECE_TOKENS, alone=True, answers_together=not self._on_gpu
        )
        self._handle: Any = lib.llama_init_from_model(
            model.handle, _parameters(settings, self.batch_tokens)
        )
        if not self._handle:
            raise DeviceFault(
                f"llama.cpp cannot create a context of {slots} slots of {settings.window} tokens"
            )
        self._memory: Any = lib.llama_get_memory(self._handle)
        self._logits_at: frozenset[int] = frozenset()
        self._copied: int | None = None  # the slot of a copy that is completed by the next batch
        self._thread: int | None = None  # the thread that used it first
        self._build_batch()

    def _build_batch(self) -> None:
        """Allocate the batch as numpy arrays, which are filled 19 times faster than by ctypes."""
        size = self.batch_tokens
        self._token = np.zeros(size, np.int32)
        self._pos = np.zeros(size, np.int32)
        self._wants_logits = np.zeros(size, np.int8)
        self._slot_ids = np.arange(self.slots, dtype=np.int32)  # `_slot_pointers` point into this
        self._slot_pointers = np.zeros(size, np.uintp)
        self._slots_per_token = np.ones(size, np.int32)
        int32s = ctypes.POINTER(ctypes.c_int32)
        batch = lib.llama_batch()
        batch.token = self._token.ctypes.data_as(int32s)
        batch.pos = self._pos.ctypes.data_as(int32s)
        batch.n_seq_id = self._slots_per_token.ctypes.data_as(int32s)
        batch.seq_id = self._slot_pointers.ctypes.data_as(ctypes.POINTER(int32s))
        batch.logits = self._wants_logits.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        self._batch: Any = batch

    @property
    def exact_runs(self) -> int:
        """Flash attention of several threads computes a single row in another order.

        It does so when more than 256 cells are in use. Other kernels depend on the number of rows.
        """
        if self._on_gpu or not self._flash:
            return 0
        return self._window if self.threads == 1 else _WHOLE_CELLS

    @property
    def trial_sizes(self) -> Sequence[int]:
        """A model that aborts does so before the first call."""
        if self._on_gpu:  # a GPU loads the kernels of a batch size at its first use
            return 1, min(self.batch_tokens, self._window - 1)
        return (1,)

    def decode(self, runs: Sequence[Run]) -> dict[int, int]:
        """Compute one batch; the index of the first logits of each slot that asks for them."""
        self._check_use()
        if not runs:
            raise DeviceFault("the batch has no runs")
        if len({run.slot for run in runs}) < len(runs):
            raise DeviceFault(f"two of the {len(runs)} runs of a batch are of one slot")
        at = 0
        asked: dict[int, int] = {}
        logits_at: list[int] = []
        # In slot order: llama.cpp computes only adjacent slots together.
        for run in sorted(runs, key=lambda run: run.slot):
            end = self._check(run, at)
            self._token[at:end] = run.tokens
            self._pos[at:end] = np.arange(run.first, run.first + len(run.tokens))
            slot_id = self._slot_ids.ctypes.data + run.slot * self._slot_ids.itemsize
            self._slot_pointers[at:end] = slot_id
            self._wants_logits[at:end] = 0
            if run.asks:
                asked[run.slot] = end - run.asks
                self._wants_logits[end - run.asks : end] = 1
                logits_at += range(end - run.asks, end)
            at = end
        self._batch.n_tokens = at
        self._logits_at = frozenset()
        result: int = lib.llama_decode(self._handle, self._batch)
        if result:
            raise DeviceFault(f"llama_decode returned {result} for {at} tokens")
        self._logits_at = frozenset(logits_at)
        self._copied = None
        return asked

    def _check_use(self, slot: int = 0) -> None:
        """Raises DeviceFault when the use would crash llama.cpp.

        That is a closed context, a second thread or an invalid slot.
        """
        self._thread = self._thread or threading.get_ident()
        if not self._handle or self._thread != threading.get_ident():
            raise DeviceFault("the context is closed, or used by a second thread")
        if not 0 <= slot < self.slots:
            raise DeviceFault(f"no slot {slot}: the context has {self.slots} slots")

    def _check(self, run: Run, at: int) -> int:
        """The index after a run at index `at` of the batch. Raises DeviceFault if it is invalid."""
        self._check_use(run.slot)
        end = at + len(run.tokens)
        if not run.tokens or end > self.batch_tokens:
            raise DeviceFault(f"the batch has {end} tokens; 1 to {self.batch_tokens} are allowed")
        if not 0 <= run.asks <= len(run.tokens):
            raise DeviceFault(f"a run of {len(run.tokens)} tokens asks for {run.asks} logits")
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
        return end

    def logits(self, index: int) -> Floats:
        """The logits after a token of the last batch: memory of C, valid until the next batch."""
        self._check_use()
        if index not in self._logits_at:
            raise DeviceFault(f"no logits at index {index}")
        pointer = lib.llama_get_logits_ith(self._handle, index)
        if not pointer:
            raise DeviceFault(f"no logits at index {index}")
        return np.ctypeslib.as_array(pointer, (self.vocab_size,))

    def keep_hidden(self, on: bool) -> None:
        """Whether the next batches keep hidden states. Each of their tokens must ask for logits."""
        self._check_use()
        lib.llama_set_embeddings(self._handle, on)

    def hidden(self, index: int) -> Floats:
        """The hidden state that the logits at this index were computed from, as `logits`."""
        self.logits(index)
        pointer = lib.llama_get_embeddings_ith(self._handle, index)
        if not pointer:
            raise DeviceFault(f"no hidden state at index {index}")
        return np.ctypeslib.as_array(pointer, (self._hidden_size,))

    def length(self, slot: int) -> int:
        """Tokens in a slot."""
        self._check_use(slot)
        last: int = lib.llama_memory_seq_pos_max(self._memory, slot)
        return last + 1

    def keep(self, slot: int, tokens: int) -> int:
        """Truncate a slot to its first `tokens`; the number that was kept: these, or 0.

        llama.cpp cannot truncate the state of some models, for example recurrent ones. Then the
        slot is emptied, and the caller computes all tokens again.
        """
        length = self.length(slot)
        if not 0 <= tokens <= length:
            raise DeviceFault(f"cannot keep {tokens} tokens of slot {slot}, which has {length}")
        if tokens and lib.llama_memory_seq_rm(self._memory, slot, tokens, -1):
            return tokens
        lib.llama_memory_seq_rm(self._memory, slot, -1, -1)
        return 0

    def copy(self, slot: int, other: int) -> None:
        """Copy a whole slot to an empty one; llama.cpp aborts on a part, unless unified."""
        self._check_use(slot)
        if slot == other or self.length(other):
            raise DeviceFault(f"slot {other} is not empty")
        lib.llama_memory_seq_cp(self._memory, slot, other, -1, -1)
        self._copied = other

    def _complete_copy(self) -> None:
        """Complete a copy, which is required before save and load.

        llama.cpp copies at the next batch. So an arbitrary token is computed after the last one of
        the copy, and removed again.
        """
        slot = self._copied
        if slot is not None:
            length = self.length(slot)
            self.decode([Run(slot, length, [0], asks=0)])
            self.keep(slot, length)

    def save(self, slot: int) -> "StateBytes":
        """A slot's state. It can be loaded into any slot of a context with the same settings."""
        self._check_use(slot)
        self._complete_copy()
        size: int = lib.llama_state_seq_get_size(self._handle, slot)
        state = bytearray(size)
        target = (ctypes.c_uint8 * size).from_buffer(state)
        written: int = lib.llama_state_seq_get_data(self._handle, target, size, slot)
        if not 0 < written <= size:
            raise DeviceFault(f"cannot save the state of slot {slot} ({size} bytes)")
        return StateBytes(state)

    def load(self, slot: int, state: SavedState) -> None:
        self._check_use(slot)
        if not isinstance(state, StateBytes) or not state.data:
            raise DeviceFault("cannot load an empty state")
        self._load(slot, (ctypes.c_uint8 * len(state.data)).from_buffer(state.data))

    def load_bytes(self, slot: int, tokens: int, data: memoryview) -> None:
        """The bytes have their number of tokens in them."""
        self._check_use(slot)
        if self.length(slot) or not data:
            raise DeviceFault(f"cannot load {len(data)} bytes into slot {slot}")
        self._load(slot, (ctypes.c_uint8 * len(data)).from_buffer(data))
        if (loaded := self.length(slot)) != tokens:
            self.keep(slot, 0)
            raise DeviceFault(f"the state has {loaded} tokens, not {tokens}")

    def _load(self, slot: int, source: "ctypes.Array[ctypes.c_uint8]") -> None:
        self._complete_copy()
        size = len(source)
        read: int = lib.llama_state_seq_set_data(self._handle, source, size, slot)
        if read != size:
            raise DeviceFault(f"cannot load a state of {size} bytes into slot {slot}")

    def state_size(self) -> StateSize:
        """Measured: the fixed part and a token."""
        sizes: list[int] = []
        for first in range(2):
            self.decode([Run(0, first, [0], asks=0)])
            sizes.append(self.save(0).nbytes)
        self.keep(0, 0)
        token = max(1, sizes[1] - sizes[0])
        return StateSize(max(0, sizes[0] - token), token)

    def close(self) -> None:
        """Free the context."""
        handle, self._handle = self._handle, None
        if handle:
            lib.llama_free(handle)

    def set_threads(self, threads: int) -> None:
        """Set the number of threads. Called between two steps."""
        self._check_use()
        self.threads = threads
        lib.llama_set_n_threads(self._handle, threads, threads)


def _parameters(settings: LlamaSettings, batch_tokens: int) -> Any:
    flash = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED, lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters = lib.llama_context_default_params()
    parameters.n_ctx = settings.slots * settings.window
    parameters.n_batch = parameters.n_ubatch = batch_tokens
    parameters.n_seq_max = settings.slots
    parameters.n_threads = parameters.n_threads_batch = settings.threads
    parameters.flash_attn_type = flash[0] if settings.flash else flash[1]
    if settings.deterministic and settings.flash and settings.gpu_layers <= 0:
        # If keys and values have one type, the order in which llama.cpp's flash attention sums
        # depends on the batch: a single row of 512 cells or more and 64 rows or more have orders of
        # their own. With a key type other than that of the values (F16), each row is
        # computed separately, so a result does not depend on other sequences or the piece size. A
        # GPU has no kernel for two types: there, engine.py computes each sequence in a batch of its
        # own.
        parameters.type_k = _BF16
    # Disabled for a model on the CPU: llama.cpp would compute its long prompts on a GPU.
    parameters.op_offload = settings.gpu_layers != 0
    # Not set by default: attention of a token then reads its own slot only, else the pool of all.
    parameters.kv_unified = settings.unified
    # Layers with sliding-window attention keep all cells: else no slot could be truncated.
    parameters.swa_full = True
    parameters.no_perf = True
    return parameters
