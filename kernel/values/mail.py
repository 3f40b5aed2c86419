"""Messages between processes."""

from dataclasses import dataclass, field
from typing import Annotated

from .. import limits
from .words import Index, Labels, Pid, Span


@dataclass(frozen=True, slots=True)
class Send:
    """A message to a process. EAGAIN when its mailbox is full."""

    pid: Pid
    body: Annotated[str, Span(1, limits.MAIL_CHARS)]
    sender: Index = 0  # a process that it comes from; 0: from whoever calls
    labels: Labels = field(default_factory=list[str])


@dataclass(frozen=True, slots=True)
class Sent:
    number: int  # of the message, rising in the mailbox
    waiting: int  # messages in the mailbox now


@dataclass(frozen=True, slots=True)
class Recv:
    """The oldest message. What was received before on this connection is done with that."""

    pid: Pid
    timeout_s: Annotated[float, Span(0, 10**6)] | None = None  # 0: do not wait
    done: Index = 0  # messages up to this number were dealt with
    take: bool = True  # False: only say what is done; the reply is empty


@dataclass(frozen=True, slots=True)
class Mail:
    number: int
    sender: int  # pid; 0: no process
    author: str  # app:NAME of the sender or of who called, or the user at the command line
    time: float
    body: str
    labels: list[str]
    waiting: int  # messages behind it
