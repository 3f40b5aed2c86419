"""What the kernel asks of a device: Protocols and the values that cross them.

A driver is a module, mounted by its dotted name, that satisfies `Driver`. The kernel calls an
engine in two ways: `async def` where an answer is awaited, `def` for commands that are only sent
(the answer is a later Step). A command never waits and never raises: a dead engine says so through
`Listener.down`, after which it ends no call and takes no command until `Listener.up`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from . import limits
from .errors import DeviceFault
from .values import Finish, Hardware, Logprob, Message, Progress, Quality, Sampling

Option = bool | int | float | str
CAPABILITIES = (
    "tokenize",  # its tokens are known: exact page sizes, `tokenize`
    "template",  # it renders conversations itself
    "seed",  # a seed gives the same answer again
    "park",  # a context can leave its slot and come back
    "share",  # calls of one domain share what their prompts begin with
    "exact_usage",  # tokens are counted, not estimated
    "grammar",  # GBNF and JSON schema
    "logprobs",
    "bias",
    "stop",
    "embed",
    "deterministic",  # it can be mounted so
)


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What a model file says of itself."""

    architecture: str
    licence: str  # SPDX id, LicenseRef-* or NOASSERTION
    context: int  # tokens the model was trained for
    bytes: int
    quantisation: str = ""  # as Q8_0


@dataclass(frozen=True, slots=True)
class Facts:
    """What an engine that is up can hold and do."""

    slots: int  # sequences resident at once
    width: int  # sequences in one step
    window: int  # tokens a slot
    cells: int  # tokens all slots together
    os_pid: int  # 0: no process of its own
    placement: str  # "cpu: 2 threads, this build of llama.cpp has no GPU"
    capabilities: frozenset[str]  # of CAPABILITIES
    vocab: int = 0  # tokens that exist; 0: not told
    turn: int = limits.PROMPT_QUANTUM_TOKENS  # tokens of one prompt before another's turn
    deterministic: bool = False  # what runs beside a call changes nothing in it
    on: str = ""  # name of the hardware
    trained: int = 0  # tokens the model was trained for, as a window may have; 0: not told
    hardware: Sequence[Hardware] = ()  # all that the engine's library found
    parked_bytes: int = 0  # saved contexts of parked calls may take so much
    context_bytes: int = 0  # a saved context takes this, and token_bytes for each token in it
    token_bytes: int = 0  # 0: saved contexts take nothing that is counted


@dataclass(frozen=True, slots=True)
class Cut:
    """A page to be: a piece of one message."""

    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation as the engine will read it, and the last messages cut into pages."""

    tokens: Sequence[int]  # empty: the engine reads `messages`
    cuts: Sequence[Sequence[Cut]]  # one list of cuts for each of the messages asked for
    messages: Sequence[Message] = ()
    raw: bool = False
    estimate: int = 0  # tokens, where they are not known

    @property
    def size(self) -> int:
        """Tokens that it takes in a window."""
        return len(self.tokens) or self.estimate


@dataclass(frozen=True, slots=True)
class Vectors:
    """Texts as points of the model's space."""

    dimensions: int
    vectors: Sequence[bytes]  # one a text, of length 1: little-endian 32-bit floats
    tokens: int  # of all texts


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
    logprobs: Sequence[Logprob] = ()  # of the tokens, when asked for


@dataclass(frozen=True, slots=True)
class Admission:
    """A call to be computed in a slot."""

    call: int
    slot: int
    history: int  # the process
    domain: str  # who may share what was computed: equal domains only
    prompt: Prompt
    sampling: Sampling  # max_tokens and seed are set


@dataclass(frozen=True, slots=True)
class Tuning:
    """A file to be requantised. `target` appears when it is whole, and not before."""

    path: Path
    target: Path
    quantisation: str
    measure: bool  # speed and perplexity, before and after
    log: Path


class Cause(StrEnum):
    """What ended a device. Only a crash is held against the calls that were in it."""

    CRASH = "crash"  # its own code: a fatal signal, an exit, a hang
    MEMORY = "memory"  # the system killed it for want of memory
    OUTSIDE = "outside"  # a signal from outside, or a restart on request


@dataclass(frozen=True, slots=True)
class Death:
    """How a device ended, or was not started again, and what follows. It is always tried again."""

    reason: str
    cause: Cause = Cause.CRASH
    failed: bool = False  # it died too often in a row: its calls end, others are refused
    deaths: int = 1  # in a row
    retry_s: float = 0.0  # until the next try


class Listener(Protocol):
    """The kernel's ear for one engine. All are called on the kernel's event loop."""

    def loading(self, done: float) -> None:
        """So much of the model has been read, 0 to 1."""
        ...

    def up(self, facts: Facts) -> None: ...
    def stepped(self, steps: Sequence[Step]) -> None: ...
    def down(self, death: Death) -> None:
        """The engine died, or did not start again: every admitted call is lost."""
        ...


