"""The types of the fields of requests and replies: constraints and enumerations.

kernel/check.py turns `Span` and `Shape` into checks; nothing else reads them.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from .. import limits


@dataclass(frozen=True, slots=True)
class Span:
    """Allowed values of a number, or lengths of a text or list."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Shape:
    """A text must match this whole pattern."""

    pattern: str
    want: str  # description of the pattern, for error messages


_NAME = rf"[A-Za-z0-9][A-Za-z0-9._:+-]{{0,{limits.NAME_CHARS - 1}}}"
_WANT_NAME = f"a letter or digit, then letters, digits and . _ : + -, {limits.NAME_CHARS} at most"
Name = Annotated[str, Shape(_NAME, _WANT_NAME)]
OptionalName = Annotated[str, Shape(_NAME + "|", _WANT_NAME)]
_USER = r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}"  # also a policy subject and the name of a directory
_WANT_USER = "a letter or digit, then letters, digits and . _ -, 32 at most"
User = Annotated[str, Shape(_USER, _WANT_USER)]
OptionalUser = Annotated[str, Shape(_USER + "|", _WANT_USER)]
Pid = Annotated[int, Span(1, 2**53)]
Nice = Annotated[int, Span(limits.NICE_MIN, limits.NICE_MAX)]
Index = Annotated[int, Span(0, 2**53)]  # a pid, page, event or position; 0: none or all
Seconds = Annotated[float, Span(0, 10**9)]
Labels = Annotated[list[Name], Span(0, limits.LABELS)]
Stops = Annotated[list[Annotated[str, Span(1, limits.STOP_CHARS)]], Span(0, limits.STOPS)]


class State(StrEnum):
    READY = "ready"  # no call in flight
    RUNNING = "running"  # its call has a slot
    WAITING = "waiting"  # its call waits for the engine, its prompt or a slot
    STOPPED = "stopped"  # SIGSTOP: gets no tokens until SIGCONT
    ENDED = "ended"  # not yet waited for


class Signal(StrEnum):
    TERM = "TERM"  # end the process; its partial answer is stored
    KILL = "KILL"  # end the process now; its partial answer is discarded
    INT = "INT"  # end the call in flight, not the process
    STOP = "STOP"
    CONT = "CONT"


SIGNAL_NUMBERS = {Signal.INT: 2, Signal.KILL: 9, Signal.TERM: 15, Signal.CONT: 18, Signal.STOP: 19}


class Profile(StrEnum):
    """An upper bound of a connection's permissions, in addition to those of its user."""

    CAREFUL = "careful"  # models and its own processes
    READER = "reader"  # reads, changes nothing
    WORKSPACE = "workspace"  # careful, and the tools of one folder
    OPEN = "open"  # is allowed everything that its user is
    OPERATOR = "operator"  # runs the machine: the command line
    OWNER = "owner"  # changes permissions


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class Kind(StrEnum):
    """The kind of a page. A message has the kind of its role."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"  # the result of a tool
    DOCUMENT = "document"
    NOTE = "note"  # written by a program, for later search
    SUMMARY = "summary"  # of other pages, which are not deleted


class Overflow(StrEnum):
    """What happens when a call does not fit into its window."""

    PAGE = "page"  # pages are evicted, and recalled when needed
    ERROR = "error"  # E2BIG


class Finish(StrEnum):
    STOP = "stop"  # the model ended its answer, or generated a stop string
    LENGTH = "length"  # max_tokens, or the window is full
    CANCELLED = "cancelled"  # a signal or a closed connection
