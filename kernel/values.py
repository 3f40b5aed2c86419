"""The values that cross the socket: requests, replies, and the words they are made of.

Frozen slotted dataclasses of the standard library. `Span` and `Shape` say what a field may hold;
check.py turns them into checks, nothing else reads them.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated

from . import limits


@dataclass(frozen=True, slots=True)
class Span:
    """Allowed values of a number, or lengths of a text or list."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Shape:
    """A text must match this whole pattern."""

    pattern: str


_NAME = rf"[A-Za-z0-9][A-Za-z0-9._:+-]{{0,{limits.NAME_CHARS - 1}}}"
Name = Annotated[str, Shape(_NAME)]
OptionalName = Annotated[str, Shape(_NAME + "|")]
Pid = Annotated[int, Span(1, 2**53)]
Nice = Annotated[int, Span(limits.NICE_MIN, limits.NICE_MAX)]
Seconds = Annotated[float, Span(0, 10**9)]
Stops = Annotated[list[Annotated[str, Span(1, limits.STOP_CHARS)]], Span(0, limits.STOPS)]


class State(StrEnum):
    READY = "ready"  # alive, nothing asked
    RUNNING = "running"  # its call holds a slot
    WAITING = "waiting"  # its call waits: for the engine, its prompt, a slot
    STOPPED = "stopped"  # SIGSTOP: gets no tokens until SIGCONT
    ZOMBIE = "zombie"  # ended, not yet waited for


class Signal(StrEnum):
    TERM = "TERM"  # end the process; what it said so far is kept
    KILL = "KILL"  # end the process now; the turn in flight is discarded
    INT = "INT"  # end the call in flight, not the process
    STOP = "STOP"
    CONT = "CONT"


SIGNAL_NUMBERS = {Signal.INT: 2, Signal.KILL: 9, Signal.TERM: 15, Signal.CONT: 18, Signal.STOP: 19}


class Profile(StrEnum):
    CAREFUL = "careful"
    OPERATOR = "operator"


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class Finish(StrEnum):
    STOP = "stop"  # the model ended, or a stop string came
    LENGTH = "length"  # max_tokens, or the window is full
    CANCELLED = "cancelled"  # a signal or a closed connection


# --- requests and replies ---------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Hello:
    version: int
    client: Annotated[str, Span(0, 200)] = ""
    profile: Profile = Profile.CAREFUL
    key: Annotated[str, Span(0, 1000)] | None = None


@dataclass(frozen=True, slots=True)
class Welcome:
    version: int  # of the protocol
    system: str  # version of the software
    owner: str
    profile: Profile
    notices: list[str]


@dataclass(frozen=True, slots=True)
class Spawn:
    model: Name
    app: OptionalName = ""
    parent: Annotated[int, Span(0, 2**53)] = 0
    nice: Nice = 0
    system: Annotated[str, Span(0, limits.MESSAGE_CHARS)] = ""  # system prompt; becomes a page
    keep: bool = True  # False: the process ends with the connection that spawned it


@dataclass(frozen=True, slots=True)
class Spawned:
    pid: int
    model: str  # canonical name, aliases resolved
    window: int  # tokens


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
    seed: Annotated[int, Span(0, 2**32 - 2)] | None = None  # None: drawn, and told in the reply
    stop: Stops = field(default_factory=list[str])
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Generate:
    pid: Pid
    messages: Annotated[list[Message], Span(1, limits.MESSAGES)]
    raw: bool = False  # no chat template: the texts as they are
    sampling: Sampling = Sampling()
    timeout_s: Annotated[float, Span(0.001, 10**6)] | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    cached_tokens: int  # of the prompt: already in the slot
    completion_tokens: int
    queue_s: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class Generated:
    pid: int
    call: int
    finish: Finish
    seed: int
    usage: Usage
    pages: list[int]  # numbers of the pages that this turn wrote


@dataclass(frozen=True, slots=True)
class Tokenize:
    model: Name
    text: Annotated[str, Span(0, limits.MESSAGE_CHARS)]


@dataclass(frozen=True, slots=True)
class Tokens:
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class ReadMem:
    pid: Pid
    first: Annotated[int, Span(0, 2**53)] = 0  # page number
    count: Annotated[int, Span(1, 1000)] = 1000


@dataclass(frozen=True, slots=True)
class Page:
    number: int
    message: int  # pages of one message share this number
    owner: str
    kind: Role
    author: str
    time: float  # Unix seconds
    tokens: int  # exact, by the process's tokenizer
    text: str
    labels: list[str]
    pinned: bool


