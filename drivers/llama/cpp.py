# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""llama.cpp through its ctypes layer: the one border, imported in the child process only.

A mistake on the other side of this border ends the process (an assert, a C++ exception, a bad
pointer), so everything is checked here before C sees it: token ids, positions, sequence ids, sizes,
and that logits exist where they are read. What llama.cpp reports as an error is a DeviceFault.
"""

import ctypes
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from llama_cpp import llama_cpp as _untyped
from numpy.typing import NDArray

from llmasos.kernel.errors import DeviceFault

from .frames import Settings

lib = cast("Any", _untyped)
Floats = NDArray[np.float32]
_CONTROL = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
_TOLD = (3, 4)  # of ggml's log levels: warnings and errors


def _log(level: int, text: bytes, _: object) -> None:
    if level in _TOLD:
        sys.stderr.write(text.decode("utf-8", "replace"))
        sys.stderr.flush()


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
        """`special`: the names of control tokens in the text become those tokens."""
        data = text.encode()
        tokens = np.empty(len(data) + 2, np.int32)
        pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        size = len(tokens)
        count: int = lib.llama_tokenize(self._vocab, data, len(data), pointer, size, False, special)
        if not 0 <= count <= size:
            raise DeviceFault(f"llama_tokenize returned {count} for {len(data)} bytes")
        return tokens[:count]

    def piece(self, token: int) -> bytes:
        """A token's bytes; nothing for a control token."""
        known = self._pieces[token]
        if known is None:
            known = self._pieces[token] = self._read_piece(token, special=False)
        return known

    def text(self, token: int | None) -> str:
        """A token's name, control tokens too."""
        if token is None or not 0 <= token < self.size:
            return ""
        return self._read_piece(token, special=True).decode("utf-8", "replace")

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
    gpu: bool  # this build of llama.cpp can use one


def load(settings: Settings) -> Model:
    """DeviceFault when llama.cpp refuses the file; why is in the log."""
    lib.llama_log_set(_log_callback, ctypes.c_void_p(0))
    lib.llama_backend_init()
    parameters = lib.llama_model_default_params()
    parameters.n_gpu_layers = settings.gpu_layers
    handle = lib.llama_model_load_from_file(settings.path.encode(), parameters)
    if not handle:
        raise DeviceFault("llama.cpp cannot load this file")
    template: bytes | None = lib.llama_model_chat_template(handle, None)
    return Model(
        handle,
        Vocab(lib.llama_model_get_vocab(handle)),
        (template or b"").decode("utf-8", "replace"),
        bool(lib.llama_supports_gpu_offload()),
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
        self._slots, self._window = slots, settings.window
        self.vocab_size = model.vocab.size
        self._handle: Any = lib.llama_init_from_model(
            model.handle, _parameters(settings, self.batch_tokens)
        )
        if not self._handle:
            raise DeviceFault(f"no context of {slots} slots of {settings.window} tokens")
        self._memory: Any = lib.llama_get_memory(self._handle)
        self._logits_at: frozenset[int] = frozenset()
        self._build_batch()

    def _build_batch(self) -> None:
        """Arrays of our own: numpy fills them 19 times faster than ctypes does."""
        size = self.batch_tokens
        self._token = np.zeros(size, np.int32)
        self._pos = np.zeros(size, np.int32)
        self._want = np.zeros(size, np.int8)
        self._rows = np.arange(self._slots, dtype=np.int32)  # what `_seq` points into
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
        at = 0
        asked: dict[int, int] = {}
        for run in runs:
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
        return asked

    def _check(self, run: Run, at: int) -> int:
        end = at + len(run.tokens)
        if not run.tokens or end > self.batch_tokens:
            raise DeviceFault(f"a batch of {end} tokens, 1 to {self.batch_tokens} are allowed")
        if not 0 <= run.slot < self._slots:
            raise DeviceFault(f"slot {run.slot} of {self._slots}")
        if run.first != self.length(run.slot) or run.first + len(run.tokens) > self._window:
            raise DeviceFault(f"position {run.first} is not the next of slot {run.slot}")
        if min(run.tokens) < 0 or max(run.tokens) >= self.vocab_size:
            raise DeviceFault(f"a token id is not 0 to {self.vocab_size - 1}")
        return end

    def logits(self, index: int) -> Floats:
        """The scores after a token of the last batch: C's own memory, gone with the next batch."""
        if index not in self._logits_at:
            raise DeviceFault(f"no logits at {index}")
        pointer = lib.llama_get_logits_ith(self._handle, index)
        if not pointer:
            raise DeviceFault(f"no logits at {index}")
        return np.ctypeslib.as_array(pointer, (self.vocab_size,))

    def sample(self, chain: Any, index: int) -> int:
        """Choose by a sampler chain, which takes note of the token by itself."""
        scores = self.logits(index)
        # An infinite or undefined score would make the chain's probabilities undefined.
        if not math.isfinite(float(scores.max())):
            raise DeviceFault("the model computed no numbers")
        token: int = lib.llama_sampler_sample(chain, self._handle, index)
        return token

    def length(self, slot: int) -> int:
        """Tokens in a slot."""
        last: int = lib.llama_memory_seq_pos_max(self._memory, slot)
        return last + 1

    def keep(self, slot: int, tokens: int) -> int:
        """Drop all but the first `tokens` of a slot; returns how many could be kept."""
        if tokens and lib.llama_memory_seq_rm(self._memory, slot, tokens, -1):
            return tokens
        lib.llama_memory_seq_rm(self._memory, slot, -1, -1)
        return 0

    def save(self, slot: int) -> bytearray:
        """A slot's state, to be loaded into any slot of a context of the same settings."""
        size: int = lib.llama_state_seq_get_size(self._handle, slot)
        state = bytearray(size)
        target = (ctypes.c_uint8 * size).from_buffer(state)
        written: int = lib.llama_state_seq_get_data(self._handle, target, size, slot)
        if not 0 < written <= size:
            raise DeviceFault(f"the state of slot {slot} ({size} bytes) cannot be saved")
        return state

    def load(self, slot: int, state: bytearray) -> None:
        source = (ctypes.c_uint8 * len(state)).from_buffer(state)
        read: int = lib.llama_state_seq_set_data(self._handle, source, len(state), slot)
        if read != len(state):
            raise DeviceFault(f"a state of {len(state)} bytes cannot be loaded into slot {slot}")

    def set_threads(self, threads: int) -> None:
        """Between two steps: fewer when others want the cores."""
        lib.llama_set_n_threads(self._handle, threads, threads)


def _parameters(settings: Settings, batch_tokens: int) -> Any:
    flash = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED, lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters = lib.llama_context_default_params()
    parameters.n_ctx = settings.slots * settings.window
    parameters.n_batch = parameters.n_ubatch = batch_tokens
    parameters.n_seq_max = settings.slots
    parameters.n_threads = parameters.n_threads_batch = settings.threads
    parameters.flash_attn_type = flash[0] if settings.flash else flash[1]
    parameters.kv_unified = False  # private contexts: a token costs its own slot, not all of them
    parameters.swa_full = True  # or a shortened slot could not be continued
    parameters.no_perf = True
    return parameters
