"""Embeddings: the queue of texts to embed, for a second context of the same model.

The engine thread computes one piece of one text between two steps, so two contexts never compute
at the same time and answers continue meanwhile. The piece size is fixed, so the vector of a text
does not depend on the load. The vector is the mean of the outputs at all tokens, normalised to
length 1.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmasos.drivers.frames import ANSWER, Frame, refusal
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault

from .context import VectorContext
from .frames import EngineSettings

PIECE_TOKENS = limits.CHUNK_TOKENS


@dataclass(slots=True)
class _Text:
    """A queued text."""

    number: int  # of the request
    tokens: list[int]
    done: int = 0  # tokens
    # The sum of the outputs at these tokens.
    total: NDArray[np.float64] | None = None


class Embedder:
    """Used by the engine thread only. `create` makes the context, for the first text."""

    def __init__(self, create: Callable[[], VectorContext]) -> None:
        self._create = create
        self._texts: deque[_Text] = deque()
        self._context: VectorContext | None = None

    @property
    def busy(self) -> bool:
        return bool(self._texts)

    def take(self, number: int, tokens: list[int]) -> None:
        self._texts.append(_Text(number, tokens))

    def step(self, threads: int) -> Frame | None:
        """Compute one piece of the oldest text; its answer after the last piece."""
        if not self._texts:
            return None
        text = self._texts[0]
        try:
            self._feed(text, threads)
            if text.done < len(text.tokens):
                return None
            answer = [ANSWER, text.number, _vector(text), [len(text.tokens)]]
        except DeviceFault as error:
            answer = refusal(text.number, error)
        self._texts.popleft()
        return answer

    def _feed(self, text: _Text, threads: int) -> None:
        if self._context is None:
            self._context = self._create()
        piece = text.tokens[text.done : text.done + PIECE_TOKENS]
        # llama.cpp divides the attention of a single row among threads, and their number changes
        # the order of summation: so a single row always has one.
        self._context.set_threads(threads if len(piece) > 1 else 1)
        outputs = self._context.compute(piece, text.done)
        total: NDArray[np.float64] = outputs.sum(axis=0, dtype=np.float64)
        text.total = total if text.total is None else text.total + total
        text.done += len(piece)


def window(settings: EngineSettings) -> int:
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
