"""Texts in and out: messages, sampling, answers, tokens, embeddings."""

from dataclasses import dataclass, field
from typing import Annotated

from .. import limits
from .bias import BIAS_BYTES
from .words import Finish, Name, Overflow, Pid, Role, Span, Stops


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: Annotated[str, Span(0, limits.MESSAGE_CHARS)]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. temperature 0 is greedy."""

    max_tokens: Annotated[int, Span(1, limits.WINDOW_MAX)] | None = None
    temperature: Annotated[float, Span(0, 100)] = limits.TEMPERATURE
    top_k: Annotated[int, Span(0, 2**31 - 1)] = limits.TOP_K  # 0: all
    top_p: Annotated[float, Span(0, 1)] = limits.TOP_P
    min_p: Annotated[float, Span(0, 1)] = limits.MIN_P
    repeat_penalty: Annotated[float, Span(0.01, 10)] = 1.0
    frequency_penalty: Annotated[float, Span(-2, 2)] = 0.0
    presence_penalty: Annotated[float, Span(-2, 2)] = 0.0
    seed: Annotated[int, Span(0, limits.SEED_MAX)] | None = (
        None  # None: drawn, and told in the reply
    )
    stop: Stops = field(default_factory=list[str])
    ignore_eos: bool = False
    # At most one of the two; both are checked before the call gets a slot.
    grammar: Annotated[str, Span(1, limits.GRAMMAR_CHARS)] | None = None  # GBNF
    schema: Annotated[str, Span(1, limits.GRAMMAR_CHARS)] | None = None  # JSON schema, as JSON
    bias: Annotated[bytes, Span(0, BIAS_BYTES * limits.BIASES)] = b""  # see pack_bias
    logprobs: Annotated[int, Span(0, limits.LOGPROBS)] | None = None  # alternatives to tell


@dataclass(frozen=True, slots=True)
class Generate:
    pid: Pid
    messages: Annotated[list[Message], Span(1, limits.MESSAGES)]
    raw: bool = False  # no chat template: the texts as they are
    sampling: Sampling = Sampling()
    timeout_s: Annotated[float, Span(0.001, 10**6)] | None = None
    deterministic: bool = False  # EINVAL unless the model is mounted so
    recall: bool = True  # bring back pages that the request needs
    overflow: Overflow = Overflow.PAGE  # what does not fit the window


@dataclass(frozen=True, slots=True)
class Likely:
    """A token and the natural logarithm of its probability, before temperature and bias."""

    token: int
    text: str
    logprob: float
    # Where the token is part of a character, which its text cannot say; else empty.
    bytes: list[int] = field(default_factory=list[int])


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token that was chosen, and the likeliest ones in its place, the likeliest first.

    The tokens of an answer join to its text, in bytes; a stop string cuts both.
    """

    token: int
    text: str
    logprob: float
    top: list[Likely]
    bytes: list[int] = field(default_factory=list[int])  # as above


@dataclass(frozen=True, slots=True)
class Delta:
    text: str
    tokens: int
    logprobs: list[Logprob] = field(default_factory=list[Logprob])  # when asked for


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    cached_tokens: int  # of the prompt: already in the slot
    completion_tokens: int
    queue_s: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class Fault:
    """A page that came back into the window."""

    page: int
    score: float
    hard: bool  # its tokens were computed again; False: they were still in the engine


@dataclass(frozen=True, slots=True)
class Generated:
    pid: int
    call: int
    finish: Finish
    seed: int
    usage: Usage
    pages: list[int]  # numbers of the pages that this turn wrote
    window: list[int] = field(default_factory=list[int])  # pages that the call saw
    faults: list[Fault] = field(default_factory=list[Fault])  # those of them that came back
    evicted: list[int] = field(default_factory=list[int])  # pages that left to make room
    notices: list[str] = field(default_factory=list[str])


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
    vectors: list[bytes]  # one a text, of length 1: little-endian 32-bit floats
    tokens: int  # of all texts
