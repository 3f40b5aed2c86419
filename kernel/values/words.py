"""The words that requests and replies are made of: what a field may hold, and the closed lists.

`Span` and `Shape` are turned into checks by check.py; nothing else reads them.
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
    want: str  # it, in words


_NAME = rf"[A-Za-z0-9][A-Za-z0-9._:+-]{{0,{limits.NAME_CHARS - 1}}}"
_WANT_NAME = f"a letter or digit, then letters, digits and . _ : + -, {limits.NAME_CHARS} at most"
Name = Annotated[str, Shape(_NAME, _WANT_NAME)]
OptionalName = Annotated[str, Shape(_NAME + "|", _WANT_NAME)]
_USER = r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}"  # a subject of the policy, and a directory's name
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
    READY = "ready"  # alive, nothing asked
    RUNNING = "running"  # its call holds a slot
    WAITING = "waiting"  # its call waits: for the engine, its prompt, a slot
    STOPPED = "stopped"  # SIGSTOP: gets no tokens until SIGCONT
    ENDED = "ended"  # not yet waited for


class Signal(StrEnum):
    TERM = "TERM"  # end the process; what it said so far is kept
    KILL = "KILL"  # end the process now; the turn in flight is discarded
    INT = "INT"  # end the call in flight, not the process
    STOP = "STOP"
    CONT = "CONT"


SIGNAL_NUMBERS = {Signal.INT: 2, Signal.KILL: 9, Signal.TERM: 15, Signal.CONT: 18, Signal.STOP: 19}


class Profile(StrEnum):
    """The most that a connection may do; what its user may not, it may not either."""

    CAREFUL = "careful"  # models and own processes
    READER = "reader"  # looks, changes nothing
    WORKSPACE = "workspace"  # careful, and the tools of one folder
    OPEN = "open"  # all that its user may
    OPERATOR = "operator"  # runs the machine: the command line
    OWNER = "owner"  # decides who may do what


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class Kind(StrEnum):
    """Of a page. Messages have the kinds of their roles."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"  # what a tool answered
    DOCUMENT = "document"
    NOTE = "note"  # written by a program, to be found again
    SUMMARY = "summary"  # of other pages, which stay


class Overflow(StrEnum):
    """What happens when a call does not fit its window."""

    PAGE = "page"  # pages leave, and come back when they are needed
    ERROR = "error"  # E2BIG


class Finish(StrEnum):
    STOP = "stop"  # the model ended, or a stop string came
    LENGTH = "length"  # max_tokens, or the window is full
    CANCELLED = "cancelled"  # a signal or a closed connection
