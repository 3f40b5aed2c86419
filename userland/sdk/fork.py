"""After os.fork(): a child has its parent's clients in memory, and must not use their connections.

A connection has one reader and one numbering of calls. So in the child each of its descriptors is
replaced at once by a socket whose other end is closed, and so is the epoll object of an event loop:
nothing that the child does, not even closing that loop, reaches the parent's connections. Every
call there is a ForkError.
"""

import asyncio
import os
import select
import socket
from contextlib import suppress
from typing import Any

from llmasos.kernel.errors import Errno, SyscallError

_descriptors = set[int]()  # of the connections that are open in this process
_loops = dict[int, int]()  # descriptor of an event loop's epoll object: connections on it


class ForkError(SyscallError, RuntimeError):
    """A client is used in a child of the process that made it."""

    def __init__(self, made_in: int) -> None:
        super().__init__(
            Errno.EPIPE,
            f"this client was made in process {made_in}, and this is its child {os.getpid()}",
            "make a new client after fork",
        )


def check(made_in: int) -> None:
    """ForkError in any other process than the one that made the client."""
    if os.getpid() != made_in:
        raise ForkError(made_in)


def opened(descriptor: int) -> None:
    """A connection of the running event loop is open."""
    _descriptors.add(descriptor)
    if (poll := _poll()) is not None:
        _loops[poll] = _loops.get(poll, 0) + 1


def closed(descriptor: int) -> None:
    """To be called before it is closed: its number may be given to another file then."""
    _descriptors.discard(descriptor)
    if (poll := _poll()) is not None and poll in _loops:
        _loops[poll] -= 1
        if not _loops[poll]:
            del _loops[poll]


def _poll() -> int | None:
    """The epoll object of the running loop, which a child would share with its parent."""
    selector: Any = getattr(asyncio.get_running_loop(), "_selector", None)
    return selector.fileno() if hasattr(selector, "fileno") else None


def _disconnect() -> None:
    """In the child: its own copies of the descriptors, not the connections."""
    for descriptor in _descriptors:
        with suppress(OSError):
            dead, other = socket.socketpair()
            other.close()
            with dead:
                dead.setblocking(False)
                os.dup2(dead.fileno(), descriptor, inheritable=False)
    for poll in _loops:
        with suppress(OSError, AttributeError), select.epoll() as empty:
            os.dup2(empty.fileno(), poll, inheritable=False)
    _descriptors.clear()
    _loops.clear()


os.register_at_fork(after_in_child=_disconnect)
