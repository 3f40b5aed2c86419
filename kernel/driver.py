"""What the kernel asks of a device: Protocols and the values that cross them.

A driver is a module, mounted by its dotted name, that satisfies `Driver`. The kernel calls an
engine in two ways: `async def` where an answer is awaited, `def` for commands that are only sent
(the answer is a later Step). A command never waits and never raises: a dead engine says so through
`Listener.down`, after which it ends no call and takes no command until `Listener.up`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .errors import DeviceFault
from .values import Finish, Message, Sampling

Option = bool | int | float | str


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What a model file says of itself."""

    architecture: str
    licence: str  # SPDX id, LicenseRef-* or NOASSERTION
    context: int  # tokens the model was trained for
    bytes: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What an engine that is up can hold and do."""

    slots: int  # sequences resident at once
    width: int  # sequences in one step
    window: int  # tokens a slot
    cells: int  # tokens all slots together
    os_pid: int  # 0: no process of its own
    placement: str  # "cpu: 2 threads, this build of llama.cpp has no GPU"
    capabilities: frozenset[str]  # of: tokenize, seed, template, park, exact_usage


@dataclass(frozen=True, slots=True)
class Cut:
    """A page to be: a piece of one message."""

    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation as the engine will read it, and the last messages cut into pages."""

    tokens: Sequence[int]
    cuts: Sequence[Sequence[Cut]]  # one list of cuts for each of the messages asked for


@dataclass(frozen=True, slots=True)
class Step:
    """What one engine step did for one call. One with `finish` or `error` is the call's last."""

    call: int
    text: str = ""  # whole UTF-8, never part of a stop string
    tokens: int = 0  # generated in this step
    fed: int = 0  # prompt tokens computed in this step
    cached: int = 0  # prompt tokens found in the slot; told once, at once after admit
    finish: Finish | None = None
    error: DeviceFault | None = None
    cuts: Sequence[Cut] = ()  # with finish: the whole answer, cut into pages


@dataclass(frozen=True, slots=True)
class Admission:
    """A call to be computed in a slot."""

    call: int
    slot: int
    history: int  # the process; its tokens in the slot are reused, nobody else's
    tokens: Sequence[int]
    sampling: Sampling  # max_tokens and seed are set


class Listener(Protocol):
    """The kernel's ear for one engine. All three are called on the kernel's event loop."""

    def up(self, facts: Facts) -> None: ...
    def stepped(self, steps: Sequence[Step]) -> None: ...
    def down(self, reason: str, *, final: bool) -> None:
        """The engine died, every admitted call is lost. `final`: it will not come back."""
        ...


class Engine(Protocol):
    """A device that turns tokens into tokens."""

    async def start(self, listener: Listener) -> None:
        """Load; returns after `listener.up`. DeviceFault with the reason; ENOMEM: too big."""
        ...

    async def stop(self) -> None: ...

    async def tokenize(self, text: str) -> Sequence[int]: ...

    async def compose(self, messages: Sequence[Message], *, raw: bool, fresh: int) -> Prompt:
        """Render `messages` by the model's template (`raw`: joined as they are) and tokenize.

        The last `fresh` messages are cut into pages of at most PAGE_TOKENS. EINVAL when the
        template refuses them, ETIMEDOUT when it does not end.
        """
        ...

    def admit(self, admission: Admission) -> None:
        """Take the call into its free slot. It computes nothing before a grant."""
        ...

    def grant(self, call: int, tokens: int) -> None:
        """Let the call compute this many more tokens, prompt and answer alike.

        Grants add up. What was cached counts against them as if it had been computed, so a call
        may be in debt until a later grant: both sides only add and subtract, in any order.
        """
        ...

    def cancel(self, call: int) -> None:
        """End it at the next step: a Step with finish=CANCELLED follows, unless it just ended."""
        ...

    def park(self, call: int) -> None:
        """Save the call's context outside its slot; the slot is free at once."""
        ...

    def unpark(self, call: int, slot: int) -> None:
        """Bring it back, bit for bit."""
        ...


class Driver(Protocol):
    """A driver module."""

    def probe(self, path: Path) -> ImageFacts:
        """Read a model file's header with bounds. EINVAL with the reason; may block."""
        ...

    def check(self, options: Mapping[str, Option]) -> None:
        """EINVAL for an unknown option or a bad value, with what is allowed."""
        ...

    def engine(self, path: Path, options: Mapping[str, Option], log: Path) -> Engine:
        """An engine that is not started. `log` takes what its process prints."""
        ...
