"""The mount parameters of a device, the calls that it computes, and their rate: values."""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..abi.errors import SyscallError
from ..abi.values import Finish, Logprob, Sampling, Usage
from ..driver import Cut, Option, Prompt
from ..process.table import Process
from .scheduler import Claim


@dataclass(frozen=True, slots=True)
class Mounting:
    """The parameters of a mount."""

    name: str  # of the image
    driver: str
    model: str  # identifies the model's file: different for a different file
    pin: bool = False
    remark: str = ""  # shown by `devices` while the device has no note of its own
    options: Mapping[str, Option] = field(default_factory=dict[str, Option])


@dataclass(slots=True)
class Work:
    """One generate on a device: its claim, its bounded stream, its counters."""

    claim: Claim
    process: Process
    prompt: Prompt
    sampling: Sampling
    requested: float  # monotonic seconds: when its request arrived
    asked: float  # when it was queued
    pages: frozenset[int] = frozenset()  # ids of the stored pages in its prompt
    forgot: bool = False  # one of these was forgotten: its answer is neither stored nor shown
    lost: bool = False  # the engine no longer had its prompt: it has to be composed again
    sent: bool = False  # a part of its answer was read
    hash: bytes = b""  # identifies the call in the quarantine
    admitted: float = 0.0
    first: float = 0.0  # first answer token
    ended: float = 0.0
    cached: int = 0
    tokens: int = 0
    drafted: int = 0  # by prompt lookup
    accepted: int = 0
    unread: int = 0  # tokens in the stream
    texts: list[str] = field(default_factory=list[str])
    logprobs: list[Logprob] = field(default_factory=list[Logprob])
    ready: asyncio.Event = field(default_factory=asyncio.Event)  # set when it has ended
    # Called when there is text in its stream; never raises. None: the handler does not stream.
    deliver: Callable[[], None] | None = None
    finish: Finish | None = None
    cuts: Sequence[Cut] = ()
    error: SyscallError | None = None

    @property
    def done(self) -> bool:
        return self.finish is not None or self.error is not None

    def usage(self) -> Usage:
        admitted = self.admitted or self.ended
        first = self.first or self.ended
        return Usage(
            prompt_tokens=self.prompt.size,
            cached_tokens=self.cached,
            completion_tokens=self.tokens,
            queue_s=round(admitted - self.asked, 6),
            prefill_s=round(first - admitted, 6),
            decode_s=round(self.ended - first, 6),
            prepare_s=round(self.asked - self.requested, 6),
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
        )


class Rate:
    """Tokens per second over the last seconds, by exponential decay."""

    _HALF_LIFE_S = 4.0

    def __init__(self) -> None:
        self._tokens = 0.0
        self._at = 0.0

    def value(self, now: float) -> float:
        return self._decayed(now) * 0.6931 / self._HALF_LIFE_S  # ln 2 / half-life

    def add(self, tokens: int, now: float) -> None:
        self._tokens = self._decayed(now) + tokens
        self._at = now

    def _decayed(self, now: float) -> float:
        return self._tokens * math.exp2((self._at - now) / self._HALF_LIFE_S)
