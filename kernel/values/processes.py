"""Connections and processes: hello, spawn, fork, signals, lists."""

from dataclasses import dataclass, field
from typing import Annotated

from .. import limits
from .words import Index, Name, Nice, OptionalName, Pid, Profile, Seconds, Signal, Span, State


@dataclass(frozen=True, slots=True)
class Hello:
    version: int
    app: OptionalName = ""  # the application that connects; the kernel's programs have theirs
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
    app: OptionalName = ""  # what it is called; empty: as the application that starts it
    parent: Index = 0
    nice: Nice = 0
    system: Annotated[str, Span(0, limits.MESSAGE_CHARS)] = ""  # system prompt; becomes a page
    keep: bool = True  # False: the process ends with the connection that spawned it
    profile: Profile | None = None  # a further bound of what it may do; None: its maker's only


@dataclass(frozen=True, slots=True)
class Spawned:
    pid: int
    model: str  # canonical name, aliases resolved
    window: int  # tokens


@dataclass(frozen=True, slots=True)
class Fork:
    """Children that continue from what a process has read and said so far."""

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
    pid: Index = 0  # only this one; 0: all
    ended: bool = False  # those that have ended, too
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
    rate: float  # tokens a second of the call in flight
    code: int | None
    kept: bool = True  # False: it ends with the connection that started it
    ended: float | None = None  # Unix seconds
    title: str = ""  # the first words of what a user said; empty: nothing, or not to be read
    used: float = 0.0  # Unix seconds: when its last page was written
    started_by: list[str] = field(default_factory=list[str])  # applications: it is theirs


@dataclass(frozen=True, slots=True)
class Processes:
    processes: list[ProcessInfo]
    next: int | None
