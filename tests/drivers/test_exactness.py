"""How a deterministic engine cuts prompts: wherever it is interrupted, the same bits follow."""

import random

import pytest

from llmasos.drivers.local.context import Exactness

ALONE = Exactness(128, alone=True)
TOGETHER = Exactness(32, alone=False)


def cut(exactness: Exactness, first: int, prompt: int, dice: random.Random) -> list[int]:
    """The sizes of the pieces, under steps with room for any number of tokens."""
    sizes: list[int] = []
    while first < prompt:
        size = exactness.piece(first, prompt, dice.randint(1, 300))
        assert 0 < size <= prompt - first
        sizes.append(size)
        first += size
    return sizes


@pytest.mark.parametrize("seed", range(50))
def test_pieces_that_are_computed_alone_are_always_the_same(seed: int) -> None:
    dice = random.Random(seed)
    prompt = dice.randint(1, 1000)
    pieces = cut(ALONE, 0, prompt, dice)
    assert pieces == [128] * (prompt // 128) + [prompt % 128] * bool(prompt % 128)
    reused = ALONE.reusable(dice.randint(0, prompt - 1), prompt)
    assert cut(ALONE, reused, prompt, dice) == pieces[reused // 128 :]


@pytest.mark.parametrize("seed", range(200))
def test_pieces_beside_other_calls_are_whole_blocks_and_no_single_tokens(seed: int) -> None:
    dice = random.Random(seed)
    prompt = dice.choice([dice.randint(2, 1000), 32 * dice.randint(1, 20) + 1])
    reused = TOGETHER.reusable(dice.randint(0, prompt - 1), prompt)
    assert reused % 32 == 0
    assert prompt - reused != 1
    sizes = cut(TOGETHER, reused, prompt, dice)
    assert all(size > 1 for size in sizes)
    assert all(size % 32 == 0 for size in sizes[:-1])


def test_a_prompt_of_one_token_is_computed() -> None:
    assert TOGETHER.piece(0, 1, 1) == 1
    assert TOGETHER.reusable(0, 1) == 0
