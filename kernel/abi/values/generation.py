"""Values for generate, tokenize and embed: messages, sampling, answers, tokens, vectors."""

from dataclasses import dataclass, field
from typing import Annotated

from .. import limits
from ..errors import Errno, SyscallError
from .bias import BIAS_BYTES
from .fields import Finish, Index, Name, Nice, OptionalName, Overflow, Role, Span, Stops
from .models import Progress


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: Annotated[str, Span(0, limits.MESSAGE_CHARS)]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are sampled. temperature 0 is greedy."""

    max_tokens: Annotated[int, Span(1, limits.WINDOW_MAX)] | None = None
    temperature: Annotated[float, Span(0, 100)] = limits.TEMPERATURE
    top_k: Annotated[int, Span(0, 2**31 - 1)] = limits.TOP_K  # 0: all
    top_p: Annotated[float, Span(0, 1)] = limits.TOP_P
    min_p: Annotated[float, Span(0, 1)] = limits.MIN_P
    repeat_penalty: Annotated[float, Span(0.01, 10)] = 1.0
    frequency_penalty: Annotated[float, Span(-2, 2)] = 0.0
    presence_penalty: Annotated[float, Span(-2, 2)] = 0.0
    seed: Annotated[int, Span(0, limits.SEED_MAX)] | None = (
        None  # None: random, and reported in the reply
    )
    stop: Stops = field(default_factory=list[str])
    ignore_eos: bool = False
    # At most one of the two; checked before the call gets a slot.
    grammar: Annotated[str, Span(1, limits.GRAMMAR_CHARS)] | None = None  # GBNF
    schema: Annotated[str, Span(1, limits.GRAMMAR_CHARS)] | None = None  # JSON schema, as JSON
    bias: Annotated[bytes, Span(0, BIAS_BYTES * limits.BIASES)] = b""  # see pack_bias
    logprobs: Annotated[int, Span(0, limits.LOGPROBS)] | None = None  # alternatives per token
    # Prompt lookup: drafts that change no token. None: where that is exact and measured to pay.
    lookup: bool | None = None


@dataclass(frozen=True, slots=True)
class Generate:
    """Continue the conversation of a process (`pid`), or answer once on a `model` (`pid` 0).

    The second form runs on a process that exists for this call only. EINVAL for a mixture of both.
    """

    pid: Index
    messages: Annotated[list[Message], Span(1, limits.MESSAGES)]
    raw: bool = False  # no chat template: the texts verbatim
    sampling: Sampling = Sampling()
    timeout_s: Annotated[float, Span(0.001, 10**6)] | None = None
    deterministic: bool = False  # EINVAL unless the model is mounted as deterministic
    recall: bool = True  # recall pages that the request needs
    overflow: Overflow = Overflow.PAGE  # if it does not fit into the window
    # Of the process that exists for this call only.
    model: OptionalName = ""
    app: OptionalName = ""  # its application; empty: that of the connection
    nice: Nice = 0

    def __post_init__(self) -> None:
        hint = "give the pid of a process, or pid=0 and the name of a model for a single answer"
        if not self.pid and not self.model:
            raise SyscallError(Errno.EINVAL, "generate: neither a pid nor a model is given", hint)
        if self.pid and self.model:
            message = f"generate: both pid {self.pid} and model {self.model!r} are given"
            raise SyscallError(Errno.EINVAL, message, hint)
        if self.pid and (self.app or self.nice):
            message = f"generate: app and nice are given for process {self.pid}, which has its own"
            hint = f"`llmasos nice {self.nice} {self.pid}` changes its priority"
            raise SyscallError(Errno.EINVAL, message, hint)


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token and the natural logarithm of its probability, before temperature and bias."""

    token: int
    text: str
    logprob: float
    # If the token is part of a character, so that its text is incomplete; else empty.
    bytes: list[int] = field(default_factory=list[int])


@dataclass(frozen=True, slots=True)
class Logprob:
    """A sampled token and its most likely alternatives, the most likely first.

    The bytes of all tokens of an answer are its text. A stop string truncates both.
    """

    token: int
    text: str
    logprob: float
    top: list[Alternative]
    bytes: list[int] = field(default_factory=list[int])  # as above


@dataclass(frozen=True, slots=True)
class Delta:
    text: str
    tokens: int
    logprobs: list[Logprob] = field(default_factory=list[Logprob])  # if requested
    # Before the text of a single answer, while its model is loaded; the text is empty then.
    loading: Progress | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    cached_tokens: int  # of the prompt, already in the slot
    completion_tokens: int
    queue_s: float  # until it had a slot of the engine
    prefill_s: float
    decode_s: float
    prepare_s: float = 0.0  # from the request to the queue: recall, the window, the prompt
    drafted_tokens: int = 0  # predicted by prompt lookup
    accepted_tokens: int = 0  # those of them that are part of the answer


@dataclass(frozen=True, slots=True)
class Fault:
    """A page fault: a page was recalled into the window."""

    page: int
    score: float
    hard: bool  # its tokens were recomputed; False: the engine still had them


@dataclass(frozen=True, slots=True)
class Generated:
    pid: int
    call: int
    finish: Finish
    seed: int
    usage: Usage
    pages: list[int]  # numbers of the pages that this call wrote
    window: list[int] = field(default_factory=list[int])  # pages in the window of the call
    faults: list[Fault] = field(default_factory=list[Fault])  # those that were recalled for it
    evicted: list[int] = field(default_factory=list[int])  # pages evicted to free space
    notices: list[str] = field(default_factory=list[str])
    model: str = ""  # canonical name, aliases resolved


@dataclass(frozen=True, slots=True)
class Tokenize:
    model: Name
    text: Annotated[str, Span(0, limits.MESSAGE_CHARS)]


@dataclass(frozen=True, slots=True)
class Tokens:
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class Embed:
    model: Name
    texts: Annotated[
        list[Annotated[str, Span(1, limits.MESSAGE_CHARS)]], Span(1, limits.EMBED_TEXTS)
    ]


@dataclass(frozen=True, slots=True)
class Embedded:
    model: str  # canonical name
    dimensions: int
    vectors: list[bytes]  # one per text, normalised: little-endian 32-bit floats
    tokens: int  # of all texts
