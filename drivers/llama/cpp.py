# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""llama.cpp through its ctypes layer. Imported in child processes only.

An invalid argument ends the process (an assert, a C++ exception, a bad pointer), so every argument
is checked here before the call: token ids, positions, sequence ids, sizes, and that logits exist
where they are read. An error that llama.cpp returns is a DeviceFault.
"""

import ctypes
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from llama_cpp import llama_cpp as _untyped
from numpy.typing import NDArray

from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError

from .frames import LlamaSettings

lib = cast("Any", _untyped)
Floats = NDArray[np.float32]
_CONTROL = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
_NAMED, _RSTRIP = _CONTROL | lib.LLAMA_TOKEN_ATTR_USER_DEFINED, lib.LLAMA_TOKEN_ATTR_RSTRIP
_PROGRESS = 0.02  # of a load, between two reports
_BF16 = 30  # of enum ggml_type
_LOGGED = (3, 4)  # log levels of ggml: warnings and errors


def _log(level: int, text: bytes, _: object) -> None:
    if level in _LOGGED:
        sys.stderr.write(text.decode("utf-8", "replace"))
        sys.stderr.flush()


def backend(name: str, result: Any, *arguments: Any) -> Any:
    """A function of ggml's device registry, which the ctypes layer does not export."""
    function = lib._lib[f"ggml_backend_{name}"]
    function.restype, function.argtypes = result, arguments
    return function


# C keeps the pointer: without this reference the callback is freed and the next log line crashes.
_log_callback = lib.llama_log_callback(_log)


