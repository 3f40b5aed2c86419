"""A syscall on its way: what every handler is given beside its request."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ..identity import Caller


@dataclass(frozen=True, slots=True)
class Call:
    """A syscall on its way: who asked, and how to stream to them."""

    caller: Caller
    number: int  # the journal's, of its begin; 0 for calls that are not begun and ended
    begun: Awaitable[None] | None  # ends when that begin is written
    send: Callable[[object], None]  # never waits
    writable: Callable[[], Awaitable[None]]  # waits for a slow reader
    own: bool = False  # of lists and of the journal, it is allowed its application's own part
