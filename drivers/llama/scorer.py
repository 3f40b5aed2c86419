"""The likelihood of each token of a text, computed by llama.cpp. Imported in child processes only.

A text is split into windows of WINDOW tokens, and the first half of each is context only, as in
llama.cpp's tool for perplexity. PASSAGE compares files of one model: it is short and ours, so
figures over it are not comparable with published ones.
https://github.com/ggml-org/llama.cpp/blob/master/tools/perplexity/perplexity.cpp
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmasos.kernel.abi.errors import DeviceFault

from .library import lib
from .model import LlamaModel
from .settings import LlamaSettings

PASSAGE = Path(__file__).with_name("passage.txt")
WINDOW = 512  # tokens


def likelihoods(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """The logarithm of the softmax of logits."""
    exact = scores.astype(np.float64)
    shifted = exact - exact.max()  # exp() overflows otherwise
    whole: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return whole


class Scorer:
    """A context of one sequence that computes the likelihood of each token."""

    def __init__(self, model: LlamaModel, settings: LlamaSettings, window: int) -> None:
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = window
        parameters.n_threads = parameters.n_threads_batch = settings.threads
        parameters.op_offload = settings.gpu_layers != 0
        self._context: Any = lib.llama_init_from_model(model.handle, parameters)
        if not self._context:
            raise DeviceFault(f"llama.cpp cannot create a context of {window} tokens")
        self._vocab = model.vocab
        self._batch: Any = lib.llama_batch_init(window, 0, 1)

    def likelihoods(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """Log-likelihoods of all tokens of the vocabulary after each token of the second half.

        Not after the last token of the window.
        """
        first = len(tokens) // 2
        self._decode(tokens, first)
        rows = [self._likelihoods(at) for at in range(first, len(tokens) - 1)]
        return np.array(rows, np.float32)

    def _likelihoods(self, at: int) -> NDArray[np.float64]:
        pointer = lib.llama_get_logits_ith(self._context, at)
        if not pointer:
            raise DeviceFault(f"no logits at index {at}")
        return likelihoods(np.ctypeslib.as_array(pointer, (self._vocab.size,)))

    def _decode(self, tokens: NDArray[np.int32], first: int) -> None:
        """Compute the tokens in an empty context, with scores from index `first` on."""
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        batch = self._batch
        for at, token in enumerate(tokens):
            batch.token[at], batch.pos[at] = token, at
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
            batch.logits[at] = at >= first
        if self._vocab.wants_begin:
            batch.token[0] = self._vocab.begin
        batch.n_tokens = len(tokens)
        if result := lib.llama_decode(self._context, batch):
            raise DeviceFault(f"llama_decode returned {result} for {len(tokens)} tokens")
