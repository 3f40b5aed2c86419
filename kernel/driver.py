"""The interface between the kernel and engines: Protocols, and the values they pass.

A driver is a module, mounted by its dotted name, that satisfies `Driver`. The kernel calls an
engine in two ways: `async def` where it awaits a result, `def` for commands that are only sent
(the result is a later Step). A command never waits and never raises: the death of an engine is
reported through `Listener.down`, after which it ends no call and accepts no command until
`Listener.up`.
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, Protocol

from .abi import limits
from .abi.errors import DeviceFault
from .abi.values import Finish, Hardware, Logprob, Message, Progress, Sampling, TuneCandidate

Option = bool | int | float | str
CAPABILITIES = (
    "tokenize",  # its tokens are known: exact page sizes, `tokenize`
    "template",  # it renders conversations itself
    "seed",  # the same seed gives the same answer
    "park",  # a context can be taken out of its slot and restored
    "order",  # it feeds prompts in the order that it is given
    "share",  # calls of one domain share the common prefix of their prompts
    "exact_usage",  # tokens are counted, not estimated
    "grammar",  # GBNF and JSON schema
    "logprobs",
    "bias",
    "stop",
    "embed",
    "deterministic",  # it can be mounted as deterministic
    "lookup",  # it drafts answers from their prompts
)


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Facts from the header of a model file."""

    architecture: str
    licence: str  # SPDX id, LicenseRef-* or NOASSERTION
    context: int  # tokens the model was trained for
    bytes: int
    quantisation: str = ""  # e.g. Q8_0


@dataclass(frozen=True, slots=True)
class Facts:
    """Sizes and capabilities of an engine that is up."""

    slots: int  # sequences resident at once
    width: int  # sequences in one step
    window: int  # tokens per slot
    cells: int  # tokens of all slots together; at least `window`
    os_pid: int  # 0: no process of its own
    placement: str  # "cpu: 2 threads, this build of llama.cpp has no GPU"
    capabilities: frozenset[str]  # of CAPABILITIES
    vocab: int = 0  # size of the vocabulary; 0: unknown
    turn: int = limits.PROMPT_QUANTUM_TOKENS  # tokens of one prompt before the next prompt's turn
    deterministic: bool = False  # concurrent calls do not change each other's answers
    on: str = ""  # name of the hardware
    trained: int = 0  # context length the model was trained for; 0: unknown
    hardware: Sequence[Hardware] = ()  # all hardware that the engine's library found
    parked_bytes: int = 0  # limit for the saved contexts of all parked calls
    context_bytes: int = 0  # fixed size of a saved context; each token in it adds token_bytes
    token_bytes: int = 0  # 0: saved contexts are not counted
    kept_bytes: int = 0  # limit for the saved contexts of idle processes; 0: it saves none
    # Slots and saved contexts take cells from one pool, in blocks of so many; 0: each slot has its
    # own cells, and saved contexts have none.
    block_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Cut:
    """A piece of one message that will become a page."""

    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Keep:
    """How an engine keeps a prompt that it composes."""

    number: int  # of the prompt, from 1; given by the kernel, never twice
    history: int  # pid of the process
    domain: str


