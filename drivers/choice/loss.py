"""The process that measures what a file loses: compared with another file of the same model.

    python -m llmasos.drivers.choice.loss ENGINE FILE REFERENCE TEXT THREADS

ENGINE, `llama` or `openvino`, computes FILE, and llama.cpp computes REFERENCE, the same windows of
TEXT. The result has the perplexities of both and the mean Kullback-Leibler divergence of FILE from
REFERENCE, in nats. Other programs do not change the figures.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llmasos.drivers.llama import options as llama_options
from llmasos.drivers.llama import task
from llmasos.drivers.llama.model import LlamaModel, load
from llmasos.drivers.llama.placement import place
from llmasos.drivers.llama.scorer import WINDOW, Scorer
from llmasos.drivers.llama.settings import LlamaSettings
from llmasos.drivers.local import gguf
from llmasos.kernel.abi.errors import DeviceFault

STAGE = "measure loss"
_DIGITS = 6


class WindowScorer(Protocol):
    """Computes the likelihoods of windows of a text."""

    def likelihoods(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]: ...


def work(output: task.TaskOutput) -> dict[str, object]:
    engine, threads = sys.argv[1], int(sys.argv[5])
    path, reference, text = map(Path, sys.argv[2:5])
    output.unfinished = task.workspace_of(path)
    output.stage(STAGE, 0.0)
    window = min(WINDOW, gguf.read(reference).facts.context)
    model, settings = _loaded(reference, threads)
    exact = Scorer(model, settings, window)
    if engine == "openvino":
        from llmasos.drivers.openvino.scorer import PagedScorer  # loads OpenVINO

        scorer: WindowScorer = PagedScorer(path, window, threads)
    elif path == reference:
        scorer = exact
    else:
        scorer = Scorer(*_loaded(path, threads), window)
    tokens = _tokens(model, text)
    return compared(
        scorer, exact, _windows(model, tokens, window), lambda n: output.stage(STAGE, n)
    )


def _loaded(path: Path, threads: int) -> tuple[LlamaModel, LlamaSettings]:
    wanted = llama_options.settings(path, gguf.read(path), {"threads": threads})
    settings = place(wanted).settings
    return load(settings), settings


def _tokens(model: LlamaModel, text: Path) -> NDArray[np.int32]:
    found: NDArray[np.int32] = model.vocab.tokenize(text.read_text("utf-8"), special=False)
    return found


def _windows(model: LlamaModel, tokens: NDArray[np.int32], window: int) -> list[NDArray[np.int32]]:
    """The whole windows of a text. DeviceFault when it has none."""
    if len(tokens) < window:
        raise DeviceFault(f"the text has {len(tokens)} tokens, fewer than a window of {window}")
    found = [tokens[at : at + window] for at in range(0, len(tokens) - window + 1, window)]
    if model.vocab.wants_begin and model.vocab.begin is not None:
        for one in found:
            one[0] = model.vocab.begin
    return found


def compared(
    scorer: WindowScorer,
    exact: WindowScorer,
    windows: list[NDArray[np.int32]],
    report: Callable[[float], None],
) -> dict[str, object]:
    """The perplexities of two scorers, and their divergence; `report` gets the progress, 0 to 1."""
    losses = np.zeros(2)
    divergence, scored = 0.0, 0
    for number, tokens in enumerate(windows):
        wanted = exact.likelihoods(tokens)
        found = wanted if scorer is exact else scorer.likelihoods(tokens)
        rows, following = np.arange(len(wanted)), tokens[len(tokens) // 2 + 1 :]
        losses -= [found[rows, following].sum(), wanted[rows, following].sum()]
        divergence += float((np.exp(wanted) * (wanted - found)).sum())
        scored += len(wanted)
        report((number + 1) / len(windows))
    perplexity, reference = (round(math.exp(loss / scored), _DIGITS) for loss in losses)
    return {
        "tokens": sum(map(len, windows)),
        "perplexity": perplexity,
        "reference": reference,
        "kl": round(divergence / scored, _DIGITS),
    }


if __name__ == "__main__":
    task.run(work)
