"""What one step computes: a pure function of the ready calls and of the measured step times.

In a step each decoding call generates one token; the prompts share the rest of the step's time.
Prompts are fed in three groups: those of short calls, the one with the fewest tokens left first;
then those that are neither short nor long; then long ones. In the last two groups the order is that
of the calls given, which the kernel chooses by its grants of tokens. While a short call is active,
also one that decodes, a long prompt waits, but at most AGING_S for its next piece.

It reads no clock and does not use llama.cpp: it runs unchanged against a simulated engine.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmasos.kernel.abi import limits

_WEIGHT = 0.4  # of the newest step in the moving average
_PREFILL_MIN_SHARE = 0.1  # of the duration of a step with prompt tokens


@dataclass(frozen=True, slots=True)
class Ready:
    """A call that can take part in the next step."""

    feedable: int  # prompt tokens that it may be fed in this step; 0: it decodes
    tokens_to_end: int  # that it will compute at most, of prompt and answer
    unfed_s: float = 0.0  # since it was last fed
    prompt_at_start: int = 0  # tokens of its prompt to compute when it began; 0: it decodes

    @property
    def short(self) -> bool:
        return self.tokens_to_end < limits.SHORT_TOKENS

    @property
    def long(self) -> bool:
        """A prompt that would stall the others if it were fed in one step. It stays long to its
        end: the cost of a token grows with the context."""
        return max(self.feedable, self.prompt_at_start) > limits.LONG_TOKENS


@dataclass(slots=True)
class StepPace:
    """Moving averages of the duration of steps."""

    token_s: float = 0.0  # a token of a prompt; 0: not known yet
    decode_s: float = 0.0  # a step that only decodes

    def learn(self, fed: int, answers: int, took_s: float) -> None:
        """Record a step of `fed` prompt tokens and `answers` decoded tokens."""
        if fed == 0:
            self.decode_s = _average(self.decode_s, took_s)
        elif fed >= limits.CHUNK_MIN_TOKENS:
            prefill_s = took_s - (self.decode_s if answers else 0.0)
            # The averages lag, so the difference can be too small, even negative.
            prefill_s = max(prefill_s, _PREFILL_MIN_SHARE * took_s)
            self.token_s = _average(self.token_s, prefill_s / fed)

    def room(self, budget_s: float, *, answering: bool) -> int:
        """Prompt tokens that fit a step of `budget_s` seconds; 0 seconds: there is no limit.

        `answering`: there are decoding calls, and a long prompt that would stall them step after
        step. Without both, the step may take twice as long.
        """
        if budget_s <= 0:
            return limits.WINDOW_MAX
        if not self.token_s:
            return limits.CHUNK_TOKENS
        left_s = budget_s - self.decode_s if answering else 2 * budget_s
        return max(limits.CHUNK_MIN_TOKENS, int(left_s / self.token_s))


def _average(known: float, new: float) -> float:
    return new if not known else known + _WEIGHT * (new - known)


def portions(calls: Sequence[Ready], room: int) -> list[int]:
    """Prompt tokens for each call, by index: 0 for one that decodes or has to wait."""
    sizes = [0] * len(calls)
    for index in _order(calls):
        sizes[index] = min(calls[index].feedable, room)
        room -= sizes[index]
    return sizes


def _order(calls: Sequence[Ready]) -> Iterable[int]:
    """The indexes of the calls to feed, in order."""
    feeding = [index for index, call in enumerate(calls) if call.feedable]
    short = [index for index in feeding if calls[index].short]
    middle = [index for index in feeding if not calls[index].short and not calls[index].long]
    long = [index for index in feeding if calls[index].long]
    if any(call.short for call in calls):
        aged = [index for index in long if calls[index].unfed_s >= limits.AGING_S]
        long = aged[:1]  # one in a step: the short calls wait for each of them
    return [*sorted(short, key=lambda index: calls[index].tokens_to_end), *middle, *long]
