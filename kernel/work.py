"""What a device is mounted with, and the calls that it works on: values, and nothing that acts."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .decide import Claim
from .driver import Cut, Option, Prompt
from .errors import SyscallError
from .process import Process
from .values import Finish, Logprob, Sampling, Usage


@dataclass(frozen=True, slots=True)
class Mounting:
    """What is mounted, and how."""

    name: str  # of the image
    driver: str
    model: str  # another word when the model's file is another
    pin: bool = False
    remark: str = ""  # what `devices` says of it while all is well
    options: Mapping[str, Option] = field(default_factory=dict[str, Option])


@dataclass(slots=True)
class Work:
    """One generate on a device: its claim, its bounded stream, its account."""

    claim: Claim
    process: Process
    prompt: Prompt
    sampling: Sampling
    asked: float  # monotonic seconds
    pages: frozenset[int] = frozenset()  # ids of the stored pages in its prompt
    forgot: bool = False  # one of these was forgotten: nothing of its answer is kept or shown
    sent: bool = False  # somebody has read a part of its answer
    hash: bytes = b""  # of what it makes the engine do
    admitted: float = 0.0
    first: float = 0.0  # first answer token
    ended: float = 0.0
    cached: int = 0
    tokens: int = 0
    unread: int = 0  # tokens in the stream
    texts: list[str] = field(default_factory=list[str])
    logprobs: list[Logprob] = field(default_factory=list[Logprob])
    ready: asyncio.Event = field(default_factory=asyncio.Event)
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
        )
