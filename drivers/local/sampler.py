"""Samples the next token of an answer.

Bias, banned end tokens and the grammar are applied first, then the settings of the call
(picking.py). The token is chosen without the grammar, which mostly allows it; only if not, all
forbidden tokens are masked and the choice is repeated. A sampler belongs to a call, not to a slot:
a parked call keeps it.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmasos.drivers.logprobs import token_text
from llmasos.kernel.abi.errors import DeviceFault, SyscallError
from llmasos.kernel.abi.values import Alternative, Logprob, Sampling, unpack_bias

from .context import Context, Vocab
from .grammar import Grammars, Matcher
from .picking import SamplingPicker

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the samplers of one engine share."""

    vocab: Vocab
    grammars: Grammars


class Sampler:
    """The sampler of one answer. `finished`: only an end may follow."""

    __slots__ = (
        "_added",
        "_banned",
        "_biased",
        "_matcher",
        "_picker",
        "_top_count",
        "_vocab",
        "logprob",
    )

    def __init__(self, sampling: Sampling, bounds: Bounds, domain: str) -> None:
        self._vocab = bounds.vocab
        # With ignore_eos, no token that ends an answer is chosen.
        ends = bounds.vocab.ends if sampling.ignore_eos else ()
        self._banned = np.fromiter(ends, np.intp)
        tokens, values = unpack_bias(sampling.bias)
        self._biased, self._added = np.array(tokens, np.intp), np.array(values, np.float32)
        if self._biased.max(initial=-1) >= bounds.vocab.size:
            raise DeviceFault(
                f"a biased token is out of range: the vocabulary has 0 to {bounds.vocab.size - 1}"
            )
        self._top_count = sampling.logprobs
        self.logprob: Logprob | None = None  # of the last token
        self._matcher: Matcher | None = bounds.grammars.matcher(sampling, domain)
        self._picker = SamplingPicker(sampling, bounds.vocab.size)

    def choose(self, context: Context, index: int) -> int:
        """Choose the next token; an end if the grammar allows nothing else."""
        scores = context.logits(index)
        raw = scores.copy() if self._top_count is not None else None
        if len(self._biased):
            scores[self._biased] += self._added
        if len(self._banned):
            scores[self._banned] = -np.inf
        best = int(scores.argmax())  # of an undefined score, if there is one
        _check(float(scores[best]))
        token = best if self._picker.greedy else self._picker.pick(scores)
        if self._matcher is not None and not self._matcher.allows(token):
            token = self._choose_allowed(self._matcher, scores)
        if token in self._vocab.ends:
            return token
        if self._matcher is not None:
            self._matcher.take(token)
        self._picker.accept(token)
        if raw is not None:
            self.logprob = _logprob(raw, token, self._top_count or 0, self._vocab)
        return token

    def _choose_allowed(self, matcher: Matcher, scores: Floats) -> int:
        """Choose among the tokens that the grammar allows."""
        scores[~matcher.mask()] = -np.inf
        if math.isfinite(float(scores.max())):
            return self._picker.pick(scores)
        if matcher.may_end:
            return min(self._vocab.ends)
        raise DeviceFault("the grammar allows no token of this model here", "change the grammar")

    @property
    def draws(self) -> int:
        """Random numbers drawn so far."""
        return self._picker.draws

    def skip(self, draws: int) -> None:
        """Draw so many numbers in vain."""
        self._picker.skip(draws)

    def repeat(self, token: int, logprob: Logprob | None) -> None:
        """Take a token that another sampler of the call has chosen; None: its score is reported."""
        if self._matcher is not None:
            self._matcher.take(token)
        self._picker.accept(token)
        if self._top_count is not None:
            text, part = token_text(self._vocab.piece(token))
            self.logprob = logprob or Logprob(token, text, 0.0, [], part)

    @property
    def finished(self) -> bool:
        return self._matcher is not None and self._matcher.finished


def sampler(sampling: Sampling, bounds: Bounds, domain: str = "") -> Sampler:
    """A sampler for a call. DeviceFault, also for the grammar: it was checked before."""
    try:
        return Sampler(sampling, bounds, domain)
    except SyscallError as error:
        raise DeviceFault(error.message, error.hint) from error


def _check(best: float) -> None:
    # An infinite or undefined score would make all probabilities undefined.
    if not math.isfinite(best):
        raise DeviceFault("the model returned logits that are not finite")


def _logprob(raw: Floats, token: int, count: int, vocab: Vocab) -> Logprob:
    """The log probability of a token by the raw logits, and the `count` likeliest tokens."""
    best = raw.max()
    total = float(best) + math.log(float(np.exp(raw - best).sum(dtype=np.float64)))
    top: NDArray[np.intp] = np.argpartition(raw, -count)[-count:] if count else np.empty(0, np.intp)
    ranked = sorted(top.tolist(), key=lambda one: (-raw[one], one))

    def likely(one: int) -> Alternative:
        text, part = token_text(vocab.name(one))
        return Alternative(one, text, float(raw[one]) - total, part)

    chosen = likely(token)
    text, part = token_text(vocab.piece(token))  # empty for a control token
    return Logprob(token, text, chosen.logprob, [likely(one) for one in ranked], part)
