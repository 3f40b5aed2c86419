"""The outputs of a model at each token of a text: for embeddings."""

import numpy as np

from llmasos.drivers.local.embed import PIECE_TOKENS, window
from llmasos.kernel.abi.errors import DeviceFault

from .blocks import BLOCK_TOKENS
from .graph import PagedGraph
from .model import Floats, PagedModel
from .settings import OpenVinoSettings
from .steps import Part, inputs


class PagedVectors:
    """Implements local.VectorContext: one sequence, whose blocks are in order."""

    def __init__(self, graph: PagedGraph, settings: OpenVinoSettings, vocab_size: int) -> None:
        self._window, self._vocab_size = window(settings), vocab_size
        self._blocks = list(range(-(-self._window // BLOCK_TOKENS)))
        self._model = PagedModel(graph.before_logits(), len(self._blocks) + 1, settings.threads)
        self._computed = 0  # tokens of the text

    def compute(self, tokens: list[int], first: int) -> Floats:
        """Compute a piece of a text: one row for each token, valid until the next call."""
        if first == 0:
            self._computed = 0
        if not 0 < len(tokens) <= PIECE_TOKENS:
            raise DeviceFault(f"a piece has {len(tokens)} tokens; 1 to {PIECE_TOKENS} are allowed")
        if first + len(tokens) > self._window:
            last = first + len(tokens) - 1
            raise DeviceFault(f"position {last} exceeds the window of {self._window} tokens")
        if first != self._computed:
            raise DeviceFault(
                f"{self._computed} tokens of the text are computed; a piece cannot start at {first}"
            )
        if min(tokens) < 0 or max(tokens) >= self._vocab_size:
            raise DeviceFault(
                f"a token id is out of range: the vocabulary has 0 to {self._vocab_size - 1}"
            )
        blocks = self._blocks[: -(-(first + len(tokens)) // BLOCK_TOKENS)]
        step = inputs([Part(first, tokens, blocks, asks=0)], len(self._blocks), every_row=True)
        rows = self._model.compute(step)[: len(tokens)]
        self._computed += len(tokens)
        return np.asarray(rows, np.float32)

    def set_threads(self, threads: int) -> None:
        self._model.use_threads(threads)
