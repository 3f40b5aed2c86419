"""Embeddings: a second context of the same model, and the queue of texts to embed.

The engine thread computes one piece of one text between two steps, so two contexts never compute
at the same time and answers continue meanwhile. The piece size is fixed, so the vector of a text
does not depend on the load. The vector is the mean of the outputs at all tokens, normalised to
length 1.
"""

import ctypes
import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmasos.drivers.frames import ANSWER, Frame, refusal
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault

from . import frames
from .cpp import LlamaModel, lib

_PIECE_TOKENS = limits.CHUNK_TOKENS


@dataclass(slots=True)
class _Text:
    """A queued text."""

    number: int  # of the request
    tokens: list[int]
    done: int = 0  # tokens
    # The sum of the outputs at these tokens.
    total: NDArray[np.float64] | None = None


class Embedder:
    """Used by the engine thread only. The context is created for the first text."""

    def __init__(self, model: LlamaModel, settings: frames.LlamaSettings) -> None:
        self._model, self._settings = model, settings
        self._texts: deque[_Text] = deque()
        self._context: VectorContext | None = None

    @property
    def busy(self) -> bool:
        return bool(self._texts)

    def take(self, number: int, tokens: list[int]) -> None:
        self._texts.append(_Text(number, tokens))

    def step(self) -> Frame | None:
        """Compute one piece of the oldest text; its answer after the last piece."""
        if not self._texts:
            return None
        text = self._texts[0]
        try:
            self._feed(text)
            if text.done < len(text.tokens):
                return None
            answer = [ANSWER, text.number, _vector(text), [len(text.tokens)]]
        except DeviceFault as error:
            answer = refusal(text.number, error)
        self._texts.popleft()
        return answer

    def _feed(self, text: _Text) -> None:
        if self._context is None:
            self._context = VectorContext(self._model, self._settings)
        piece = text.tokens[text.done : text.done + _PIECE_TOKENS]
        outputs = self._context.compute(piece, text.done)
        total: NDArray[np.float64] = outputs.sum(axis=0, dtype=np.float64)
        text.total = total if text.total is None else text.total + total
        text.done += len(piece)


def window(settings: frames.LlamaSettings) -> int:
    """The maximum number of tokens of a text."""
    return min(settings.window, limits.EMBED_TOKENS)


def _vector(text: _Text) -> bytes:
    """The vector, normalised to length 1, as little-endian 32-bit floats."""
    if text.total is None:
        raise DeviceFault("cannot embed a text without tokens")
    length = float(np.linalg.norm(text.total))
    if not math.isfinite(length) or length == 0:
        raise DeviceFault(
            f"the model returned a vector of length {length}: no direction to normalise"
        )
    return (text.total / length).astype("<f4").tobytes()


class VectorContext:
    """A llama.cpp context for embeddings: one sequence, with an output for every token."""

    def __init__(self, model: LlamaModel, settings: frames.LlamaSettings) -> None:
        self._window, self._vocab_size = window(settings), model.vocab.size
        self.dimensions: int = lib.llama_model_n_embd(model.handle)
        self._handle: Any = lib.llama_init_from_model(model.handle, _parameters(settings))
        if not self._handle:
            raise DeviceFault(
                f"llama.cpp cannot create an embedding context of {self._window} tokens"
            )
        self._memory: Any = lib.llama_get_memory(self._handle)
        self._token = np.zeros(_PIECE_TOKENS, np.int32)
        self._pos = np.zeros(_PIECE_TOKENS, np.int32)
        self._sequences_per_token = np.ones(_PIECE_TOKENS, np.int32)
        self._wants_output = np.ones(_PIECE_TOKENS, np.int8)
        self._sequence_id = np.zeros(1, np.int32)  # the only one, to which all pointers point
        pointer = self._sequence_id.ctypes.data
        self._sequence_pointers = np.full(_PIECE_TOKENS, pointer, np.uintp)
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
        if not 0 < count <= _PIECE_TOKENS:
            raise DeviceFault(f"a piece has {count} tokens; 1 to {_PIECE_TOKENS} are allowed")
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


def _parameters(settings: frames.LlamaSettings) -> Any:
    flash = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED, lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters = lib.llama_context_default_params()
    parameters.n_ctx = window(settings)
    parameters.n_batch = parameters.n_ubatch = _PIECE_TOKENS
    parameters.n_seq_max = 1
    parameters.n_threads = parameters.n_threads_batch = settings.threads
    parameters.flash_attn_type = flash[0] if settings.flash else flash[1]
    parameters.embeddings = True
    # The mean pooling of llama.cpp requires the whole text in one step.
    parameters.pooling_type = lib.LLAMA_POOLING_TYPE_NONE
    parameters.no_perf = True
    return parameters
