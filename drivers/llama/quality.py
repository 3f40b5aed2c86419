"""Measures a model file: its perplexity over a passage, and its speed with a full batch.

    python -m llmasos.drivers.llama.quality FILE STAGE

Perplexity is computed as by llama.cpp's tool: the passage is split into windows of WINDOW tokens,
the first half of each is context only, and the figure is the exponential of the mean negative
log-likelihood of the tokens of the second halves. It compares files of one model; the passage is
short and ours, so the figure is not comparable with published ones.
https://github.com/ggml-org/llama.cpp/blob/master/tools/perplexity/perplexity.cpp
"""

import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmasos.drivers.local import bare, gguf
from llmasos.kernel.abi.errors import DeviceFault

from . import options, task
from .context import LlamaContext
from .library import lib
from .model import LlamaModel, load
from .placement import place
from .settings import LlamaSettings

PASSAGE = Path(__file__).with_name("passage.txt")
WINDOW = 512  # tokens
_WINDOWS = 3  # of the passage, at most
_SEQUENCES, _PROMPT_TOKENS, _NEW_TOKENS = 16, 64, 32  # the batch that measures the speed
_OPTIONS = {"slots": _SEQUENCES, "window": 256, "nice": 0}


def work(output: task.TaskOutput) -> dict[str, object]:
    """The perplexity of FILE, and its speed in tokens per second."""
    path, stage = Path(sys.argv[1]), sys.argv[2]
    header = gguf.read(path)
    settings = place(options.settings(path, header, _OPTIONS)).settings
    output.stage(stage, 0.0)
    model = load(settings)
    window = min(WINDOW, header.facts.context)
    value = perplexity(model, settings, window, lambda done: output.stage(stage, done))
    prefill, decode = _speed(model, settings)
    output.stage(stage, 1.0)
    return {"perplexity": value, "prefill": prefill, "decode": decode}


def _speed(model: LlamaModel, settings: LlamaSettings) -> tuple[float, float]:
    """Tokens per second: of prompts, and generated ones. Random tokens take as long as others."""
    chance = random.Random(1)
    with_text = [token for token in range(model.vocab.size) if model.vocab.piece(token)]
    prompts = [chance.choices(with_text, k=_PROMPT_TOKENS) for _ in range(_SEQUENCES)]
    context = LlamaContext(model, settings)
    loop = bare.Loop(context, model.vocab, shared=0, threads=None)
    loop.warm()
    times = loop.run(prompts, _NEW_TOKENS)
    return (
        round(_SEQUENCES * _PROMPT_TOKENS / times.prefill_s, 1),
        round(_SEQUENCES * (_NEW_TOKENS - 1) / times.decode_s, 1),
    )


def perplexity(
    model: LlamaModel, settings: LlamaSettings, window: int, report: Callable[[float], None]
) -> float:
    """The perplexity of a model over PASSAGE; `report` gets the progress, 0 to 1."""
    tokens = model.vocab.tokenize(PASSAGE.read_text(encoding="utf-8"), special=False)
    count = min(_WINDOWS, len(tokens) // window)
    scorer = Scorer(model, settings, window)
    total, scored = 0.0, 0
    for number in range(count):
        losses = scorer.losses(tokens[number * window : (number + 1) * window])
        total, scored = total + float(losses.sum()), scored + len(losses)
        report((number + 1) / (count + 1))
    return round(math.exp(total / scored), 3)


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

    def losses(self, tokens: NDArray[np.int32]) -> NDArray[np.float64]:
        """Negative log-likelihoods of the tokens of the second half, except its first."""
        first = len(tokens) // 2
        self._decode(tokens, first)
        rows = range(first, len(tokens) - 1)
        return np.array([-float(self._likelihoods(at)[tokens[at + 1]]) for at in rows])

    def likelihoods(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """Log-likelihoods of all tokens of the vocabulary, at the places of `losses`."""
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


if __name__ == "__main__":
    task.run(work)
