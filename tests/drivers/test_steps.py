"""The inputs of a paged step: every token at its position, and rows that nobody reads."""

import random

import pytest

from llmasos.drivers.openvino.steps import ROWS, Part, inputs, padded

SPARE = 99


def test_a_step_has_two_rows_or_more_and_few_sizes() -> None:
    assert [padded(rows) for rows in (0, 1, 2, 3, 16, 17, 32, 33)] == [2, 2, 2, 3, 16, 32, 32, 48]
    assert len({padded(rows) for rows in range(1, 513)}) == 15 + 31


def test_a_lone_row_has_a_companion_in_the_spare_block() -> None:
    step = inputs([Part(70, [5], [3, 1, 2], asks=1)], SPARE)
    assert step["inp_tokens"].tolist() == [[[[5, 0]]]]
    assert step["inp_pos"].tolist() == [[[[70, 0]]]]
    assert step["inp_out_ids"].tolist() == [[[[0, 1]]]]
    assert step["past_lens"].tolist() == [70, 0]
    assert step["subsequence_begins"].tolist() == [0, 1, 2]
    assert step["block_indices"].tolist() == [3, 1, 2, SPARE]
    assert step["block_indices_begins"].tolist() == [0, 3, 4]
    assert step["max_context_len"].tolist() == 71


@pytest.mark.parametrize("seed", range(20))
def test_random_steps_describe_each_token_once(seed: int) -> None:
    dice = random.Random(seed)
    parts = [
        Part(
            first := dice.randrange(100),
            piece := [dice.randrange(1000) for _ in range(dice.randint(1, 40))],
            [dice.randrange(SPARE) for _ in range(first // 32 + 2)],
            asks=dice.choice((0, 1, dice.randint(0, len(piece)))),
        )
        for _ in range(dice.randint(1, 6))
    ]
    step = inputs(parts, SPARE)
    rows = sum(len(part.tokens) for part in parts)
    tokens, positions = step["inp_tokens"].reshape(-1), step["inp_pos"].reshape(-1)
    begins, blocks = step["subsequence_begins"].tolist(), step["block_indices"].tolist()
    assert len(tokens) == len(positions) == padded(rows) == begins[-1]
    at = 0
    for number, part in enumerate(parts):
        end = at + len(part.tokens)
        assert begins[number : number + 2] == [at, end]
        assert tokens[at:end].tolist() == list(part.tokens)
        assert positions[at:end].tolist() == list(range(part.first, part.first + end - at))
        first, last = step["block_indices_begins"][number : number + 2]
        assert blocks[first:last] == list(part.blocks)
        at = end
    ends = begins[1 : len(parts) + 1]
    asked = [n for part, end in zip(parts, ends, strict=True) for n in range(end - part.asks, end)]
    wanted = step["inp_out_ids"].reshape(-1).tolist()
    assert wanted[: len(asked)] == asked
    assert set(wanted[len(asked) :]) <= {padded(rows) - 1}
    assert len(wanted) == padded(len(asked))
    if padded(rows) > rows:
        assert blocks[-1] == SPARE
        assert step["past_lens"][-1] == 0
        assert padded(rows) - rows < ROWS  # they fit one block


def test_every_row_of_a_text_to_embed_is_asked_for() -> None:
    step = inputs([Part(0, [1, 2, 3], [0], asks=0)], SPARE, every_row=True)
    assert step["inp_out_ids"].reshape(-1).tolist() == [0, 1, 2]