class Engine(Protocol):
    """A device that turns tokens into tokens."""

    async def start(self, listener: Listener) -> None:
        """Load; returns after `listener.up`. DeviceFault with the reason; ENOMEM: too big."""
        ...

    async def stop(self) -> None: ...

    def retry(self) -> None:
        """While it is down: start it now, and not after the pause. `up` or `down` follows."""
        ...

    async def restart(self) -> None:
        """End it, if it is up, and start it at once: `down` and then `up` or `down` follow."""
        ...

    async def tokenize(self, text: str) -> Sequence[int]: ...

    async def compose(self, messages: Sequence[Message], *, raw: bool, fresh: int) -> Prompt:
        """Render `messages` by the model's template (`raw`: joined as they are) and tokenize.

        The last `fresh` messages are cut into pages of at most PAGE_TOKENS. EINVAL when the
        template refuses them, ETIMEDOUT when it does not end.
        """
        ...

    async def check(self, sampling: Sampling) -> None:
        """EINVAL for a grammar that is none, with the place, or a token id that does not exist."""
        ...

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Texts to vectors. ENOTSUP; E2BIG names the text that is over the window."""
        ...

    def forget(self, history: int) -> None:
        """The process is gone: drop what is kept of its contexts."""
        ...

    def purge(self, domain: str) -> None:
        """Something of this domain was forgotten: drop all that is kept of it and not in use.

        What a call uses, parked or not, is shared with no other call and dropped with that call.
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

    def park(self, call: int, *, keep: bool) -> None:
        """Take the call out of its slot, which is free at once. Never ends the call.

        `keep`: save its context, which the caller has counted against `parked_bytes`. Else, and
        where saving fails, only its tokens are kept: after `unpark` they are computed again, and
        told as `fed` once more.
        """
        ...

    def unpark(self, call: int, slot: int) -> None:
        """Bring it back: a saved context bit for bit."""
        ...


class Driver(Protocol):
    """A driver module."""

    def probe(self, path: Path) -> ImageFacts:
        """Read a model file's header with bounds. EINVAL with the reason; may block."""
        ...

    def check(self, options: Mapping[str, Option]) -> None:
        """EINVAL for an unknown option or a bad value, with what is allowed."""
        ...

    async def models(self, options: Mapping[str, Option]) -> Sequence[str]:
        """The models that the endpoint of these options lists, after a look at it.

        None: it has no list, and the options name a model. DeviceFault: it cannot be reached, it
        refuses, or it lacks the model that the options name. ENOTSUP: this driver has no endpoints.
        """
        ...

    def engine(self, path: Path, options: Mapping[str, Option], log: Path) -> Engine:
        """An engine that is not started. `log` takes what its process prints."""
        ...

    def hardware(self) -> Sequence[Hardware]:
        """What this machine has to compute with, as far as this driver can use it. May block."""
        ...

    async def tune(
        self, request: Tuning, tell: Callable[[Progress], None]
    ) -> tuple[Quality, Quality]:
        """Requantise a file; the qualities before and after. ENOTSUP, EINVAL, ENOSPC, EIO."""
        ...


# --- recall: meaning ----------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class RecallFacts:
    """What a recall device that is up can do."""

    os_pid: int
    embedder: str  # what makes its vectors; another name: not comparable. Empty: it makes none
    dimensions: int  # of those vectors


@dataclass(frozen=True, slots=True)
class Reach:
    """What a search looks at of one collection: the pages at these places."""

    space: int  # an address space or a mapping: one collection of vectors
    first: int
    last: int  # itself too


@dataclass(frozen=True, slots=True)
class Likeness:
    """How near pages are to a question: cosines, smoothed over the neighbours of each page."""

    pages: Sequence[int]  # space << 32 | place
    scores: Sequence[float]
    mean: float  # of the scores of all pages in reach
    spread: float  # standard deviation of these
    unknown: Sequence[int] = ()  # spaces in reach that it holds nothing of: `add` them, ask again
    note: str = ""  # why the answer is not what it could be


class RecallListener(Protocol):
    def up(self, facts: RecallFacts) -> None: ...
    def down(self, death: Death) -> None:
        """It died and holds nothing any more, or it did not start again."""
        ...


class Recall(Protocol):
    """A device that finds pages by meaning. `owner` is an owner's directory; a space is of one.

    It opens no database of the kernel's: what it holds was handed to it, and can be again. All
    raise DeviceFault while it is down, and none loses anything by being cut short.
    """

    async def start(self, listener: RecallListener) -> None:
        """Returns after `listener.up`. DeviceFault with the reason."""
        ...

    async def stop(self) -> None: ...

    def retry(self) -> None:
        """As of an engine."""
        ...

    async def restart(self) -> None:
        """As of an engine."""
        ...

    async def embed(self, texts: Sequence[str]) -> Sequence[bytes]:
        """A vector of length 1 for each: little-endian 32-bit floats. ENOTSUP: no embedder."""
        ...

    async def add(
        self, owner: Path, space: int, places: Sequence[int], vectors: Sequence[bytes]
    ) -> None:
        """Vectors of a space, in any order, also again: found when it returns; Chroma follows."""
        ...

    def ahead(self, question: str) -> None:
        """A search for this text follows soon: it may be embedded meanwhile. Never raises."""
        ...

    async def search(
        self, owner: Path, question: str | bytes, reaches: Sequence[Reach], also: Sequence[int]
    ) -> Likeness:
        """Pages in reach: those nearest to a text or a vector, and those of `also`."""
        ...

    async def remove(self, owner: Path, space: int, places: Sequence[int] | None = None) -> None:
        """Forget vectors, or a whole space. Their bytes leave the disk with the next `renew`."""
        ...

    async def renew(self, owner: Path) -> None:
        """Chroma's files anew from what is held; the old ones are gone when it returns."""
        ...

    async def stored(self, owner: Path, space: int) -> int:
        """Vectors of a space that Chroma has, once it has caught up. -1: it cannot be used."""
        ...


class RecallDriver(Protocol):
    """A driver module of recall devices."""

    def check(self, options: Mapping[str, Option]) -> None:
        """EINVAL for an unknown option or a bad value, with what is allowed."""
        ...

    def recall(self, options: Mapping[str, Option], log: Path) -> Recall:
        """A device that is not started. `log` takes what its process prints."""
        ...
