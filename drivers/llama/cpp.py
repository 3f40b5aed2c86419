# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""llama.cpp through its ctypes layer: the one border, imported in the child process only.

A mistake on the other side of this border ends the process (an assert, a C++ exception, a bad
pointer), so everything is checked here before C sees it: token ids, positions, sequence ids, sizes,
and that logits exist where they are read. What llama.cpp reports as an error is a DeviceFault.
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

from llmasos.kernel.errors import DeviceFault, Errno, SyscallError

from .frames import Settings

lib = cast("Any", _untyped)
Floats = NDArray[np.float32]
_CONTROL = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
_PROGRESS = 0.02  # of a load, between two words about it
_BF16 = 30  # of enum ggml_type
_TOLD = (3, 4)  # of ggml's log levels: warnings and errors


def _log(level: int, text: bytes, _: object) -> None:
    if level in _TOLD:
        sys.stderr.write(text.decode("utf-8", "replace"))
        sys.stderr.flush()


def backend(name: str, result: Any, *arguments: Any) -> Any:
    """A function of ggml's list of devices, which the ctypes layer leaves out."""
    function = lib._lib[f"ggml_backend_{name}"]
    function.restype, function.argtypes = result, arguments
    return function


# C keeps the pointer: without this reference the callback is collected and the next line crashes.
_log_callback = lib.llama_log_callback(_log)


class Vocab:
    """Texts to tokens and back. Constant in C, so any thread may ask."""

    __slots__ = ("_pieces", "_vocab", "begin", "control", "ends", "size", "wants_begin")

    def __init__(self, vocab: Any) -> None:
        self._vocab = vocab
        self.size: int = lib.llama_vocab_n_tokens(vocab)
        self._pieces: list[bytes | None] = [None] * self.size
        begin: int = lib.llama_vocab_bos(vocab)
        self.begin = begin if 0 <= begin < self.size else None
        self.wants_begin = bool(lib.llama_vocab_get_add_bos(vocab)) and self.begin is not None
        every = range(self.size)
        ends = [token for token in every if lib.llama_vocab_is_eog(vocab, token)]
        self.ends = frozenset(ends)
        attributes = lib.llama_vocab_get_attr
        marked = [token for token in every if attributes(vocab, token) & _CONTROL]
        self.control = frozenset(filter(None, (self.text(token) for token in marked)))

    def tokenize(self, text: str, *, special: bool) -> NDArray[np.int32]:
        """`special`: the names of control tokens in the text become those tokens. EINVAL."""
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise SyscallError(Errno.EINVAL, f"the text is not Unicode: {error}") from error
        tokens = np.empty(len(data) + 2, np.int32)
        pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        size = len(tokens)
        count: int = lib.llama_tokenize(self._vocab, data, len(data), pointer, size, False, special)
        if not 0 <= count <= size:
            raise DeviceFault(f"llama_tokenize returned {count} for {len(data)} bytes")
        return tokens[:count]

    def piece(self, token: int) -> bytes:
        """A token's bytes; nothing for a control token."""
        if not 0 <= token < self.size:
            raise DeviceFault(f"token {token} is not 0 to {self.size - 1}")
        known = self._pieces[token]
        if known is None:
            known = self._pieces[token] = self._read_piece(token, special=False)
        return known

    def text(self, token: int | None) -> str:
        """A token's name, control tokens too."""
        if token is None or not 0 <= token < self.size:
            return ""
        return self.name(token).decode("utf-8", "replace")

    def name(self, token: int) -> bytes:
        """In bytes: a token may be part of a character."""
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
class Model:
    """A loaded model."""

    handle: Any
    vocab: Vocab
    template: str  # empty: the file has none


def _silent(_done: float) -> None:
    return


def amx_kernels(build: str) -> bool:
    """Whether a build of llama.cpp, by its system info, computes with Intel's AMX tiles.

    Those kernels end the process on some processors: SIGSEGV where they load the tile
    configuration, at the first batch of several tokens (llama.cpp of llama-cpp-python 0.3.36,
    gcc 12, an Intel Xeon with amx_int8).
    """
    return "AMX_INT8 = 1" in build


def system_info() -> str:
    """What this build of llama.cpp computes with."""
    info: bytes = lib.llama_print_system_info()
    return info.decode("utf-8", "replace")