@dataclass(frozen=True, slots=True)
class Beginning:
    """The beginning of a conversation: messages of a prompt that the engine keeps."""

    prompt: int  # its number
    messages: int  # so many of its first messages
    answered: bool = False  # all of them, and then the answer of the call that had this prompt


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation in the form the engine reads, and its last messages cut into pages."""

    tokens: Sequence[int]  # empty: the engine keeps them, or it reads `messages`
    cuts: Sequence[Sequence[Cut]]  # one list of cuts for each of the last `fresh` messages
    messages: Sequence[Message] = ()
    raw: bool = False
    count: int = 0  # of its tokens, where these are not here; may be an estimate
    kept: int = 0  # the number under which the engine keeps it; 0: it does not
    digest: bytes = b""  # of the tokens that the engine keeps

    @property
    def size(self) -> int:
        """Its tokens in a window."""
        return len(self.tokens) or self.count

    @property
    def identity(self) -> bytes:
        """Equal for prompts of equal tokens, kept or not."""
        return self.digest or token_digest(self.tokens)


def token_digest(tokens: Sequence[int]) -> bytes:
    """The digest of the tokens of a prompt."""
    return blake2b(array("i", tokens).tobytes(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Vectors:
    """The embeddings of some texts."""

    dimensions: int
    vectors: Sequence[bytes]  # one per text, of norm 1: little-endian 32-bit floats
    tokens: int  # of all texts


@dataclass(frozen=True, slots=True)
class ContextSaved:
    """A context that was to be saved."""

    number: int
    bytes: int  # 0: it was not saved
    beginnings: Sequence[int] = ()  # saved contexts of the same domain that are beginnings of it


class Step(NamedTuple):
    """The result of one engine step for one call. With `finish` or `error`, it is the last one.

    A call reports its first step when it begins: what it reuses is in its slot, `cached` tokens.
    """

    call: int
    text: str = ""  # whole UTF-8, never part of a stop string
    tokens: int = 0  # generated in this step
    fed: int = 0  # prompt tokens computed in this step
    cached: int = 0  # prompt tokens that are reused; reported once, in its first step
    finish: Finish | None = None
    error: DeviceFault | None = None
    cuts: Sequence[Cut] = ()  # with finish: the whole answer, cut into pages
    logprobs: Sequence[Logprob] = ()  # of the tokens, when requested
    lost: bool = False  # with error: the engine no longer keeps the prompt; compose it again
    recompute: int = 0  # tokens of a lost context to be computed again; reported once, after unpark
    source: int = 0  # number of the saved context that it reuses; reported with `cached`
    saved: Sequence[ContextSaved] = ()  # one for each save of its admission, and a shared beginning
    drafted: int = 0  # tokens that prompt lookup predicted in this step
    accepted: int = 0  # those of `drafted` that are part of the answer


@dataclass(frozen=True, slots=True)
class Admission:
    """A call to be computed in a slot."""

    call: int
    slot: int
    history: int  # pid of the process
    domain: str  # KV is shared between equal domains only
    prompt: Prompt
    sampling: Sampling  # max_tokens and seed are set
    save: int = 0  # save what is in the slot under this number first; 0: drop it
    share: int = 0  # number under which a beginning of the prompt may be saved for its domain


@dataclass(frozen=True, slots=True)
class Tuning:
    """A file to be requantised, into a folder of such files."""

    path: Path
    folder: Path
    stem: str  # the new file is STEM-QUANTISATION.gguf; it appears only when it is complete
    quantisation: str  # empty: the driver measures those that it offers, and chooses one
    measure: bool  # speed and loss
    log: Path
    options: Mapping[str, Option] = field(default_factory=dict[str, Option])  # of its next mount
    cache: Path | None = None  # as of `engine`

    def target(self, quantisation: str) -> Path:
        return self.folder / f"{self.stem}-{quantisation}.gguf"


class Cause(StrEnum):
    """Why a device died. Only a crash makes a call poison (see quarantine.py)."""

    CRASH = "crash"  # its own code: a fatal signal, an exit, a hang
    MEMORY = "memory"  # killed by the system for lack of memory
    OUTSIDE = "outside"  # a signal from outside, or a restart on request


@dataclass(frozen=True, slots=True)
class Death:
    """How a device died or failed to restart. It is always started again after `retry_s`."""

    reason: str
    cause: Cause = Cause.CRASH
    failed: bool = False  # it died too often in a row: its calls end, new ones are refused
    deaths: int = 1  # in a row
    retry_s: float = 0.0  # seconds until the next start
    kept: frozenset[int] = frozenset()  # parked calls that continue when it is up again


class Listener(Protocol):
    """Callbacks from one engine to the kernel, all on the kernel's event loop."""

    def loading(self, done: float, stage: str = "load") -> None:
        """This share of a stage is done, 0 to 1: of the model has been read, for `load`."""
        ...

    def up(self, facts: Facts) -> None: ...
    def stepped(self, steps: Sequence[Step]) -> None: ...
    def down(self, death: Death) -> None:
        """The engine died or failed to restart: every admitted call not in `death.kept` is lost.

        Those are parked when it is up again. Until then, `cancel` ends them as soon as it is up.
        """
        ...


