"""What OpenVINO's computation of a file loses, compared with llama.cpp on a file of the same model.

    python -m llmasos.drivers.openvino.quality FILE REFERENCE TEXT

Both compute the same windows of TEXT, as drivers/llama/quality.py does. Printed as one JSON line:
the perplexities of FILE on OpenVINO and of REFERENCE on llama.cpp, and the mean Kullback-Leibler
divergence of their distributions, in nats.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmasos.drivers.llama import options as llama_options
from llmasos.drivers.llama.model import load
from llmasos.drivers.llama.placement import place
from llmasos.drivers.llama.quality import WINDOW, Scorer, likelihoods
from llmasos.drivers.local import gguf

from . import options
from .blocks import BLOCK_TOKENS
from .graph import convert
from .model import PagedModel
from .steps import Part, inputs


class PagedScorer:
    """Computes the likelihood of each token of a window on OpenVINO."""

    def __init__(self, path: Path) -> None:
        self._blocks = list(range(-(-WINDOW // BLOCK_TOKENS)))
        threads = options.settings(path, gguf.read(path), {}).threads
        self._model = PagedModel(convert(path), len(self._blocks) + 1, threads)

    def likelihoods(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """As of llama's Scorer."""
        part = Part(0, tokens.tolist(), self._blocks, asks=0)
        rows = self._model.compute(inputs([part], len(self._blocks), every_row=True))
        first = len(tokens) // 2
        return np.array([likelihoods(row) for row in rows[first : len(tokens) - 1]], np.float32)


def main() -> None:
    path, reference, text = map(Path, sys.argv[1:])
    model = load(place(llama_options.settings(reference, gguf.read(reference), {})).settings)
    tokens = model.vocab.tokenize(text.read_text(encoding="utf-8"), special=False)
    settings = llama_options.settings(reference, gguf.read(reference), {})
    exact, paged = Scorer(model, settings, WINDOW), PagedScorer(path)
    losses = np.zeros(2)
    divergence, scored = 0.0, 0
    for begin in range(0, len(tokens) - WINDOW + 1, WINDOW):
        window = tokens[begin : begin + WINDOW]
        if model.vocab.wants_begin and model.vocab.begin is not None:
            window[0] = model.vocab.begin
        wanted, found = exact.likelihoods(window), paged.likelihoods(window)
        rows, following = np.arange(len(wanted)), window[WINDOW // 2 + 1 :]
        losses -= [found[rows, following].sum(), wanted[rows, following].sum()]
        divergence += float((np.exp(wanted) * (wanted - found)).sum())
        scored += len(wanted)
    perplexities = [round(math.exp(loss / scored), 4) for loss in losses]
    report = {"tokens": len(tokens) // WINDOW * WINDOW, "perplexity": perplexities[0]}
    print(json.dumps({**report, "reference": perplexities[1], "kl": divergence / scored}))


if __name__ == "__main__":
    main()
