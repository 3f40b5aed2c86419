"""One generation as its caller observes it, and statistics of many concurrent ones. No I/O."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median, quantiles

import anyio

from llmasos.kernel.abi import values as v

from .rig import RigError


@dataclass(slots=True)
class TimedAnswer:
    """Filled in while the answer arrives. Times are seconds of `time.perf_counter`."""

    begun: float  # before anything was sent, including a spawn
    # Time and number of tokens of each piece of text.
    arrivals: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    ended: float = 0.0
    text: str = ""
    tokens: int = 0
    prompt_tokens: int = 0  # 0: not reported
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    logprobs: list[v.Logprob] = field(default_factory=list[v.Logprob])
    whole: bool = False  # it ended because it reached max_tokens
    first: anyio.Event = field(default_factory=anyio.Event)
    done: anyio.Event = field(default_factory=anyio.Event)

    def arrived(self, now: float, tokens: int) -> None:
        """Record that text has arrived."""
        self.arrivals.append((now, tokens))
        self.first.set()

    @property
    def ttft_s(self) -> float:
        if not self.arrivals:
            raise RigError("a generation ended without text")
        return self.arrivals[0][0] - self.begun

    @property
    def first_at(self) -> float:
        """When its first token arrived; a token without text of its own arrives with the end."""
        return self.arrivals[0][0] if self.arrivals else self.ended

    @property
    def digest(self) -> str:
        """Of its text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:8]

    @property
    def took_s(self) -> float:
        return self.ended - self.begun


@dataclass(frozen=True, slots=True)
class Crowded:
    """Statistics of concurrent answers."""

    rate: float  # generated tokens a second, from the first call to the last answer's end
    ttft_p50_s: float  # 0: not measured
    ttft_p95_s: float
    digest: str  # of the texts


def crowded(answers: Sequence[TimedAnswer], new: int, prompt: int) -> Crowded:
    """The statistics. RigError unless each has `prompt` prompt tokens and `new` new ones."""
    for one in answers:
        if not one.whole or one.tokens not in (0, new) or one.prompt_tokens not in (0, prompt):
            counts = f"{one.prompt_tokens} prompt tokens and {one.tokens} new ones"
            raise RigError(f"{counts} instead of {prompt} and {new}")
    took = max(one.ended for one in answers) - min(one.begun for one in answers)
    waits = [one.ttft_s for one in answers]
    p95 = quantiles(waits, n=20, method="inclusive")[18] if len(waits) > 1 else waits[0]
    texts = "\n".join(one.text for one in answers)
    digest = hashlib.sha256(texts.encode()).hexdigest()
    return Crowded(len(answers) * new / took, median(waits), p95, digest)


def longest_gap_s(answers: Sequence[TimedAnswer], since: float, until: float) -> float:
    """The longest pause between tokens of any answer that overlaps this interval."""
    times = ([at for at, _ in one.arrivals if at < until] + [until] for one in answers)
    return max(after - before for one in times for before, after in pairwise(one) if after > since)


def step_s(answers: Sequence[TimedAnswer]) -> float:
    """Time between two tokens while all of them generate."""
    begin = max(one.arrivals[0][0] for one in answers)
    end = min(one.arrivals[-1][0] for one in answers)
    counts = [sum(tokens for at, tokens in one.arrivals if begin < at <= end) for one in answers]
    if end <= begin or not median(counts):
        raise RigError("the generations did not overlap")
    return (end - begin) / median(counts)
