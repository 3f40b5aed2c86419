"""Samples the next token: numpy's argmax for greedy sampling, else a sampler chain of llama.cpp.

Bias, banned end tokens and the grammar are applied first. The token is chosen without the grammar,
which mostly allows it; only if not, all forbidden tokens are masked and the choice is repeated. A
chain accepts each final token exactly once: a second time aborts the process. A sampler belongs to
a call, not to a slot: a parked call keeps it. Penalties consider the answer only, so a reused
context and a recomputed one give the same result.
"""

import ctypes
import math
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from llmasos.drivers.logprobs import token_text
from llmasos.kernel.abi.errors import DeviceFault, SyscallError
from llmasos.kernel.abi.values import Alternative, Logprob, Sampling, unpack_bias

from .cpp import Context, Floats, Vocab, lib
from .grammar import Grammars, Matcher

_COLD = 1e-3  # temperatures below are greedy: the scaled logits would not be finite
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
_ROW = cast("Any", ctypes.POINTER(lib.llama_token_data))


class Candidates:
    """The candidate array of llama.cpp's chains. One is shared by all calls of an engine."""

    __slots__ = ("_array", "_ids", "_rows")

    def __init__(self, size: int) -> None:
        self._ids = np.arange(size, dtype=np.int32)
        self._rows = np.zeros(size, _CANDIDATE)
        self._array: Any = lib.llama_token_data_array()

    def choose(self, chain: Any, scores: Floats) -> int:
        """Sample with a chain, without accepting the token."""
        rows: Any = self._rows
        array: Any = self._array
        rows["id"], rows["logit"], rows["p"] = self._ids, scores, 0
        array.data = rows.ctypes.data_as(_ROW)
        array.size, array.selected, array.sorted = len(rows), -1, False
        lib.llama_sampler_apply(chain, ctypes.byref(array))
        if not 0 <= array.selected < array.size:
            raise DeviceFault("llama.cpp's sampler chose no token")
        token: int = array.data[array.selected].id
        return token


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the samplers of one engine share."""

    vocab: Vocab
    window: int  # tokens
    grammars: Grammars
    candidates: Candidates


class Picker(Protocol):
    """Chooses a token by scores, of which the maximum is finite."""

    def pick(self, scores: Floats) -> int: ...
    def accept(self, token: int) -> None: ...
    def free(self) -> None: ...


class Greedy:
    __slots__ = ()

    def pick(self, scores: Floats) -> int:
        return int(scores.argmax())

    def accept(self, token: int) -> None:
        pass

    def free(self) -> None:
        pass


class Chain:
    __slots__ = ("_candidates", "_chain", "_size")

    def __init__(self, sampling: Sampling, bounds: Bounds) -> None:
        self._candidates, self._size = bounds.candidates, bounds.vocab.size
        self._chain: Any = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for part in _parts(sampling, bounds):
            if not part:
                raise DeviceFault("llama.cpp cannot create a sampler")
            lib.llama_sampler_chain_add(self._chain, part)

    def pick(self, scores: Floats) -> int:
        if not self._chain:
            raise DeviceFault("the sampler was freed")
        return self._candidates.choose(self._chain, scores)

    def accept(self, token: int) -> None:
        if not self._chain or not 0 <= token < self._size:
            raise DeviceFault(f"the sampler cannot accept token {token}")
        lib.llama_sampler_accept(self._chain, token)

    def free(self) -> None:
        chain, self._chain = self._chain, None
        if chain:
            lib.llama_sampler_free(chain)


def _penalised(sampling: Sampling) -> bool:
    return (
        sampling.repeat_penalty != 1
        or sampling.frequency_penalty != 0
        or sampling.presence_penalty != 0
    )


def _parts(sampling: Sampling, bounds: Bounds) -> list[Any]:
    """The samplers of a chain. The last one selects: a chain without one aborts the process."""
    parts: list[Any] = []
    if _penalised(sampling):
        penalties = sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty
        size = bounds.vocab.size
        parts.append(lib.llama_sampler_init_penalties(size, bounds.window, *penalties))
    if sampling.temperature < _COLD:
        return [*parts, lib.llama_sampler_init_greedy()]
    if sampling.top_k > 0:
        parts.append(lib.llama_sampler_init_top_k(sampling.top_k))
    if sampling.top_p < 1:
        parts.append(lib.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0:
        parts.append(lib.llama_sampler_init_min_p(sampling.min_p, 1))
    parts.append(lib.llama_sampler_init_temp(sampling.temperature))
    parts.append(lib.llama_sampler_init_dist(sampling.seed or 0))
    return parts


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
        greedy = sampling.temperature < _COLD and not _penalised(sampling)
        self._picker: Picker = Greedy() if greedy else Chain(sampling, bounds)

    def choose(self, context: Context, index: int) -> int:
        """Choose the next token; an end if the grammar allows nothing else."""
        scores = context.logits(index)
        raw = scores.copy() if self._top_count is not None else None
        if len(self._biased):
            scores[self._biased] += self._added
        if len(self._banned):
            scores[self._banned] = -np.inf
        _check(scores)
        token = self._picker.pick(scores)
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
        """Choose among the tokens that the grammar allows. None left would abort a chain."""
        scores[~matcher.mask()] = -np.inf
        if math.isfinite(float(scores.max())):
            return self._picker.pick(scores)
        if matcher.may_end:
            return min(self._vocab.ends)
        raise DeviceFault("the grammar allows no token of this model here", "change the grammar")

    @property
    def finished(self) -> bool:
        return self._matcher is not None and self._matcher.finished

    def free(self) -> None:
        """Free the sampler when the call ends."""
        self._picker.free()


def sampler(sampling: Sampling, bounds: Bounds, domain: str = "") -> Sampler:
    """A sampler for a call. DeviceFault, also for the grammar: it was checked before."""
    try:
        return Sampler(sampling, bounds, domain)
    except SyscallError as error:
        raise DeviceFault(error.message, error.hint) from error


def _check(scores: Floats) -> None:
    # An infinite or undefined score would make a chain's probabilities undefined.
    if not math.isfinite(float(scores.max())):
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
