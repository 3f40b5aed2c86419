# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""llama.cpp's context for embeddings: a second context of the same model."""

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmasos.drivers.local.embed import PIECE_TOKENS, window
from llmasos.kernel.abi.errors import DeviceFault

from .library import lib
from .model import LlamaModel
from .settings import LlamaSettings


class LlamaVectors:
    """A llama.cpp context for embeddings: one sequence, with an output for every token."""

    def __init__(self, model: LlamaModel, settings: LlamaSettings) -> None:
        self._window, self._vocab_size = window(settings), model.vocab.size
        self.dimensions: int = lib.llama_model_n_embd(model.handle)
        self._handle: Any = lib.llama_init_from_model(model.handle, _parameters(settings))
        if not self._handle:
            raise DeviceFault(
                f"llama.cpp cannot create an embedding context of {self._window} tokens"
            )
        self._memory: Any = lib.llama_get_memory(self._handle)
        self._token = np.zeros(PIECE_TOKENS, np.int32)
        self._pos = np.zeros(PIECE_TOKENS, np.int32)
        self._sequences_per_token = np.ones(PIECE_TOKENS, np.int32)
        self._wants_output = np.ones(PIECE_TOKENS, np.int8)
        self._sequence_id = np.zeros(1, np.int32)  # the only one, to which all pointers point
        pointer = self._sequence_id.ctypes.data
        self._sequence_pointers = np.full(PIECE_TOKENS, pointer, np.uintp)
        int32s = ctypes.POINTER(ctypes.c_int32)
        batch = lib.llama_batch()
        batch.token = self._token.ctypes.data_as(int32s)
        batch.pos = self._pos.ctypes.data_as(int32s)
        batch.n_seq_id = self._sequences_per_token.ctypes.data_as(int32s)
        batch.seq_id = self._sequence_pointers.ctypes.data_as(ctypes.POINTER(int32s))
        batch.logits = self._wants_output.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        self._batch: Any = batch

    def compute(self, tokens: list[int], first: int) -> NDArray[np.float32]:
        """Compute a piece of a text, whose first token is at position `first` of the text.

        Returns one row per token: memory of C, valid until the next call. `first` 0 begins a text.
        """
        if first == 0:
            lib.llama_memory_seq_rm(self._memory, 0, -1, -1)
        count = len(tokens)
        if not 0 < count <= PIECE_TOKENS:
            raise DeviceFault(f"a piece has {count} tokens; 1 to {PIECE_TOKENS} are allowed")
        if first + count > self._window:
            raise DeviceFault(
                f"position {first + count - 1} exceeds the window of {self._window} tokens"
            )
        computed: int = lib.llama_memory_seq_pos_max(self._memory, 0) + 1
        if first != computed:
            raise DeviceFault(
                f"{computed} tokens of the text are computed; a piece cannot start at {first}"
            )
        if min(tokens) < 0 or max(tokens) >= self._vocab_size:
            raise DeviceFault(
                f"a token id is out of range: the vocabulary has 0 to {self._vocab_size - 1}"
            )
        self._token[:count] = tokens
        self._pos[:count] = np.arange(first, first + count)
        self._batch.n_tokens = count
        result: int = lib.llama_decode(self._handle, self._batch)
        pointer = None if result else lib.llama_get_embeddings(self._handle)
        if not pointer:
            raise DeviceFault(
                f"llama_decode returned {result} for {count} tokens of a text to embed"
            )
        return np.ctypeslib.as_array(pointer, (count, self.dimensions))

    def set_threads(self, threads: int) -> None:
        lib.llama_set_n_threads(self._handle, threads, threads)


def _parameters(settings: LlamaSettings) -> Any:
    flash = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED, lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters = lib.llama_context_default_params()
    parameters.n_ctx = window(settings)
    parameters.n_batch = parameters.n_ubatch = PIECE_TOKENS
    parameters.n_seq_max = 1
    parameters.n_threads = parameters.n_threads_batch = settings.threads
    parameters.flash_attn_type = flash[0] if settings.flash else flash[1]
    parameters.embeddings = True
    # The mean pooling of llama.cpp requires the whole text in one step.
    parameters.pooling_type = lib.LLAMA_POOLING_TYPE_NONE
    parameters.no_perf = True
    return parameters
