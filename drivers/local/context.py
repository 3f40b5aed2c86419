"""What the engine loop uses of a library: a model's vocabulary and the context of its sequences.

drivers/llama and drivers/openvino implement these protocols. An invalid argument ends a process
that computes in C or C++, so an implementation checks every argument and raises DeviceFault.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Tokens = NDArray[np.int32]


class Vocab(Protocol):
    """Texts to tokens and back. Thread-safe."""

    size: int
    begin: int | None  # the BOS token
    wants_begin: bool  # texts start with it (add_bos)
    ends: frozenset[int]  # all tokens that end an answer (EOG)
    names: frozenset[str]  # that the tokenizer finds in a text before it tokenizes the rest
    control: frozenset[str]  # names of control tokens
    dividing: frozenset[str]  # names at whose end a text can be divided

    @property
    def end(self) -> int | None:
        """The EOS token."""
        ...

    def tokenize(self, text: str, *, special: bool) -> "Tokens":
        """The tokens of a text. Raises EINVAL when it is not valid Unicode.

        `special`: the names of control tokens in the text become those tokens.
        """
        ...

    def piece(self, token: int) -> bytes:
        """A token's bytes; empty for a control token."""
        ...

    def text(self, token: int | None) -> str:
        """A token's name, also of a control token; empty when there is no such token."""
        ...

    def name(self, token: int) -> bytes:
        """A token's name in bytes: it may be part of a character."""
        ...


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive tokens of one slot in a batch."""

    slot: int
    first: int  # position
    tokens: Sequence[int]
    asks: int  # logits are needed after each of so many of its last tokens


class SavedState(Protocol):
    """The keys and values of a saved context."""

    @property
    def nbytes(self) -> int: ...

    def pieces(self) -> Iterator[memoryview]:
        """Its bytes in order, in pieces; valid until it is freed."""
        ...

    def free(self) -> None:
        """It is not loaded any more. Called once, by the thread that uses the context."""
        ...


@dataclass(frozen=True, slots=True)
class StateSize:
    """Bytes of a saved context: `fixed`, and `token` for each of its tokens. An upper bound."""

    fixed: int
    token: int


@dataclass(frozen=True, slots=True)
class Exactness:
    """How a deterministic engine divides its work so that results depend on nothing else.

    `piece_tokens`: prompts are cut at multiples of this; 0: the engine is not deterministic.
    `alone`: each piece of a prompt is a batch of its own. Otherwise several pieces may be computed
    as one, in a batch with other calls, but no part of a prompt is a single token.
    `answers_together`: answers share a batch, if a trial at the mount shows that no bit changes.
    """

    piece_tokens: int = 0
    alone: bool = False
    answers_together: bool = True

    def piece(self, first: int, prompt: int, most: int) -> int:
        """Tokens to compute of a prompt of which `first` are computed; about `most`."""
        size, left = self.piece_tokens, prompt - first
        if self.alone:
            return min(size - first % size, left)
        whole = (first + most) // size * size - first
        count = left if most >= left else max(whole, size - first % size)
        if left - count == 1:
            count = count - size if count > size else left
        return min(count, left)

    def reusable(self, same: int, prompt: int) -> int:
        """Tokens to reuse of a common prefix of a prompt."""
        whole = same // self.piece_tokens * self.piece_tokens
        if not self.alone and prompt - whole == 1:
            whole -= self.piece_tokens
        return max(0, whole)


class Context(Protocol):
    """The KV cache of all slots. Used by one thread."""

    slots: int
    batch_tokens: int  # maximum of a batch
    vocab_size: int
    threads: int
    copies_slots: bool  # a copy between slots is faster than one from memory
    exactness: Exactness

    @property
    def exact_runs(self) -> int:
        """In a slot of at most so many tokens, the only one in its batches, the last tokens have
        the same results in one run and one by one."""
        ...

    @property
    def trial_sizes(self) -> Sequence[int]:
        """Sizes of the batches that are computed before the first call."""
        ...

    def decode(self, runs: Sequence[Run]) -> dict[int, int]:
        """Compute one batch; for each slot that asks for logits, the index of the first ones.

        Those after the next tokens of the slot have the next indexes.
        """
        ...

    def logits(self, index: int) -> "Floats":
        """The logits after a token of the last batch; valid until the next one. May be changed."""
        ...

    def keep_hidden(self, on: bool) -> None:
        """Whether the next batches keep what `hidden` returns."""
        ...

    def hidden(self, index: int) -> "Floats":
        """The hidden state that the logits at this index were computed from, or these logits."""
        ...

    def length(self, slot: int) -> int:
        """Tokens in a slot."""
        ...

    def keep(self, slot: int, tokens: int) -> int:
        """Truncate a slot to its first `tokens`; the number that was kept: these, or 0."""
        ...

    def copy(self, slot: int, other: int) -> None:
        """Copy a whole slot to an empty one."""
        ...

    def save(self, slot: int) -> SavedState:
        """A slot's state, which stays as it is while the slot changes."""
        ...

    def load(self, slot: int, state: SavedState) -> None:
        """Put a saved state into an empty slot, any number of times."""
        ...

    def load_bytes(self, slot: int, tokens: int, data: memoryview) -> None:
        """Put the bytes of a saved state of so many tokens into an empty slot."""
        ...

    def state_size(self) -> StateSize:
        """The size of saved contexts. Empties slot 0."""
        ...

    def set_threads(self, threads: int) -> None:
        """Set the number of threads. Called between two steps."""
        ...


class VectorContext(Protocol):
    """Computes the outputs of a model at each token of a text, for an embedding."""

    def compute(self, tokens: list[int], first: int) -> "Floats":
        """Compute a piece of a text, whose first token is at position `first` of the text.

        Returns one row per token, valid until the next call. `first` 0 begins a text.
        """
        ...

    def set_threads(self, threads: int) -> None: ...
