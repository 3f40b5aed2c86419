"""KV blocks against an obvious model: what each sequence wrote is what it reads."""

import random

import pytest

from llmasos.drivers.openvino.blocks import BLOCK_TOKENS, BlockTable, BlockTables
from llmasos.kernel.abi.errors import DeviceFault

SEQUENCES = 6
BLOCKS = 24


class Contents:
    """Block tables, the simulated contents of their blocks, and what should be in them."""

    def __init__(self) -> None:
        self.tables = BlockTables(SEQUENCES, BLOCKS)
        self.memory = [[0] * BLOCK_TOKENS for _ in range(BLOCKS)]
        self.expected: list[list[int]] = [[] for _ in range(SEQUENCES)]
        self.captured: list[tuple[BlockTable, list[int]]] = []
        self.written = 0

    def extend(self, growth: list[tuple[int, int]]) -> None:
        before = [self.tables.length(sequence) for sequence, _ in growth]
        for copy in self.tables.extend(growth):
            self.memory[copy.target][:] = self.memory[copy.source]
        for (sequence, tokens), first in zip(growth, before, strict=True):
            for position in range(first, first + tokens):
                self.written += 1
                block = self.tables.blocks(sequence)[position // BLOCK_TOKENS]
                self.memory[block][position % BLOCK_TOKENS] = self.written
                self.expected[sequence].append(self.written)

    def read(self, sequence: int) -> list[int]:
        blocks = self.tables.blocks(sequence)
        every = [value for block in blocks for value in self.memory[block]]
        return every[: self.tables.length(sequence)]

    def check(self) -> None:
        for sequence in range(SEQUENCES):
            assert self.read(sequence) == self.expected[sequence]
            assert len(self.tables.blocks(sequence)) == -(
                -len(self.expected[sequence]) // BLOCK_TOKENS
            )
        used = [block for one in range(SEQUENCES) for block in self.tables.blocks(one)]
        for table, expected in self.captured:
            assert [value for b in table.blocks for value in self.memory[b]][
                : table.length
            ] == expected
            used += table.blocks
        pool = self.tables.pool
        assert [used.count(block) for block in range(BLOCKS)] == pool.references
        assert pool.free == BLOCKS - len(set(used))


@pytest.mark.parametrize("seed", range(20))
def test_random_histories_lose_no_block_and_change_no_other_sequence(seed: int) -> None:
    dice = random.Random(seed)
    contents = Contents()
    refused = shared = restored = 0
    for _ in range(400):
        one = dice.randrange(SEQUENCES)
        match dice.randrange(6):
            case 0 | 1:
                chosen = dice.sample(range(SEQUENCES), dice.randint(1, 3))
                growth = [(sequence, dice.randint(1, 70)) for sequence in chosen]
                lengths = [contents.tables.length(sequence) for sequence in range(SEQUENCES)]
                try:
                    contents.extend(growth)
                except DeviceFault:
                    refused += 1
                    after = [contents.tables.length(sequence) for sequence in range(SEQUENCES)]
                    assert after == lengths
            case 2:
                kept = dice.randint(0, contents.tables.length(one))
                contents.tables.truncate(one, kept)
                del contents.expected[one][kept:]
            case 3:
                contents.captured.append(
                    (contents.tables.capture(one), list(contents.expected[one]))
                )
                if len(contents.captured) > 3:
                    table, _ = contents.captured.pop(dice.randrange(4))
                    contents.tables.release(table)
            case 4 if contents.captured:
                table, expected = dice.choice(contents.captured)
                contents.tables.truncate(one, 0)
                contents.tables.restore(one, table)
                contents.expected[one] = list(expected)
                restored += table.length > 0
            case _:
                other = (one + dice.randrange(1, SEQUENCES)) % SEQUENCES
                contents.tables.truncate(other, 0)
                contents.tables.copy(one, other)
                contents.expected[other] = list(contents.expected[one])
                shared += contents.tables.length(one) > 0
        contents.check()
    assert refused > 5
    assert shared > 20
    assert restored > 5


def test_a_copy_takes_no_block_until_it_writes() -> None:
    contents = Contents()
    contents.extend([(0, BLOCK_TOKENS + 5)])
    free = contents.tables.pool.free
    for target in (1, 2, 3):
        contents.tables.copy(0, target)
        contents.expected[target] = list(contents.expected[0])
    assert contents.tables.pool.free == free
    contents.extend([(1, 1)])
    assert contents.tables.pool.free == free - 1
    assert contents.tables.blocks(1)[0] == contents.tables.blocks(0)[0]
    contents.check()


def test_a_full_pool_is_refused_with_the_numbers() -> None:
    tables = BlockTables(2, 4)
    tables.extend([(0, 3 * BLOCK_TOKENS)])
    with pytest.raises(DeviceFault, match="needs 2 KV blocks of 32 tokens, 1 of 4 are free"):
        tables.extend([(1, BLOCK_TOKENS + 1)])
    assert tables.length(1) == 0


def test_impossible_copies_and_lengths_are_refused() -> None:
    tables = BlockTables(2, 4)
    tables.extend([(0, 10), (1, 3)])
    with pytest.raises(DeviceFault, match="sequence 1 is not empty"):
        tables.copy(0, 1)
    with pytest.raises(DeviceFault, match="cannot keep 11 tokens of sequence 0, which has 10"):
        tables.truncate(0, 11)


def test_sequences_that_share_their_last_block_grow_in_a_pool_for_both() -> None:
    contents = Contents()
    contents.tables = BlockTables(SEQUENCES, 2)
    contents.extend([(0, 5)])
    contents.tables.copy(0, 1)
    contents.expected[1] = list(contents.expected[0])
    contents.extend([(0, 1), (1, 1)])
    assert contents.tables.pool.free == 0
    assert [contents.read(one) for one in (0, 1)] == contents.expected[:2]
