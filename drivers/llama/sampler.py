"""How the next token is chosen: numpy's argmax where greed is all, llama.cpp's chain elsewhere.

The chain takes note of each token as it chooses it, so nothing here tells it a second time: that
ends the process. It belongs to a call, not to a slot: a parked call keeps it. Penalties look at
the answer only, so a context that was reused and one that was computed anew give the same answer.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmasos.kernel.errors import DeviceFault
from llmasos.kernel.values import Sampling

from .cpp import Context, lib

_COLD = 1e-3  # a temperature under this is greedy: scores over it would not be finite


class Sampler(Protocol):
    def choose(self, context: Context, index: int) -> int: ...
    def free(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a sampler must know of its engine."""

    vocab_size: int
    window: int  # tokens
    ends: frozenset[int]  # tokens that end an answer


def sampler(sampling: Sampling, bounds: Bounds) -> Sampler:
    """When the end is to be ignored, no token that ends an answer is ever chosen."""
    banned = np.fromiter(bounds.ends if sampling.ignore_eos else (), np.intp)
    if sampling.temperature < _COLD and not _penalised(sampling):
        return Greedy(banned)
    return Chain(_parts(sampling, bounds), banned)


def _penalised(sampling: Sampling) -> bool:
    return (
        sampling.repeat_penalty != 1
        or sampling.frequency_penalty != 0
        or sampling.presence_penalty != 0
    )


def _parts(sampling: Sampling, bounds: Bounds) -> list[Any]:
    parts: list[Any] = []
    if _penalised(sampling):
        penalties = sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty
        size, window = bounds.vocab_size, bounds.window
        parts.append(lib.llama_sampler_init_penalties(size, window, *penalties))
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


class Greedy:
    __slots__ = ("_banned",)

    def __init__(self, banned: NDArray[np.intp]) -> None:
        self._banned = banned

    def choose(self, context: Context, index: int) -> int:
        scores = context.logits(index)
        if len(self._banned):
            scores[self._banned] = -np.inf
        token = int(scores.argmax())
        if not math.isfinite(float(scores[token])):
            raise DeviceFault("the model computed no numbers")
        return token

    def free(self) -> None:
        pass


class Chain:
    __slots__ = ("_banned", "_chain")

    def __init__(self, parts: list[Any], banned: NDArray[np.intp]) -> None:
        self._banned = banned
        self._chain: Any = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for part in parts:
            if not part:
                raise DeviceFault("llama.cpp made no sampler")
            lib.llama_sampler_chain_add(self._chain, part)

    def choose(self, context: Context, index: int) -> int:
        if len(self._banned):
            context.logits(index)[self._banned] = -np.inf
        return context.sample(self._chain, index)

    def free(self) -> None:
        """Once, when the call ends."""
        lib.llama_sampler_free(self._chain)
