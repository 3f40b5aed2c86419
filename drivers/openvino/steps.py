"""The inputs of one step of a paged graph. Pure.

A step has at least two rows: OpenVINO computes a single row by another kernel, whose results
differ. Each new number of rows costs some milliseconds and about a megabyte that is never freed, so
larger steps are filled up to a multiple of ROWS. The additional rows are a sequence of their own,
in a block that no sequence reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROWS = 16  # steps of fewer rows have exact sizes
Inputs = dict[str, NDArray[np.int32]]


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive tokens of one sequence."""

    first: int  # position
    tokens: Sequence[int]
    blocks: Sequence[int]  # of the whole sequence, with room for the tokens
    asks: int  # logits are needed after each of so many of its last tokens


def padded(rows: int) -> int:
    """The rows that a step of so many is filled up to."""
    return max(2, rows) if rows <= ROWS else -(-rows // ROWS) * ROWS


def inputs(parts: Sequence[Part], spare: int, *, every_row: bool = False) -> Inputs:
    """The inputs by name. `spare`: the block of the additional rows.

    The output has a row for each token that is asked for, in order, then additional ones;
    `every_row`: a row for every token.
    """
    rows = sum(len(part.tokens) for part in parts)
    size = padded(rows)
    tokens, positions = np.zeros(size, np.int32), np.zeros(size, np.int32)
    begins, block_begins = [0], [0]
    blocks: list[int] = []
    asked: list[int] = []
    for part in parts:
        begin, end = begins[-1], begins[-1] + len(part.tokens)
        tokens[begin:end] = part.tokens
        positions[begin:end] = np.arange(part.first, part.first + len(part.tokens))
        begins.append(end)
        blocks += part.blocks
        block_begins.append(len(blocks))
        asked += range(end - part.asks, end)
    lengths = [part.first for part in parts]
    if size > rows:
        positions[rows:] = np.arange(size - rows)
        lengths.append(0)
        begins.append(size)
        blocks.append(spare)
        block_begins.append(len(blocks))
    wanted = list(range(rows)) if every_row else asked
    wanted += [size - 1] * (padded(len(wanted)) - len(wanted))
    longest = max(part.first + len(part.tokens) for part in parts)
    return {
        "inp_tokens": tokens.reshape(1, 1, 1, -1),
        "inp_pos": positions.reshape(1, 1, 1, -1),
        "inp_out_ids": np.array(wanted, np.int32).reshape(1, 1, 1, -1),
        "past_lens": np.array(lengths, np.int32),
        "subsequence_begins": np.array(begins, np.int32),
        "block_indices": np.array(blocks, np.int32),
        "block_indices_begins": np.array(block_begins, np.int32),
        "max_context_len": np.array(max(longest, size - rows), np.int32),
    }
