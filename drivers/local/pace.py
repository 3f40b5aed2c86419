"""How many prompt tokens a step computes, from the measured step times: pure functions.

In a step each decoding call generates one token; the prompts share the rest of the step's time, in
the order that the kernel gives. It reads no clock and does not use llama.cpp.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from llmasos.kernel.abi import limits

_WEIGHT = 0.4  # of the newest step in the moving average
_SIZE_TOKENS = 64  # between the sizes of steps that are full
_PREFILL_MIN_SHARE = 0.1  # of the duration of a step with prompt tokens


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

    def begin(self, fed: int, took_s: float) -> None:
        """Start with a trial step of `fed` prompt tokens."""
        if fed >= limits.CHUNK_MIN_TOKENS:
            self.token_s = took_s / fed

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


def recurring(room: int, answers: int) -> int:
    """Prompt tokens so that the step, with these answers, has one of a few sizes.

    On OpenVINO the first step of each size takes longer.
    """
    fewer = room - (room + answers) % _SIZE_TOKENS
    return fewer if fewer >= limits.CHUNK_MIN_TOKENS else room


def portions(feedable: Iterable[int], room: int) -> list[int]:
    """Prompt tokens for each call of an order: as many as may be fed, until the room is full."""
    sizes: list[int] = []
    for tokens in feedable:
        sizes.append(min(tokens, room))
        room -= sizes[-1]
    return sizes
