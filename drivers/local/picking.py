"""Chooses the next token by a call's settings: penalties, top-k, top-p, min-p, temperature, a draw.

The filters mean what they mean in llama.cpp, in this order. The draw depends on the scores and the
seed only, so a seed gives the same text on each engine that computes the same scores. Of tokens
with equal scores, the one with the lower number counts as better. No step sorts all scores: one
token of 50,000 takes some tens of microseconds.
"""

import math
import random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmasos.kernel.abi.errors import DeviceFault
from llmasos.kernel.abi.values import Sampling

COLD = 1e-3  # temperatures below are greedy: the scaled scores would not be finite
_GROUP = 64  # scores of which only the maximum is looked at first
_BLOCK = 512  # weights of which only the sum is looked at first
_FIRST, _FACTOR = 256, 16  # tokens that are sorted to find the top-p; so many more if not enough
Floats = NDArray[np.float32]


class Survivors(NamedTuple):
    """The tokens that the filters leave. `ids` None: all of them."""

    ids: NDArray[np.intp] | None
    scores: Floats


def penalised(sampling: Sampling) -> bool:
    """Whether tokens of the answer lower their scores."""
    return (
        sampling.repeat_penalty != 1
        or sampling.frequency_penalty != 0
        or sampling.presence_penalty != 0
    )


def survivors(scores: Floats, sampling: Sampling) -> Survivors:
    """Apply top-k, top-p and min-p."""
    size = len(scores)
    if 0 < sampling.top_k < size:
        ids = largest(scores, sampling.top_k)
        if sampling.top_p < 1:
            weights = _weights(scores[ids])
            ids = ids[: _nucleus(weights, sampling.top_p * float(weights.sum()))]
        left = Survivors(ids, scores[ids])
    elif sampling.top_p < 1:
        left = _top_p(scores, sampling.top_p)
    else:
        left = Survivors(None, scores)
    return _min_p(left, sampling.min_p) if sampling.min_p > 0 else left


def _top_p(scores: Floats, share: float) -> Survivors:
    """The best tokens that have this share of the probability together; of all tokens."""
    best = scores.max()
    wanted = share * float(np.exp(scores - best).sum())
    count = _FIRST
    while True:
        ids = largest(scores, count)
        kept = _nucleus(_weights(scores[ids]), wanted)
        if kept < len(ids) or count >= len(scores):
            return Survivors(ids[:kept], scores[ids[:kept]])
        count *= _FACTOR


def _nucleus(weights: NDArray[np.float64], wanted: float) -> int:
    """How many of the weights have this sum together, at least; all when they have less."""
    return int(np.searchsorted(weights.cumsum(), wanted)) + 1


def _min_p(left: Survivors, share: float) -> Survivors:
    """Those whose probability is at least this share of that of the best one."""
    least = left.scores.max() + np.float32(math.log(share))
    kept = np.flatnonzero(left.scores >= least)
    return Survivors(kept if left.ids is None else left.ids[kept], left.scores[kept])


def largest(scores: Floats, count: int) -> NDArray[np.intp]:
    """The tokens with the largest scores, the best one first. Without those of score -inf."""
    groups = len(scores) // _GROUP
    if count < groups:
        ids = _of_best_groups(scores, groups, count)
    else:
        least = np.partition(scores, -count)[-count] if count < len(scores) else -math.inf
        ids = np.flatnonzero(scores >= least)
    chosen = scores[ids]
    order = np.argsort(-chosen, kind="stable")[:count]
    return ids[order[chosen[order] > -math.inf]]


def _of_best_groups(scores: Floats, groups: int, count: int) -> NDArray[np.intp]:
    """At least `count` tokens, the best ones among them. A group is a column of a table."""
    end = groups * _GROUP
    table = scores[:end].reshape(_GROUP, groups)
    best = table.max(axis=0)
    least = np.partition(best, -count)[-count]  # as many groups have a token that reaches it
    columns = np.flatnonzero(best >= least)
    rows, places = np.divmod(np.flatnonzero(table[:, columns] >= least), len(columns))
    return np.append(rows * groups + columns[places], end + np.flatnonzero(scores[end:] >= least))


def _weights(scores: Floats) -> NDArray[np.float64]:
    """The probabilities of the tokens, up to a common factor."""
    return np.exp(scores.astype(np.float64) - float(scores.max()))


def drawn(left: Survivors, temperature: float, uniform: float) -> int:
    """The token for a random number from [0, 1)."""
    weights: Floats = np.exp((left.scores - left.scores.max()) / np.float32(temperature))
    begin = 0
    if len(weights) > _BLOCK:
        begins = np.arange(0, len(weights), _BLOCK)
        block, uniform = _position(np.add.reduceat(weights, begins), uniform)
        begin = block * _BLOCK
    found = begin + _position(weights[begin : begin + _BLOCK], uniform)[0]
    return found if left.ids is None else int(left.ids[found])


def _position(weights: Floats, uniform: float) -> tuple[int, float]:
    """Where this part of the sum of all weights is: the index, and the part of that weight."""
    sums: NDArray[np.float64] = weights.cumsum(dtype=np.float64)
    total = float(sums[-1])
    target = uniform * total
    found = int(np.searchsorted(sums, target, side="right"))
    # The product may be rounded to the sum: then the last one that is not 0.
    found = min(found, int(np.searchsorted(sums, total)))
    return found, 1 - min(1.0, (float(sums[found]) - target) / float(weights[found]))


class SamplingPicker:
    """Chooses the tokens of one answer, each by scores of which the maximum is finite.

    Penalties consider the answer only, so a reused context and a recomputed one give the same
    result. Each final token is accepted exactly once.
    """

    __slots__ = (
        "_counts",
        "_penalised",
        "_random",
        "_sampling",
        "_size",
        "_tokens",
        "draws",
        "greedy",
    )

    def __init__(self, sampling: Sampling, vocab_size: int) -> None:
        self._sampling, self._size = sampling, vocab_size
        self._penalised = penalised(sampling)
        self.greedy = sampling.temperature < COLD and not self._penalised  # it picks the best
        self._random = random.Random(sampling.seed or 0)
        self.draws = 0  # random numbers so far
        # The tokens of the answer, each once, and how often it has them.
        self._tokens, self._counts = np.empty(0, np.intp), np.empty(0, np.float32)

    def pick(self, scores: Floats) -> int:
        """Choose a token. The scores stay as they are."""
        if self._penalised and len(self._tokens):
            scores = self._penalise(scores)
        if self._sampling.temperature < COLD:
            return int(scores.argmax())
        left = survivors(scores, self._sampling)
        self.draws += 1
        return drawn(left, self._sampling.temperature, self._random.random())

    def skip(self, draws: int) -> None:
        """Draw so many numbers in vain."""
        self.draws += draws
        for _ in range(draws):
            self._random.random()

    def _penalise(self, scores: Floats) -> Floats:
        scores, sampling = scores.copy(), self._sampling
        old = scores[self._tokens]
        repeat = np.float32(sampling.repeat_penalty)
        new = np.where(old <= 0, old * repeat, old / repeat)
        new -= self._counts * np.float32(sampling.frequency_penalty)
        scores[self._tokens] = new - np.float32(sampling.presence_penalty)
        return scores

    def accept(self, token: int) -> None:
        if not 0 <= token < self._size:
            raise DeviceFault(f"the sampler cannot accept token {token}")
        if not self._penalised:
            return
        known = np.flatnonzero(self._tokens == token)
        if len(known):
            self._counts[known] += 1
        else:
            self._tokens = np.append(self._tokens, token)
            self._counts = np.append(self._counts, np.float32(1))
