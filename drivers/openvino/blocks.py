"""Physical KV blocks and the block tables of sequences: bookkeeping without a tensor.

A block holds the keys and values of BLOCK_TOKENS consecutive tokens of a sequence. A sequence is a
list of blocks, its block table, and a length. Sequences share blocks by reference counts: a copy of
a sequence shares all of them and costs no memory. Before a sequence writes into a block that
another one has, too, it takes a new block and copies the old one into it. Whether a sequence fits
is known before anything changes, so an error leaves every table as it was.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmasos.kernel.abi.errors import DeviceFault

BLOCK_TOKENS = 32  # the block size of OpenVINO's paged attention on a CPU
# Of each pool: one for the additional rows of steps (steps.py), one for a token that is computed
# after a lone one and removed again.
SPARE_BLOCKS = 2


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """The contents of a block that have to be in another one before it is written."""

    source: int
    target: int


class BlockPool:
    """All blocks of an engine, each with the number of sequences that have it."""

    def __init__(self, blocks: int) -> None:
        self.references = [0] * blocks
        # The block that was freed last is taken first: its memory is in use already.
        self._free = list(range(blocks - 1, -1, -1))

    @property
    def free(self) -> int:
        """Blocks that no sequence has."""
        return len(self._free)

    def take(self) -> int:
        """A free block, for one sequence. The caller has checked that there is one."""
        block = self._free.pop()
        self.references[block] = 1
        return block

    def share(self, block: int) -> None:
        """Another sequence has the block, too."""
        self.references[block] += 1

    def release(self, block: int) -> None:
        """A sequence has the block no more."""
        self.references[block] -= 1
        if not self.references[block]:
            self._free.append(block)


@dataclass(slots=True)
class BlockTable:
    """The blocks of one sequence, in order."""

    blocks: list[int] = field(default_factory=list[int])
    length: int = 0  # tokens


class BlockTables:
    """The sequences of an engine, by number."""

    def __init__(self, sequences: int, blocks: int) -> None:
        self.pool = BlockPool(blocks)
        self._blocks = blocks
        self._tables = [BlockTable() for _ in range(sequences)]

    def length(self, sequence: int) -> int:
        """Tokens of a sequence."""
        return self._tables[sequence].length

    def blocks(self, sequence: int) -> Sequence[int]:
        """The block table of a sequence."""
        return self._tables[sequence].blocks

    def needed(self, sequence: int, tokens: int) -> int:
        """Free blocks that a sequence takes when it grows by so many tokens."""
        table = self._tables[sequence]
        return _blocks(table.length + tokens) - len(table.blocks) + self._writes_shared(table)

    def extend(self, growth: Sequence[tuple[int, int]]) -> list[BlockCopy]:
        """Let sequences grow: (sequence, tokens) each. The copies to make before they are written.

        A sequence occurs once. DeviceFault when there are too few free blocks; nothing changes.
        """
        needed = sum(self.needed(sequence, tokens) for sequence, tokens in growth)
        # The last of several sequences that write into a block has it alone then, and copies none.
        writers = Counter(
            table.blocks[-1]
            for sequence, _ in growth
            if self._writes_shared(table := self._tables[sequence])
        )
        needed -= sum(self.pool.references[block] == count for block, count in writers.items())
        if needed > self.pool.free:
            raise DeviceFault(
                f"the step needs {needed} KV blocks of {BLOCK_TOKENS} tokens, "
                f"{self.pool.free} of {self._blocks} are free"
            )
        copies: list[BlockCopy] = []
        for sequence, tokens in growth:
            table = self._tables[sequence]
            if self._writes_shared(table):
                old, new = table.blocks[-1], self.pool.take()
                self.pool.release(old)
                table.blocks[-1] = new
                copies.append(BlockCopy(old, new))
            table.length += tokens
            while len(table.blocks) < _blocks(table.length):
                table.blocks.append(self.pool.take())
        return copies

    def _writes_shared(self, table: BlockTable) -> bool:
        """Whether its next token is written into a block that another sequence has, too."""
        return table.length % BLOCK_TOKENS > 0 and self.pool.references[table.blocks[-1]] > 1

    def truncate(self, sequence: int, tokens: int) -> None:
        """Keep the first tokens of a sequence. DeviceFault when it has fewer."""
        table = self._tables[sequence]
        if not 0 <= tokens <= table.length:
            raise DeviceFault(
                f"cannot keep {tokens} tokens of sequence {sequence}, which has {table.length}"
            )
        table.length = tokens
        for block in table.blocks[_blocks(tokens) :]:
            self.pool.release(block)
        del table.blocks[_blocks(tokens) :]

    def copy(self, source: int, target: int) -> None:
        """Let an empty sequence share all blocks of another one. DeviceFault if it has tokens."""
        if source == target:
            raise DeviceFault(f"sequence {target} is not empty")
        self.restore(target, self._tables[source])

    def capture(self, sequence: int) -> BlockTable:
        """A table that shares all blocks of a sequence, until it is released."""
        origin = self._tables[sequence]
        for block in origin.blocks:
            self.pool.share(block)
        return BlockTable(list(origin.blocks), origin.length)

    def restore(self, sequence: int, captured: BlockTable) -> None:
        """Let an empty sequence share the blocks of a table. DeviceFault if it has tokens."""
        table = self._tables[sequence]
        if table.length:
            raise DeviceFault(f"sequence {sequence} is not empty")
        for block in captured.blocks:
            self.pool.share(block)
        table.blocks, table.length = list(captured.blocks), captured.length

    def release(self, captured: BlockTable) -> None:
        """A table is used no more."""
        for block in captured.blocks:
            self.pool.release(block)


def _blocks(tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // BLOCK_TOKENS)
