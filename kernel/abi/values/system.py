"""Values for the kernel: counters, settings, journal events, process output, shutdown."""

from dataclasses import dataclass, field
from typing import Annotated

from .fields import Index, Pid, Shape, Span, State

EVENTS = ("begin", "end", "call", "refused", "process", "device", "job", "policy", "boot")  # kinds
EventKind = Annotated[str, Shape("|".join(EVENTS), f"one of {', '.join(EVENTS)}")]


@dataclass(frozen=True, slots=True)
class Nothing:
    """A request without fields, or a reply that only acknowledges."""


@dataclass(frozen=True, slots=True)
class JobInfo:
    """A background job of the kernel."""

    name: str
    owner: str  # of the data that it processes; empty: none
    state: str  # running, waiting (to run again), failed, ended (after a failure)
    failures: int
    error: str  # of the last failure
    retry_s: float  # until the next try; 0 unless it is waiting


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that cannot be read, or a damaged file that was renamed."""

    file: str
    owner: str  # of its data; empty: the kernel
    error: str
    advice: str


@dataclass(frozen=True, slots=True)
class Stat:
    system: str
    os_pid: int
    uptime_s: float
    owner: str
    private: bool  # started by a client, exits when idle
    shared: bool  # other users of the system may connect
    listens: bool  # accepts TCP connections
    processes: int
    running: int
    waiting: int
    connections: int
    calls: int  # syscalls since boot
    refused: int
    gate_us: float  # mean time of a policy check
    gate_p50_us: float  # median of the last calls
    rss_bytes: int
    journal_bytes: int
    flushes: int  # of databases to the disk that calls waited for, since boot
    # Pages in the windows of calls, since boot.
    hits: int = 0  # in the window, and still in the engine
    soft_faults: int = 0  # recalled, and still in the engine
    hard_faults: int = 0  # recomputed
    evictions: int = 0
    thrashes: int = 0  # calls of processes that recomputed their windows repeatedly
    pages_waiting: int = 0  # for their vectors
    waiting_since: float = 0.0  # Unix seconds, of the longest waiting page; 0: none waits
    indexing: str = ""  # of the caller's pages: off, idle, current, running, stuck
    indexing_note: str = ""  # the reason of that state
    pages_refused: int = 0  # by the embedder: only lexical search finds them
    mail: int = 0  # messages waiting in mailboxes
    owners_uncounted: int = 0  # whose pages and mail are not in these counts
    last_run: str = ""  # how the previous run ended; empty: there was none
    jobs_running: int = 0  # running background jobs
    job_failures: int = 0  # of background jobs, since boot
    jobs_failed: list[JobInfo] = field(default_factory=list[JobInfo])  # at least once
    damages: list[Damage] = field(default_factory=list[Damage])  # the caller's; the owner gets all


@dataclass(frozen=True, slots=True)
class SettingInfo:
    """A setting of the running kernel."""

    name: str
    value: bool | int | float | str
    origin: str  # "flag", the name of a variable, the file, or "default"


@dataclass(frozen=True, slots=True)
class Settings:
    settings: list[SettingInfo]
    directory: str = ""  # of the configuration file and the user rules


@dataclass(frozen=True, slots=True)
class Watch:
    """Follow the journal. `since` is a cursor; None: from now; 0: from the oldest stored event."""

    since: Index | None = None
    follow: bool = True
    pid: Index = 0
    kinds: Annotated[list[EventKind], Span(0, 16)] = field(default_factory=list[str])
    interval_s: Annotated[float, Span(0, 3600)] = 0.0  # minimum time between two frames
    not_before: Annotated[float, Span(0, 10**11)] | None = None  # Unix seconds


@dataclass(frozen=True, slots=True)
class Event:
    """An event of the journal. It never contains a person's text."""

    seq: int
    time: float
    kind: str  # begin, end, call, refused, process, device, job, boot, gap
    pid: int
    owner: str
    call: int  # seq of the begin event of the call
    syscall: str
    object: str
    errno: int  # 0: ok
    note: str
    # The subjects of the caller, separated by spaces; after | those of the process in whose name it
    # acts. At the start or end of a process: its applications, its ancestors, and the process.
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Events:
    events: list[Event]
    cursor: int  # `since` of the next request


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
