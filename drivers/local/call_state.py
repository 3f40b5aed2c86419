"""The state of a parked call, as values: a new process of the engine continues the call with it.

The sampler, the grammar and the text are not part of it: they are what the tokens of the answer
make of them, which are taken again without computing anything.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llmasos.kernel.abi.values import Logprob
from llmasos.kernel.abi.wire import build

from . import frames


@dataclass(frozen=True, slots=True)
class CallState:
    """What a call has computed and chosen."""

    answer: Sequence[int]  # its tokens so far
    pending: int | None  # chosen, not a part of the answer yet
    draws: int  # random numbers that its sampler has drawn
    begun: bool  # its reused prefix is in its context
    computed: int  # so many first tokens of prompt and answer are in its context
    script: int  # so many of them it computes before it decodes
    whole: int  # prompt tokens to compute when it began
    exact: int  # see Saved
    tainted: bool  # its domain was purged: its context is not shared
    bytes: int  # of its saved context; 0: its tokens are computed again
    # Of the last tokens of the answer, those that are not reported yet, and of `pending`.
    logprobs: Sequence[Logprob] = ()

    def encode(self) -> list[Any]:
        """The values of a frame."""
        return [
            frames.tokens_out(self.answer), self.pending, self.draws, self.begun, self.computed,
            self.script, self.whole, self.exact, self.tainted, self.bytes,
            [asdict(one) for one in self.logprobs],
        ]  # fmt: skip

    @classmethod
    def decode(cls, values: Sequence[Any]) -> "CallState":
        answer, pending, draws, begun, computed, script, whole, exact, tainted, size, scores = (
            values
        )
        return cls(
            frames.tokens_in(answer), pending, draws, begun, computed, script, whole, exact,
            tainted, size, [build(Logprob, one) for one in scores],
        )  # fmt: skip
