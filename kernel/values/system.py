"""The kernel itself: counters, the journal's events, what processes say, the end."""

from dataclasses import dataclass, field
from typing import Annotated

from .words import Index, Pid, Shape, Span, State

EVENTS = ("begin", "end", "call", "refused", "process", "device", "job", "policy", "boot")  # kinds
EventKind = Annotated[str, Shape("|".join(EVENTS), f"one of {', '.join(EVENTS)}")]


@dataclass(frozen=True, slots=True)
class Nothing:
    """A request without fields, or a reply that only acknowledges."""


@dataclass(frozen=True, slots=True)
class JobInfo:
    """A background job of the kernel."""

    name: str
    owner: str  # whose data it works on; empty: nobody's
    state: str  # running, waiting (to run again), failed, ended (after a failure)
    failures: int
    error: str  # of the last failure
    retry_s: float  # until the next try; 0 unless it waits for one


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that cannot be read, or that was set aside because it could not."""

    file: str
    owner: str  # whose data it holds; empty: the kernel's
    error: str
    advice: str


@dataclass(frozen=True, slots=True)
class Stat:
    system: str
    os_pid: int
    uptime_s: float
    owner: str
    private: bool  # started by a client, leaves when idle
    shared: bool  # other users of the system may connect
    listens: bool  # over TCP
    processes: int
    running: int
    waiting: int
    connections: int
    calls: int  # syscalls since boot
    refused: int
    gate_us: float  # mean time in the gate
    gate_p50_us: float  # median of the last calls
    rss_bytes: int
    journal_bytes: int
    # Pages that calls saw, since boot.
    hits: int = 0  # were in the window, and the engine still had them
    soft_faults: int = 0  # came back, and the engine still had them
    hard_faults: int = 0  # were computed again
    evictions: int = 0
    thrashes: int = 0  # calls of processes that computed their windows again and again
    pages_waiting: int = 0  # for their vectors
    waiting_since: float = 0.0  # Unix seconds, of the page that has waited longest; 0: none waits
    indexing: str = ""  # of the caller's pages: off, idle, current, running, stuck
    indexing_note: str = ""  # why it is so
    pages_refused: int = 0  # by the embedder: they are found by words only
    mail: int = 0  # messages that wait in mailboxes
    last_run: str = ""  # how the run before this one ended; empty: there was none
    jobs_running: int = 0  # background jobs that are at work
    job_failures: int = 0  # of background jobs, since boot
    jobs_failed: list[JobInfo] = field(default_factory=list[JobInfo])  # once or more often
    damages: list[Damage] = field(default_factory=list[Damage])  # one's own; the owner sees all


@dataclass(frozen=True, slots=True)
class SettingInfo:
    """A setting as the kernel was started with it."""

    name: str
    value: bool | int | float | str
    origin: str  # "flag", a variable's name, the file, or "default"


@dataclass(frozen=True, slots=True)
class Settings:
    settings: list[SettingInfo]


@dataclass(frozen=True, slots=True)
class Watch:
    """Follow the journal. `since` is a cursor; None: from now; 0: from the oldest event kept."""

    since: Index | None = None
    follow: bool = True
    pid: Index = 0
    kinds: Annotated[list[EventKind], Span(0, 16)] = field(default_factory=list[str])
    interval_s: Annotated[float, Span(0, 3600)] = 0.0  # at most one frame in this time
    not_before: Annotated[float, Span(0, 10**11)] | None = None  # Unix seconds


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the journal. It never holds a person's text."""

    seq: int
    time: float
    kind: str  # begin, end, call, refused, process, device, job, boot, gap
    pid: int
    owner: str
    call: int  # seq of the call's begin
    syscall: str
    object: str
    errno: int  # 0: ok
    note: str
    # Who called: all subjects, by blanks; behind | those of a process that acts itself. Where a
    # process begins or ends: its applications, the processes above it, and itself.
    subject: str = ""


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
class Shutdown:
    drain: bool = True
