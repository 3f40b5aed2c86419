"""Messages between processes."""

from dataclasses import dataclass, field
from typing import Annotated

from .. import limits
from .fields import Index, Labels, Pid, Span


@dataclass(frozen=True, slots=True)
class Send:
    """A message to a process. EAGAIN when its mailbox is full."""

    pid: Pid
    body: Annotated[str, Span(1, limits.MAIL_CHARS)]
    sender: Index = 0  # the sending process; 0: the caller
    labels: Labels = field(default_factory=list[str])


@dataclass(frozen=True, slots=True)
class Sent:
    number: int  # of the message, increasing in a mailbox
    waiting: int  # messages in the mailbox now


@dataclass(frozen=True, slots=True)
class Recv:
    """Receive the oldest message. This acknowledges the previous one received on the connection."""

    pid: Pid
    timeout_s: Annotated[float, Span(0, 10**6)] | None = None  # 0: do not wait
    done: Index = 0  # acknowledge messages up to this number
    take: bool = True  # False: only acknowledge; the reply is empty


@dataclass(frozen=True, slots=True)
class Mail:
    number: int
    sender: int  # pid; 0: no process
    author: str  # app:NAME of the sender or the caller, or the user of the command line
    time: float
    body: str
    labels: list[str]
    waiting: int  # messages after it
