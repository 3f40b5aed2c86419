"""Whether answers may be computed together without changing a bit: tried, not assumed.

Attention is computed row by row in a deterministic engine (see cpp.py). But llama.cpp's kernels
for quantised weights may differ by the number of rows of a product, and their last bits with them.
Mostly the next quantisation of the activations hides that, so equal scores once prove little. A
deterministic engine therefore cuts each prompt at fixed places and computes each piece alone.
Whether the rows of all answers are multiplied alike, alone and together, depends on the
quantisation and on the processor. That is tried here at the start, on a few hundred scores; where
they differ, answers are computed alone too.
"""

import random

import numpy as np

from .cpp import Context, Floats, Run

_COMPANIES = (1, 2, 3, 5, 7, 15)  # others beside the one that is compared
_ANSWER = 4  # tokens


def in_company(context: Context) -> bool:
    """Each token of an answer has the same scores alone and beside others, in any slot."""
    chance = random.Random(2)
    sizes = [chance.randrange(2, 60) for _ in range(context.slots)]
    prompts = [_tokens(chance, context, size) for size in sizes]
    answers = [_tokens(chance, context, _ANSWER) for _ in prompts]
    alone = [
        score for slot in range(context.slots) for score in _scores(context, prompts, answers, slot)
    ]
    equal = all(
        np.array_equal(alone[slot * _ANSWER + at], score)
        for others in _COMPANIES
        if others < context.slots
        for slot, at, score in _together(context, prompts, answers, others + 1)
    )
    _empty(context)
    return equal


def _scores(
    context: Context, prompts: list[list[int]], answers: list[list[int]], slot: int
) -> list[Floats]:
    """Of one answer, alone."""
    return [score for _, _, score in _together(context, prompts, answers, 1, first=slot)]


def _together(
    context: Context, prompts: list[list[int]], answers: list[list[int]], count: int, first: int = 0
) -> list[tuple[int, int, Floats]]:
    """(slot, token, scores) of so many answers that are computed in the same batches."""
    _empty(context)
    slots = range(first, first + count)
    for slot in slots:
        context.decode([Run(slot, 0, prompts[slot], asks=False)])
    found: list[tuple[int, int, Floats]] = []
    for at in range(_ANSWER):
        runs = [Run(s, len(prompts[s]) + at, [answers[s][at]], asks=True) for s in slots]
        asked = context.decode(runs)
        found += [(slot, at, context.logits(asked[slot]).copy()) for slot in slots]
    return found


def _tokens(chance: random.Random, context: Context, count: int) -> list[int]:
    return [chance.randrange(context.vocab_size) for _ in range(count)]


def _empty(context: Context) -> None:
    for slot in range(context.slots):
        context.keep(slot, 0)