def load(settings: Settings, tell: Callable[[float], None] = _silent) -> Model:
    """DeviceFault when llama.cpp refuses the file; why is in the log. `tell` hears the share."""
    lib.llama_log_set(_log_callback, ctypes.c_void_p(0))
    lib.llama_backend_init()
    parameters = lib.llama_model_default_params()
    parameters.n_gpu_layers = settings.gpu_layers
    # AMX is one of the extra buffer types. Without them no weights are repacked either, so prompts
    # take longer; our own build leaves the AMX kernels out instead.
    parameters.use_extra_bufts = not amx_kernels(system_info())
    told = -_PROGRESS

    def progress(done: float, _: object) -> bool:
        nonlocal told
        if done - told >= _PROGRESS:
            told = done
            tell(done)
        return True  # go on

    parameters.progress_callback = lib.llama_progress_callback(progress)  # kept by `parameters`
    handle = lib.llama_model_load_from_file(settings.path.encode(), parameters)
    if not handle:
        raise DeviceFault("llama.cpp cannot load this file")
    template: bytes | None = lib.llama_model_chat_template(handle, None)
    return Model(
        handle,
        Vocab(lib.llama_model_get_vocab(handle)),
        (template or b"").decode("utf-8", "replace"),
    )


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens of one slot in a batch, at following positions. `asks`: logits after the last."""

    slot: int
    first: int  # position
    tokens: Sequence[int]
    asks: bool


class Context:
    """The keys and values of all slots, and the one batch. One thread uses it."""

    def __init__(self, model: Model, settings: Settings) -> None:
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
            raise DeviceFault(f"no context of {slots} slots of {settings.window} tokens")
        self._memory: Any = lib.llama_get_memory(self._handle)
        self._logits_at: frozenset[int] = frozenset()
        self._copied: int | None = None  # a slot that the next batch fills
        self._thread: int | None = None  # who computes: the first one to use it
        self._build_batch()

    def _build_batch(self) -> None:
        """Arrays of our own: numpy fills them 19 times faster than ctypes does."""
        size = self.batch_tokens
        self._token = np.zeros(size, np.int32)
        self._pos = np.zeros(size, np.int32)
        self._want = np.zeros(size, np.int8)
        self._rows = np.arange(self.slots, dtype=np.int32)  # what `_seq` points into
        self._seq = np.zeros(size, np.uintp)
        self._ones = np.ones(size, np.int32)
        row = ctypes.POINTER(ctypes.c_int32)
        batch = lib.llama_batch()
        batch.token = self._token.ctypes.data_as(row)
        batch.pos = self._pos.ctypes.data_as(row)
        batch.n_seq_id = self._ones.ctypes.data_as(row)
        batch.seq_id = self._seq.ctypes.data_as(ctypes.POINTER(row))
        batch.logits = self._want.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        self._batch: Any = batch

    def decode(self, runs: Sequence[Run]) -> dict[int, int]:
        """Compute one batch. Returns for each slot that asked where its logits are."""
        self._check_use()
        if not runs or len({run.slot for run in runs}) < len(runs):
            raise DeviceFault(f"a batch of {len(runs)} runs, one a slot is allowed")
        at = 0
        asked: dict[int, int] = {}
        # In the order of slots: llama.cpp computes only neighbours together.
        for run in sorted(runs, key=lambda run: run.slot):
            end = self._check(run, at)
            self._token[at:end] = run.tokens
            self._pos[at:end] = np.arange(run.first, run.first + len(run.tokens))
            self._seq[at:end] = self._rows.ctypes.data + run.slot * self._rows.itemsize
            self._want[at:end] = 0
            if run.asks:
                self._want[end - 1] = 1
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
        """A closed context, a second thread or a strange slot would end the process, or nothing."""
        self._thread = self._thread or threading.get_ident()
        if not self._handle or self._thread != threading.get_ident():
            raise DeviceFault("a context is used after its end, or by two threads")
        if not 0 <= slot < self.slots:
            raise DeviceFault(f"slot {slot} of {self.slots}")

    def _check(self, run: Run, at: int) -> int:
        self._check_use(run.slot)
        end = at + len(run.tokens)
        if not run.tokens or end > self.batch_tokens:
            raise DeviceFault(f"a batch of {end} tokens, 1 to {self.batch_tokens} are allowed")
        if run.first != self.length(run.slot) or run.first + len(run.tokens) > self._window:
            raise DeviceFault(f"position {run.first} is not the next of slot {run.slot}")
        if min(run.tokens) < 0 or max(run.tokens) >= self.vocab_size:
            raise DeviceFault(f"a token id is not 0 to {self.vocab_size - 1}")
        return end

    def logits(self, index: int) -> Floats:
        """The scores after a token of the last batch: C's own memory, gone with the next batch."""
        self._check_use()
        if index not in self._logits_at:
            raise DeviceFault(f"no logits at {index}")
        pointer = lib.llama_get_logits_ith(self._handle, index)
        if not pointer:
            raise DeviceFault(f"no logits at {index}")
        return np.ctypeslib.as_array(pointer, (self.vocab_size,))

    def length(self, slot: int) -> int:
        """Tokens in a slot."""
        self._check_use(slot)
        last: int = lib.llama_memory_seq_pos_max(self._memory, slot)
        return last + 1

    def keep(self, slot: int, tokens: int) -> int:
        """Drop all but the first `tokens` of a slot; returns how many could be kept."""
        if not 0 <= tokens <= self.length(slot):
            raise DeviceFault(f"{tokens} tokens cannot be kept of slot {slot}")
        if tokens and lib.llama_memory_seq_rm(self._memory, slot, tokens, -1):
            return tokens
        lib.llama_memory_seq_rm(self._memory, slot, -1, -1)
        return 0

    def copy(self, slot: int, other: int) -> None:
        """All of a slot into an empty one; a part of it would abort where slots are not unified."""
        self._check_use(slot)
        if slot == other or self.length(other):
            raise DeviceFault(f"slot {other} is not empty")
        lib.llama_memory_seq_cp(self._memory, slot, other, -1, -1)
        self._copied = other

    def _settle(self) -> None:
        """llama.cpp copies at the next batch; what is read or written before that must wait."""
        slot = self._copied
        if slot is not None:
            length = self.length(slot)
            self.decode([Run(slot, length, [0], asks=False)])
            self.keep(slot, length)

    def save(self, slot: int) -> bytearray:
        """A slot's state, to be loaded into any slot of a context of the same settings."""
        self._check_use(slot)
        self._settle()
        size: int = lib.llama_state_seq_get_size(self._handle, slot)
        state = bytearray(size)
        target = (ctypes.c_uint8 * size).from_buffer(state)
        written: int = lib.llama_state_seq_get_data(self._handle, target, size, slot)
        if not 0 < written <= size:
            raise DeviceFault(f"the state of slot {slot} ({size} bytes) cannot be saved")
        return state

    def load(self, slot: int, state: bytearray) -> None:
        self._check_use(slot)
        if not state:
            raise DeviceFault("an empty state")
        self._settle()
        source = (ctypes.c_uint8 * len(state)).from_buffer(state)
        read: int = lib.llama_state_seq_set_data(self._handle, source, len(state), slot)
        if read != len(state):
            raise DeviceFault(f"a state of {len(state)} bytes cannot be loaded into slot {slot}")

    def close(self) -> None:
        """Free it; it must not be used any more."""
        handle, self._handle = self._handle, None
        if handle:
            lib.llama_free(handle)

    def set_threads(self, threads: int) -> None:
        """Between two steps: fewer when others want the cores."""
        self._check_use()
        self.threads = threads
        lib.llama_set_n_threads(self._handle, threads, threads)


def _parameters(settings: Settings, batch_tokens: int) -> Any:
    flash = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED, lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters = lib.llama_context_default_params()
    parameters.n_ctx = settings.slots * settings.window
    parameters.n_batch = parameters.n_ubatch = batch_tokens
    parameters.n_seq_max = settings.slots
    parameters.n_threads = parameters.n_threads_batch = settings.threads
    parameters.flash_attn_type = flash[0] if settings.flash else flash[1]
    if settings.deterministic and settings.flash and settings.gpu_layers <= 0:
        # With keys and values of one type, llama.cpp's flash attention takes another order of
        # sums for a lone row of 512 cells or more, and again for 64 rows or more. With two types
        # it computes each row by itself, so neither company nor pieces change a bit. A GPU has no
        # kernel for two types; there each sequence is computed alone (see engine.py).
        parameters.type_k = _BF16
    # Else a GPU computes long prompts of a model that is mounted on the processor.
    parameters.op_offload = settings.gpu_layers != 0
    # Not unified: a token costs its own slot, and not all of them.
    parameters.kv_unified = settings.unified
    parameters.swa_full = True  # or a shortened slot could not be continued
    parameters.no_perf = True
    return parameters