class Vocab:
    """The vocabulary of a model: texts to tokens and back. Read-only in C, so thread-safe.

    `begin` is the BOS token, None if there is none; `wants_begin`: texts start with it (add_bos).
    `end` is the EOS token, `ends` are all tokens that end an answer (EOG). `control` are the names
    of control tokens.
    """

    __slots__ = (
        "_pieces", "_vocab", "begin", "control", "dividing", "ends", "names", "size", "wants_begin",
    )  # fmt: skip

    def __init__(self, vocab: Any) -> None:
        self._vocab = vocab
        self.size: int = lib.llama_vocab_n_tokens(vocab)
        self._pieces: list[bytes | None] = [None] * self.size
        bos: int = lib.llama_vocab_bos(vocab)
        self.begin = bos if 0 <= bos < self.size else None
        self.wants_begin = bool(lib.llama_vocab_get_add_bos(vocab)) and self.begin is not None
        every = range(self.size)
        is_eog = lib.llama_vocab_is_eog
        self.ends = frozenset(token for token in every if is_eog(vocab, token))
        attributes = [lib.llama_vocab_get_attr(vocab, token) for token in every]
        named = {token: self.text(token) for token in every if attributes[token] & _NAMED}
        control = {token: name for token, name in named.items() if attributes[token] & _CONTROL}
        # Names that the tokenizer finds in a text before it tokenizes what is between them.
        self.names = frozenset(filter(None, named.values()))
        self.control = frozenset(filter(None, control.values()))
        # Of control tokens at whose end a text can be divided: they take no space after them.
        self.dividing = frozenset(
            name for token, name in control.items()
            if name and name == name.rstrip() and not attributes[token] & _RSTRIP
        )  # fmt: skip

    def tokenize(self, text: str, *, special: bool) -> NDArray[np.int32]:
        """The tokens of a text. Raises EINVAL when it is not valid Unicode.

        `special`: the names of control tokens in the text become those tokens.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise SyscallError(Errno.EINVAL, f"the text is not valid Unicode: {error}") from error
        tokens = np.empty(len(data) + 2, np.int32)
        pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        size = len(tokens)
        count: int = lib.llama_tokenize(self._vocab, data, len(data), pointer, size, False, special)
        if not 0 <= count <= size:
            raise DeviceFault(f"llama_tokenize returned {count} for {len(data)} bytes")
        return tokens[:count]

    def piece(self, token: int) -> bytes:
        """A token's bytes; empty for a control token."""
        if not 0 <= token < self.size:
            raise DeviceFault(
                f"token {token} is out of range: the vocabulary has 0 to {self.size - 1}"
            )
        known = self._pieces[token]
        if known is None:
            known = self._pieces[token] = self._read_piece(token, special=False)
        return known

    def text(self, token: int | None) -> str:
        """A token's name, also of a control token; empty when there is no such token."""
        if token is None or not 0 <= token < self.size:
            return ""
        return self.name(token).decode("utf-8", "replace")

    def name(self, token: int) -> bytes:
        """A token's name in bytes: it may be part of a character."""
        return self._read_piece(token, special=True)

    @property
    def end(self) -> int | None:
        token: int = lib.llama_vocab_eos(self._vocab)
        return token if 0 <= token < self.size else None

    def _read_piece(self, token: int, *, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count: int = lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            size = -count


@dataclass(frozen=True, slots=True)
class LlamaModel:
    """A loaded model."""

    handle: Any
    vocab: Vocab
    template: str  # the chat template; empty: the file has none


def _ignore(_done: float) -> None:
    return


def amx_kernels(build: str) -> bool:
    """Whether a build of llama.cpp, by its system info, has kernels for Intel AMX.

    These kernels crash on some processors: SIGSEGV where they load the tile
    configuration, at the first batch of several tokens (llama.cpp of llama-cpp-python 0.3.36,
    gcc 12, an Intel Xeon with amx_int8).
    """
    return "AMX_INT8 = 1" in build


def system_info() -> str:
    """The instruction sets and features of this build of llama.cpp."""
    info: bytes = lib.llama_print_system_info()
    return info.decode("utf-8", "replace")


def load(settings: LlamaSettings, report: Callable[[float], None] = _ignore) -> LlamaModel:
    """Load a model; `report` gets the progress, 0 to 1.

    Raises DeviceFault when llama.cpp cannot load it; the reason is in the log.
    """
    lib.llama_log_set(_log_callback, ctypes.c_void_p(0))
    lib.llama_backend_init()
    parameters = lib.llama_model_default_params()
    parameters.n_gpu_layers = settings.gpu_layers
    # AMX is one of the extra buffer types. Without these, weights are not repacked either, so
    # prompts take longer; our own build excludes the AMX kernels instead.
    parameters.use_extra_bufts = not amx_kernels(system_info())
    reported = -_PROGRESS

    def progress(done: float, _: object) -> bool:
        nonlocal reported
        if done - reported >= _PROGRESS:
            reported = done
            report(done)
        return True  # continue the load

    # `parameters` keeps the reference to the callback.
    parameters.progress_callback = lib.llama_progress_callback(progress)
    handle = lib.llama_model_load_from_file(settings.path.encode(), parameters)
    if not handle:
        raise DeviceFault(f"llama.cpp cannot load {settings.path}")
    template: bytes | None = lib.llama_model_chat_template(handle, None)
    return LlamaModel(
        handle,
        Vocab(lib.llama_model_get_vocab(handle)),
        (template or b"").decode("utf-8", "replace"),
    )


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive tokens of one slot in a batch. `asks`: logits are needed after the last."""

    slot: int
    first: int  # position
    tokens: Sequence[int]
    asks: bool


class Context:
    """llama.cpp's context: the KV cache of all slots, and one batch. Used by one thread."""

    def __init__(self, model: LlamaModel, settings: LlamaSettings) -> None:
        slots = settings.slots
        self.batch_tokens = max(settings.batch, slots)
        self.slots, self._window = slots, settings.window
        self.vocab_size = model.vocab.size
        self.threads = settings.threads
        self.on_gpu = settings.gpu_layers > 0
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

    def decode(self, runs: Sequence[Run]) -> dict[int, int]:
        """Compute one batch; the index of the logits of each slot that asks for them."""
        self._check_use()
        if not runs:
            raise DeviceFault("the batch has no runs")
        if len({run.slot for run in runs}) < len(runs):
            raise DeviceFault(f"two of the {len(runs)} runs of a batch are of one slot")
        at = 0
        asked: dict[int, int] = {}
        # In slot order: llama.cpp computes only adjacent slots together.
        for run in sorted(runs, key=lambda run: run.slot):
            end = self._check(run, at)
            self._token[at:end] = run.tokens
            self._pos[at:end] = np.arange(run.first, run.first + len(run.tokens))
            slot_id = self._slot_ids.ctypes.data + run.slot * self._slot_ids.itemsize
            self._slot_pointers[at:end] = slot_id
            self._wants_logits[at:end] = 0
            if run.asks:
                self._wants_logits[end - 1] = 1
                asked[run.slot] = end - 1
            at = end
        self._batch.n_tokens = at
        self._logits_at = frozenset()
        result: int = lib.llama_decode(self._handle, self._batch)
        if result:
            raise DeviceFault(f"llama_decode returned {result} for {at} tokens")
        self._logits_at = frozenset(asked.values())
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
            self.decode([Run(slot, length, [0], asks=False)])
            self.keep(slot, length)

    def save(self, slot: int) -> bytearray:
        """A slot's state. It can be loaded into any slot of a context with the same settings."""
        self._check_use(slot)
        self._complete_copy()
        size: int = lib.llama_state_seq_get_size(self._handle, slot)
        state = bytearray(size)
        target = (ctypes.c_uint8 * size).from_buffer(state)
        written: int = lib.llama_state_seq_get_data(self._handle, target, size, slot)
        if not 0 < written <= size:
            raise DeviceFault(f"cannot save the state of slot {slot} ({size} bytes)")
        return state

    def load(self, slot: int, state: bytearray) -> None:
        self._check_use(slot)
        if not state:
            raise DeviceFault("cannot load an empty state")
        self._complete_copy()
        source = (ctypes.c_uint8 * len(state)).from_buffer(state)
        read: int = lib.llama_state_seq_set_data(self._handle, source, len(state), slot)
        if read != len(state):
            raise DeviceFault(f"cannot load a state of {len(state)} bytes into slot {slot}")

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
