"""Values for connections and processes: hello, spawn, fork, wait, kill, nice, ps."""

from dataclasses import dataclass, field
from typing import Annotated

from .. import limits
from .fields import Index, Name, Nice, OptionalName, Pid, Profile, Seconds, Signal, Span, State


@dataclass(frozen=True, slots=True)
class Hello:
    version: int
    app: OptionalName = ""  # the connecting application; the kernel sets it for its programs
    profile: Profile = Profile.CAREFUL
    key: Annotated[str, Span(0, 1000)] | None = None


@dataclass(frozen=True, slots=True)
class Welcome:
    version: int  # of the protocol
    system: str  # version of the software
    owner: str
    profile: Profile
    notices: list[str]
    app: str = ""  # the application that the connection acts as


@dataclass(frozen=True, slots=True)
class Spawn:
    model: Name
    app: OptionalName = ""  # its application; empty: that of the connection
    parent: Index = 0
    nice: Nice = 0
    system: Annotated[str, Span(0, limits.MESSAGE_CHARS)] = ""  # system prompt; becomes a page
    keep: bool = True  # False: the process ends with the connection that spawned it
    profile: Profile | None = None  # a further bound; None: only that of the spawning connection


@dataclass(frozen=True, slots=True)
class Spawned:
    pid: int
    model: str  # canonical name, aliases resolved
    window: int  # tokens


@dataclass(frozen=True, slots=True)
class Fork:
    """Start children with a copy of the context of a process."""

    pid: Pid
    count: Annotated[int, Span(1, limits.FORKS)] = 1
    app: OptionalName = ""  # empty: the parent's
    nice: Nice | None = None  # None: the parent's
    keep: bool = True  # False: they end with the connection that forked them


@dataclass(frozen=True, slots=True)
class Forked:
    pids: list[int]
    model: str
    window: int  # tokens


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
    pid: Index = 0  # only this process; 0: all
    ended: bool = False  # also ended processes
    after: Index = 0


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
    context: int  # tokens in its window
    generated: int  # tokens, since boot
    rate: float  # tokens per second of the call in flight
    code: int | None
    kept: bool = True  # False: it ends with the connection that started it
    ended: float | None = None  # Unix seconds
    title: str = ""  # start of the first user message; empty: none, or no permission to read it
    used: float = 0.0  # Unix seconds: when its last page was written
    started_by: list[str] = field(default_factory=list[str])  # applications that own it


@dataclass(frozen=True, slots=True)
class Processes:
    processes: list[ProcessInfo]
    next: int | None
