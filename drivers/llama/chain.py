# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""Sampler chains of llama.cpp. Imported in child processes only.

A chain accepts each final token exactly once: a second time aborts the process.
"""

import ctypes
from typing import Any, cast

import numpy as np

from llmasos.drivers.local.sampler import COLD, Floats, penalised
from llmasos.kernel.abi.errors import DeviceFault
from llmasos.kernel.abi.values import Sampling

from .library import lib

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
_ROW = cast("Any", ctypes.POINTER(lib.llama_token_data))


class Candidates:
    """The candidate array of llama.cpp's chains. One is shared by all calls of an engine."""

    __slots__ = ("_array", "_ids", "_rows", "size")

    def __init__(self, size: int) -> None:
        self.size = size
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


class Chain:
    __slots__ = ("_candidates", "_chain", "_size")

    def __init__(self, sampling: Sampling, candidates: Candidates, window: int) -> None:
        self._candidates, self._size = candidates, candidates.size
        self._chain: Any = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for part in _parts(sampling, self._size, window):
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


def _parts(sampling: Sampling, vocab_size: int, window: int) -> list[Any]:
    """The samplers of a chain. The last one selects: a chain without one aborts the process."""
    parts: list[Any] = []
    if penalised(sampling):
        penalties = sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty
        parts.append(lib.llama_sampler_init_penalties(vocab_size, window, *penalties))
    if sampling.temperature < COLD:
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
