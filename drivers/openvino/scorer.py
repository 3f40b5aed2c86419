"""The likelihood of each token of a window, computed by OpenVINO. For child processes only."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmasos.drivers.llama.scorer import likelihoods

from .blocks import BLOCK_TOKENS
from .graph import convert
from .model import PagedModel
from .steps import Part, inputs


class PagedScorer:
    """Implements what llama's Scorer does."""

    def __init__(self, path: Path, window: int, threads: int) -> None:
        self._blocks = list(range(-(-window // BLOCK_TOKENS)))
        self._model = PagedModel(convert(path), len(self._blocks) + 1, threads)

    def likelihoods(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """As of llama's Scorer."""
        part = Part(0, tokens.tolist(), self._blocks, asks=0)
        rows = self._model.compute(inputs([part], len(self._blocks), every_row=True))
        first = len(tokens) // 2
        return np.array([likelihoods(row) for row in rows[first : len(tokens) - 1]], np.float32)
