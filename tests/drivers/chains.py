# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""Sampler chains of llama.cpp, to compare ours with.

A chain that accepts a token twice, or selects none, ends the process.
"""

import ctypes
from typing import Any, cast

import numpy as np

from llmasos.drivers.llama.library import lib
from llmasos.drivers.local.picking import COLD, Floats, penalised
from llmasos.kernel.abi.values import Sampling

WINDOW = 4096  # tokens that penalties consider
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
_ROW = cast("Any", ctypes.POINTER(lib.llama_token_data))


class Chain:
    """The chain for the settings of a call. `selects`: it ends with a choice."""

    def __init__(self, sampling: Sampling, size: int, *, selects: bool = True) -> None:
        self._rows = np.zeros(size, _CANDIDATE)
        self._chain: Any = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        parts = [*_filters(sampling, size), *(_choice(sampling) if selects else ())]
        for part in parts:
            assert part
            lib.llama_sampler_chain_add(self._chain, part)

    def apply(self, scores: Floats) -> Any:
        """The candidates that are left."""
        array: Any = lib.llama_token_data_array()
        self._rows["id"], self._rows["logit"] = np.arange(len(scores)), scores
        array.data = self._rows.ctypes.data_as(_ROW)
        array.size, array.selected, array.sorted = len(scores), -1, False
        lib.llama_sampler_apply(self._chain, ctypes.byref(array))
        return array

    def pick(self, scores: Floats) -> int:
        array = self.apply(scores)
        assert 0 <= array.selected < array.size
        return int(array.data[array.selected].id)

    def left(self, scores: Floats) -> set[int]:
        """The tokens that the filters leave: the first ones of the rows."""
        count = self.apply(scores).size
        return set(self._rows["id"][:count].tolist())

    def accept(self, token: int) -> None:
        lib.llama_sampler_accept(self._chain, token)

    def free(self) -> None:
        lib.llama_sampler_free(self._chain)


def surviving(scores: Floats, sampling: Sampling) -> set[int]:
    """The tokens that llama.cpp's filters leave."""
    chain = Chain(sampling, len(scores), selects=False)
    found = chain.left(scores)
    chain.free()
    return found


def _filters(sampling: Sampling, size: int) -> list[Any]:
    parts: list[Any] = []
    if penalised(sampling):
        penalties = sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty
        parts.append(lib.llama_sampler_init_penalties(size, WINDOW, *penalties))
    if sampling.top_k > 0:
        parts.append(lib.llama_sampler_init_top_k(sampling.top_k))
    if sampling.top_p < 1:
        parts.append(lib.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0:
        parts.append(lib.llama_sampler_init_min_p(sampling.min_p, 1))
    return parts


def _choice(sampling: Sampling) -> list[Any]:
    if sampling.temperature < COLD:
        return [lib.llama_sampler_init_greedy()]
    temperature = lib.llama_sampler_init_temp(sampling.temperature)
    return [temperature, lib.llama_sampler_init_dist(sampling.seed or 0)]