@dataclass(frozen=True, slots=True)
class Pages:
    pages: list[Page]
    next: int | None  # first page of the rest, if the reply was cut


@dataclass(frozen=True, slots=True)
class Wait:
    pid: Pid
    timeout_s: Seconds | None = None


@dataclass(frozen=True, slots=True)
class Exit:
    pid: int
    code: int  # 0; 128 + signal number when a signal ended it
    reason: str


@dataclass(frozen=True, slots=True)
class Kill:
    pid: Pid
    signal: Signal = Signal.TERM


@dataclass(frozen=True, slots=True)
class Renice:
    pid: Pid
    nice: Nice


@dataclass(frozen=True, slots=True)
class Ps:
    pid: Annotated[int, Span(0, 2**53)] = 0  # only this one; 0: all
    zombies: bool = False
    after: Annotated[int, Span(0, 2**53)] = 0


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    pid: int
    parent: int
    owner: str
    app: str
    model: str
    state: State
    nice: int
    created: float  # Unix seconds
    window: int  # tokens; 0 while the model's device is not mounted
    context: int  # tokens of its pages
    generated: int  # tokens, since boot
    rate: float  # tokens a second of the call in flight
    code: int | None


@dataclass(frozen=True, slots=True)
class Processes:
    processes: list[ProcessInfo]
    next: int | None


@dataclass(frozen=True, slots=True)
class Nothing:
    """A request without fields, or a reply that only acknowledges."""


@dataclass(frozen=True, slots=True)
class Stat:
    system: str
    os_pid: int
    uptime_s: float
    owner: str
    private: bool  # started by a client, leaves when idle
    processes: int
    running: int
    waiting: int
    connections: int
    calls: int  # syscalls since boot
    refused: int
    gate_us: float  # mean time in the gate
    rss_bytes: int
    journal_bytes: int


@dataclass(frozen=True, slots=True)
class Watch:
    """Follow the journal. `since` is a cursor; None: from now; 0: from the oldest event kept."""

    since: Annotated[int, Span(0, 2**53)] | None = None
    follow: bool = True
    pid: Annotated[int, Span(0, 2**53)] = 0
    kinds: Annotated[list[Name], Span(0, 16)] = field(default_factory=list[str])
    interval_s: Annotated[float, Span(0, 3600)] = 0.0  # at most one frame in this time


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the journal. It never holds a person's text."""

    seq: int
    time: float
    kind: str  # begin, end, call, refused, process, device, boot, gap
    pid: int
    owner: str
    call: int  # seq of the call's begin
    syscall: str
    object: str
    errno: int  # 0: ok
    note: str


@dataclass(frozen=True, slots=True)
class Events:
    events: list[Event]
    cursor: int  # give it as `since` to go on after the last of these


@dataclass(frozen=True, slots=True)
class Attach:
    pid: Pid


@dataclass(frozen=True, slots=True)
class Output:
    text: str
    state: State


@dataclass(frozen=True, slots=True)
class ImageInfo:
    name: str
    driver: str
    digest: str
    path: str
    bytes: int
    licence: str  # SPDX id, LicenseRef-* or NOASSERTION, as the file says
    architecture: str
    context: int  # tokens the model was trained for
    aliases: list[str]


@dataclass(frozen=True, slots=True)
class Images:
    images: list[ImageInfo]


@dataclass(frozen=True, slots=True)
class ImageAdd:
    name: Name
    path: Annotated[str, Span(0, 4096)] = ""  # a file, used in place
    image: OptionalName = ""  # or: an existing image, `name` becomes its alias


@dataclass(frozen=True, slots=True)
class ImageRemove:
    name: Name


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    name: str
    driver: str
    image: str
    state: str  # loading, up, restarting, failed
    slots: int
    busy: int
    waiting: int
    window: int  # tokens a slot
    width: int  # sequences in one step
    os_pid: int
    restarts: int
    placement: str  # where it runs, and why
    capabilities: list[str]
    rate: float  # generated tokens a second, last seconds
    note: str


@dataclass(frozen=True, slots=True)
class Devices:
    devices: list[DeviceInfo]


@dataclass(frozen=True, slots=True)
class Mount:
    image: Name
    options: dict[Name, bool | int | float | str] = field(
        default_factory=dict[str, bool | int | float | str]
    )


@dataclass(frozen=True, slots=True)
class Unmount:
    image: Name


@dataclass(frozen=True, slots=True)
class Shutdown:
    drain: bool = True
