"""Tests whether answers can be computed in one batch without changing a bit.

Attention is computed row by row in a deterministic llama.cpp (see drivers/llama/context.py). But it
may choose a kernel for quantised weights by the number of rows of a matrix product, and the last
bits of the result differ by kernel. Mostly the next quantisation of the activations hides the
difference, in the logits too, so one equal result proves little: where the library has the hidden
states before the last matrix product, these are compared. A deterministic engine therefore splits
each prompt at fixed positions, and llama.cpp computes each piece alone. Whether the rows of answers
have the same results alone and in a batch depends on the quantisation and on the processor. It is
measured here at the start, on a few hundred tokens; if any differ, llama.cpp computes answers alone
too, and OpenVINO refuses the mount.
"""

import random

import numpy as np
from numpy.typing import NDArray

from .context import Context, Run

_OTHERS = (1, 2, 3, 5, 7, 15)  # other answers in the batch of the one that is compared
_ANSWER = 4  # tokens
RUN_TOKENS = 8  # of the trial of a run


def batches_are_exact(context: Context) -> bool:
    """Whether each answer token has the same result alone and in a batch."""
    chance = random.Random(2)
    counts = [others + 1 for others in _OTHERS if others < context.slots]
    sizes = [chance.randrange(2, 60) for _ in range(max(counts, default=0))]
    prompts = [_tokens(chance, context, size) for size in sizes]
    answers = [_tokens(chance, context, _ANSWER) for _ in prompts]
    alone = {
        (slot, at): result
        for first in range(len(prompts))
        for slot, at, result in _batched(context, prompts, answers, 1, first)
    }
    equal = all(
        np.array_equal(alone[slot, at], result)
        for count in counts
        for slot, at, result in _batched(context, prompts, answers, count)
    )
    _empty(context)
    return equal


def runs_are_exact(context: Context) -> bool:
    """Whether the last two tokens of a run have the same scores one by one. Uses slot 0."""
    tokens = _tokens(random.Random(3), context, RUN_TOKENS)
    first = len(tokens) - 2
    asked = context.decode([Run(0, 0, tokens, asks=2)])[0]
    together = [context.logits(asked + at).copy() for at in range(2)]
    context.keep(0, first)
    alone: list[NDArray[np.float32]] = []
    for at in range(first, len(tokens)):
        index = context.decode([Run(0, at, tokens[at : at + 1], asks=1)])[0]
        alone.append(context.logits(index).copy())
    context.keep(0, 0)
    return all(map(np.array_equal, together, alone))


def _batched(
    context: Context, prompts: list[list[int]], answers: list[list[int]], count: int, first: int = 0
) -> list[tuple[int, int, NDArray[np.float32]]]:
    """(slot, token, result) of `count` answers that are computed in the same batches."""
    slots = range(first, first + count)
    for slot in slots:
        _hold(context, slot, prompts[slot])
    found: list[tuple[int, int, NDArray[np.float32]]] = []
    context.keep_hidden(True)
    for at in range(_ANSWER):
        runs = [Run(s, len(prompts[s]) + at, [answers[s][at]], asks=1) for s in slots]
        asked = context.decode(runs)
        found += [(slot, at, context.hidden(asked[slot]).copy()) for slot in slots]
    context.keep_hidden(False)
    return found


def _hold(context: Context, slot: int, prompt: list[int]) -> None:
    """Let a slot have its prompt only, which is computed alone and once if it can be kept."""
    kept = context.keep(slot, min(len(prompt), context.length(slot)))
    if kept < len(prompt):
        context.keep(slot, 0)
        context.decode([Run(slot, 0, prompt, asks=0)])


def _tokens(chance: random.Random, context: Context, count: int) -> list[int]:
    return [chance.randrange(context.vocab_size) for _ in range(count)]


def _empty(context: Context) -> None:
    for slot in range(context.slots):
        context.keep(slot, 0)
