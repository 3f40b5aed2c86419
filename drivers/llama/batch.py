"""What one step computes: a plain function of the calls that are ready, and how long steps take.

In a step each answering call gives one token; the prompts share what is left of the step's time.
Calls that owe little go first: while one of them is at work, a long prompt waits, but never longer
than AGING_S for its next piece. Prompts of the same kind are fed in the order of their grants,
which is the kernel's: that is where weights count.

No clock of its own, no llama.cpp: it runs unchanged against a simulated engine.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmasos.kernel import limits

_WEIGHT = 0.4  # of the newest step in what is known


@dataclass(frozen=True, slots=True)
class Ready:
    """A call that may compute now."""

    left: int  # prompt tokens that it may be fed; 0: it answers
    owes: int  # tokens to its end, prompt and answer
    waits_s: float = 0.0  # since it was last fed
    whole: int = 0  # tokens of its prompt when it began; 0: it answers

    @property
    def short(self) -> bool:
        return self.owes < limits.SHORT_TOKENS

    @property
    def long(self) -> bool:
        """A prompt that would stall the others if it were fed at once. It is so to its end: deep in
        a context a token costs more."""
        return max(self.left, self.whole) > limits.LONG_TOKENS


@dataclass(slots=True)
class Pace:
    """How long steps take, learned from each of them."""

    token_s: float = 0.0  # a token of a prompt, lately; 0: not known yet
    decode_s: float = 0.0  # a step of answers alone

    def learn(self, fed: int, answers: int, took_s: float) -> None:
        """A step of `fed` prompt tokens and so many answers took so long."""
        if fed == 0:
            self.decode_s = _blend(self.decode_s, took_s)
        elif fed >= limits.CHUNK_MIN_TOKENS:
            alone = took_s - (self.decode_s if answers else 0.0)
            self.token_s = _blend(self.token_s, max(alone, 0.1 * took_s) / fed)

    def room(self, budget_s: float, *, answering: bool) -> int:
        """Prompt tokens that fit the step; one without answers, or without a long prompt, may take
        twice as long: then there is nobody to stall, or it is soon over."""
        if budget_s <= 0:
            return limits.WINDOW_MAX
        if not self.token_s:
            return limits.CHUNK_TOKENS
        left_s = budget_s - self.decode_s if answering else 2 * budget_s
        return max(limits.CHUNK_MIN_TOKENS, int(left_s / self.token_s))


def _blend(known: float, new: float) -> float:
    return new if not known else known + _WEIGHT * (new - known)


def portions(calls: Sequence[Ready], room: int) -> list[int]:
    """Prompt tokens for each call, in its place: 0 for who answers or has to wait."""
    given = [0] * len(calls)
    for index in _order(calls):
        given[index] = min(calls[index].left, room)
        room -= given[index]
    return given


def _order(calls: Sequence[Ready]) -> Iterable[int]:
    """Who is fed, the first first."""
    feeding = [index for index, call in enumerate(calls) if call.left]
    short = [index for index in feeding if calls[index].short]
    middle = [index for index in feeding if not calls[index].short and not calls[index].long]
    long = [index for index in feeding if calls[index].long]
    if any(call.short for call in calls):
        long = [index for index in long if calls[index].waits_s >= limits.AGING_S][:1]
    return [*sorted(short, key=lambda index: calls[index].owes), *middle, *long]
