"""How the next token is chosen: numpy's argmax where greed is all, llama.cpp's chain elsewhere.

What a call adds comes before: bias, the ban of ends, its grammar. The grammar is asked about the
one token that was chosen without it, which mostly is allowed; only when not is every other token
weighed and the choice made again. A chain takes note of a token when it is final and never twice:
that ends the process. A sampler belongs to a call, not to a slot: a parked call keeps it. Penalties
look at the answer only, so a context that was reused and one that was computed anew agree.
"""

import ctypes
import math
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from llmasos.drivers.spelling import spelled
from llmasos.kernel.errors import DeviceFault, SyscallError
from llmasos.kernel.values import Likely, Logprob, Sampling, unpack_bias

from .cpp import Context, Floats, Vocab, lib
from .grammar import Grammars, Matcher

_COLD = 1e-3  # a temperature under this is greedy: scores over it would not be finite
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
_ROW = cast("Any", ctypes.POINTER(lib.llama_token_data))


class Candidates:
    """A vocabulary with its scores, as llama.cpp's chains take it. One serves a whole engine."""

    __slots__ = ("_array", "_ids", "_rows")

    def __init__(self, size: int) -> None:
        self._ids = np.arange(size, dtype=np.int32)
        self._rows = np.zeros(size, _CANDIDATE)
        self._array: Any = lib.llama_token_data_array()

    def choose(self, chain: Any, scores: Floats) -> int:
        """By a chain, which does not take note of the token."""
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
    """What a sampler must know of its engine."""

    vocab: Vocab
    window: int  # tokens
    grammars: Grammars
    candidates: Candidates


class Picker(Protocol):
    """Chooses among scores, of which the best is a finite number."""

    def pick(self, scores: Floats) -> int: ...
    def note(self, token: int) -> None: ...
    def free(self) -> None: ...


class Greedy:
    __slots__ = ()

    def pick(self, scores: Floats) -> int:
        return int(scores.argmax())

    def note(self, token: int) -> None:
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
                raise DeviceFault("llama.cpp made no sampler")
            lib.llama_sampler_chain_add(self._chain, part)

    def pick(self, scores: Floats) -> int:
        if not self._chain:
            raise DeviceFault("this sampler is freed")
        return self._candidates.choose(self._chain, scores)

    def note(self, token: int) -> None:
        if not self._chain or not 0 <= token < self._size:
            raise DeviceFault(f"token {token} cannot be noted")
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
    """The last one selects: a chain without such a part would end the process."""
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
    """One answer's choices. `finished`: nothing but an end may follow the last of them."""

    __slots__ = ("_added", "_banned", "_biased", "_matcher", "_picker", "_tops", "_vocab", "told")

    def __init__(self, sampling: Sampling, bounds: Bounds) -> None:
        self._vocab = bounds.vocab
        # When the end is to be ignored, no token that ends an answer is ever chosen.
        ends = bounds.vocab.ends if sampling.ignore_eos else ()
        self._banned = np.fromiter(ends, np.intp)
        tokens, values = unpack_bias(sampling.bias)
        self._biased, self._added = np.array(tokens, np.intp), np.array(values, np.float32)
        if self._biased.max(initial=-1) >= bounds.vocab.size:
            raise DeviceFault(f"a biased token is not 0 to {bounds.vocab.size - 1}")
        self._tops = sampling.logprobs
        self.told: Logprob | None = None  # of the last choice
        self._matcher: Matcher | None = bounds.grammars.matcher(sampling)
        greedy = sampling.temperature < _COLD and not _penalised(sampling)
        self._picker: Picker = Greedy() if greedy else Chain(sampling, bounds)

    def choose(self, context: Context, index: int) -> int:
        """The next token; an end when the grammar leaves nothing else."""
        scores = context.logits(index)
        raw = scores.copy() if self._tops is not None else None
        if len(self._biased):
            scores[self._biased] += self._added
        if len(self._banned):
            scores[self._banned] = -np.inf
        _check(scores)
        token = self._picker.pick(scores)
        if self._matcher is not None and not self._matcher.allows(token):
            token = self._choose_again(self._matcher, scores)
        if token in self._vocab.ends:
            return token
        if self._matcher is not None:
            self._matcher.take(token)
        self._picker.note(token)
        if raw is not None:
            self.told = _logprob(raw, token, self._tops or 0, self._vocab)
        return token

    def _choose_again(self, matcher: Matcher, scores: Floats) -> int:
        """Among what the grammar allows; never of nothing, which would end the process."""
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
        """When the call ends."""
        self._picker.free()


def sampler(sampling: Sampling, bounds: Bounds) -> Sampler:
    """DeviceFault; the grammar has been checked before, so one that is none is a fault, too."""
    try:
        return Sampler(sampling, bounds)
    except SyscallError as error:
        raise DeviceFault(error.message, error.hint) from error


def _check(scores: Floats) -> None:
    # An infinite or undefined score would make a chain's probabilities undefined.
    if not math.isfinite(float(scores.max())):
        raise DeviceFault("the model computed no numbers")


def _logprob(raw: Floats, token: int, count: int, vocab: Vocab) -> Logprob:
    """By the model's own scores: before bias, grammar and temperature."""
    best = raw.max()
    total = float(best) + math.log(float(np.exp(raw - best).sum(dtype=np.float64)))
    tops: NDArray[np.intp] = (
        np.argpartition(raw, -count)[-count:] if count else np.empty(0, np.intp)
    )
    ranked = sorted(tops.tolist(), key=lambda one: (-raw[one], one))

    def likely(one: int) -> Likely:
        text, part = spelled(vocab.name(one))
        return Likely(one, text, float(raw[one]) - total, part)

    chosen = likely(token)
    text, part = spelled(vocab.piece(token))  # a control token says nothing
    return Logprob(token, text, chosen.logprob, [likely(one) for one in ranked], part)
