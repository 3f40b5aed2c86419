"""One generation as its caller saw it, and what a crowd of them says together. No I/O."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median, quantiles

import anyio

from llmasos.kernel import values as v

from .rig import RigError


@dataclass(slots=True)
class Answer:
    """Filled in while it comes. Times are seconds of `time.perf_counter`."""

    begun: float  # before anything was sent, a spawn included
    beats: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])  # when, tokens
    ended: float = 0.0
    text: str = ""
    tokens: int = 0
    prompt_tokens: int = 0  # 0: the other side does not tell
    cached_tokens: int = 0
    logprobs: list[v.Logprob] = field(default_factory=list[v.Logprob])
    whole: bool = False  # it ended because it had all the tokens that were asked for
    first: anyio.Event = field(default_factory=anyio.Event)
    done: anyio.Event = field(default_factory=anyio.Event)

    def beat(self, now: float, tokens: int) -> None:
        """Some text has come."""
        self.beats.append((now, tokens))
        self.first.set()

    @property
    def ttft_s(self) -> float:
        if not self.beats:
            raise RigError("a generation ended without a word")
        return self.beats[0][0] - self.begun

    @property
    def spoke(self) -> float:
        """When its first token was there; one that is no text by itself comes with the end."""
        return self.beats[0][0] if self.beats else self.ended

    @property
    def took_s(self) -> float:
        return self.ended - self.begun


@dataclass(frozen=True, slots=True)
class Crowded:
    """Answers to calls that were made at once."""

    rate: float  # generated tokens a second, from the first call to the last answer's end
    ttft_p50_s: float  # 0: nobody waited for a first token
    ttft_p95_s: float
    digest: str  # of what was said


def crowded(answers: Sequence[Answer], new: int, prompt: int) -> Crowded:
    """RigError unless each was fed `prompt` tokens and made `new`."""
    for one in answers:
        if not one.whole or one.tokens not in (0, new) or one.prompt_tokens not in (0, prompt):
            told = f"{one.prompt_tokens} tokens were fed, {one.tokens} generated"
            raise RigError(f"{told} instead of {prompt} and {new}")
    took = max(one.ended for one in answers) - min(one.begun for one in answers)
    waits = [one.ttft_s for one in answers]
    p95 = quantiles(waits, n=20, method="inclusive")[18]
    said = "\n".join(one.text for one in answers)
    digest = hashlib.sha256(said.encode()).hexdigest()
    return Crowded(len(answers) * new / took, median(waits), p95, digest)


def longest_gap_s(answers: Sequence[Answer], since: float, until: float) -> float:
    """The longest time that any of them said nothing, as far as it touches this interval."""
    times = ([at for at, _ in one.beats if at < until] + [until] for one in answers)
    return max(after - before for one in times for before, after in pairwise(one) if after > since)


def step_s(answers: Sequence[Answer]) -> float:
    """Time between two tokens while all of them speak."""
    begin = max(one.beats[0][0] for one in answers)
    end = min(one.beats[-1][0] for one in answers)
    counts = [sum(tokens for at, tokens in one.beats if begin < at <= end) for one in answers]
    if end <= begin or not median(counts):
        raise RigError("the generations did not overlap")
    return (end - begin) / median(counts)