class Engine(Protocol):
    """A device that turns tokens into tokens."""

    async def start(self, listener: Listener) -> None:
        """Load; returns after `listener.up`. DeviceFault with the reason; ENOMEM: no memory."""
        ...

    async def stop(self) -> None: ...

    @property
    def sent_bytes(self) -> int:
        """Bytes that were sent to its process since that started; 0: it has none."""
        ...

    def retry(self) -> None:
        """While it is down: start it now, before the pause ends. `up` or `down` follows."""
        ...

    async def restart(self) -> None:
        """Stop it if it is up, and start it at once: `down` and then `up` or `down` follow."""
        ...

    async def tokenize(self, text: str) -> Sequence[int]: ...

    async def cut(self, text: str) -> Sequence[Cut]:
        """Cut a text into pages of at most PAGE_TOKENS. EINVAL for invalid Unicode."""
        ...

    async def compose(
        self, messages: Sequence[Message], *, raw: bool, fresh: int, keep: Keep | None = None
    ) -> Prompt:
        """Render `messages` with the model's template (`raw`: concatenated verbatim) and tokenize.

        The last `fresh` messages are cut as by `cut`. With `keep` the engine keeps the prompt for
        `extend` and `admit`, if it can (`Prompt.kept`): until its memory for prompts is full, its
        process or its domain is forgotten, or it dies. EINVAL when the template refuses the
        messages, ETIMEDOUT when it does not end.
        """
        ...

    async def extend(
        self, beginning: Beginning, messages: Sequence[Message], *, fresh: int, keep: Keep
    ) -> Prompt | None:
        """Compose and keep a prompt that begins as a kept one of the same domain.

        It equals what `compose` makes of all its messages. None: the engine does not have this
        beginning, and nothing has changed.
        """
        ...

    async def check(self, sampling: Sampling, domain: str = "") -> None:
        """Compile a grammar for a domain. EINVAL, with the position, or for an unknown token id."""
        ...

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Texts to vectors. ENOTSUP; E2BIG names the text that exceeds the window."""
        ...

    def forget(self, history: int) -> None:
        """The process was removed: drop its cached contexts and its kept prompts."""
        ...

    def purge(self, domain: str) -> None:
        """Pages of this domain were forgotten: drop its kept prompts, and unused cached contexts.

        Prompts that are composed before this command are dropped, too. A context in use by a call,
        parked or not, is no longer shared with other calls and is dropped when that call ends.
        """
        ...

    def admit(self, admission: Admission) -> None:
        """Put the call into its slot, which is free. It computes nothing before a grant.

        A Step with `lost` follows when its prompt was kept and is not any more. An admitted call
        has its prompt until it ends. The call may reuse any context of its domain that is in a slot
        or saved.
        """
        ...

    def order(self, calls: Sequence[int], once: int) -> None:
        """Feed the prompts of these calls only, in this order, until the next order.

        Also what is computed again after `park`. `once`: one of the calls, which leaves the order
        when it has been fed once; 0: none. Before the first order, prompts are fed in the order of
        their grants. Answers are not affected. Calls that have ended are ignored.
        """
        ...

    def drop(self, number: int) -> None:
        """Drop a saved context, if there is one of this number."""
        ...

    def clear(self, slot: int) -> None:
        """Drop what is in a slot that no call uses."""
        ...

    def grant(self, call: int, tokens: int) -> None:
        """Let the call compute this many more tokens, prompt and answer alike.

        Grants add up. Cached tokens count against them like computed ones, so a call may be in
        debt until a later grant: both sides only add and subtract, in any order.
        """
        ...

    def cancel(self, call: int) -> None:
        """End the call at the next step: a Step with finish=CANCELLED follows, unless it ended."""
        ...

    def park(self, call: int, *, keep: bool) -> None:
        """Take the call out of its slot, which is free at once. Never ends the call.

        `keep`: save its context, whose size the caller has counted against `parked_bytes`.
        Otherwise, or when saving fails, only its tokens are kept: after `unpark` they are reported
        as `recompute`, computed again, and reported as `fed` once more. Of a call that is parked
        already, the saved context is dropped in the same way.
        """
        ...

    def unpark(self, call: int, slot: int, save: int = 0) -> None:
        """Put the call into a slot again. A saved context is restored bit for bit.

        `save`: as in Admission.
        """
        ...


class Driver(Protocol):
    """A driver module."""

    def probe(self, path: Path) -> ImageFacts:
        """Read a model file's header with bounds. EINVAL with the reason; may block."""
        ...

    def check(self, options: Mapping[str, Option]) -> None:
        """EINVAL for an unknown option or a bad value, with the allowed ones."""
        ...

    async def models(self, options: Mapping[str, Option]) -> Sequence[str]:
        """The models that the endpoint of these options lists; asks the endpoint.

        Empty: it has no list, and the options name a model. DeviceFault: it is unreachable, it
        refuses, or it lacks the model that the options name. ENOTSUP: this driver has no endpoints.
        """
        ...

    def engine(
        self, path: Path, options: Mapping[str, Option], log: Path, cache: Path | None = None
    ) -> Engine:
        """An engine that is not started yet. `log`: the file for the output of its process.

        `cache`: the directory of what is measured on this machine; None: nothing is measured.
        """
        ...

    def hardware(self) -> Sequence[Hardware]:
        """The hardware of this machine that this driver can use. May block."""
        ...

    async def tune(
        self, request: Tuning, report: Callable[[Progress], None]
    ) -> Sequence[TuneCandidate]:
        """Requantise a file: the original and the new files, one of them chosen.

        Only a chosen file is kept. ENOTSUP, EINVAL, ENOSPC, EIO.
        """
        ...
