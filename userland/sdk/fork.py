"""After os.fork(): a child has copies of its parent's clients and must not use their connections.

A connection has one reader and one sequence of call numbers. So the child replaces each descriptor
at once with a socket whose peer is closed, and the epoll descriptor of each event loop with an
empty one: nothing that the child does, not even closing that loop, reaches the parent's
connections. Every call in the child raises ForkError.
"""

import asyncio
import os
import select
import socket
from contextlib import suppress
from typing import Any

from llmasos.kernel.abi.errors import Errno, SyscallError

_descriptors = set[int]()  # of the open connections of this process
_loops = dict[int, int]()  # epoll descriptor of an event loop -> number of its connections


class ForkError(SyscallError, RuntimeError):
    """A client was used in a child of the process that created it."""

    def __init__(self, creator_pid: int) -> None:
        super().__init__(
            Errno.EPIPE,
            f"this client was created in process {creator_pid}, not in its child {os.getpid()}",
            "create a new client after fork",
        )


def check(creator_pid: int) -> None:
    """Raise ForkError in any process but the one that created the client."""
    if os.getpid() != creator_pid:
        raise ForkError(creator_pid)


def opened(descriptor: int) -> None:
    """Register an open connection of the running event loop."""
    _descriptors.add(descriptor)
    if (poll := _poll()) is not None:
        _loops[poll] = _loops.get(poll, 0) + 1


def closed(descriptor: int) -> None:
    """Unregister a connection. Call it before the close: the number may be reused after it."""
    _descriptors.discard(descriptor)
    if (poll := _poll()) is not None and poll in _loops:
        _loops[poll] -= 1
        if not _loops[poll]:
            del _loops[poll]


def _poll() -> int | None:
    """The epoll descriptor of the running loop; a child shares it with its parent."""
    selector: Any = getattr(asyncio.get_running_loop(), "_selector", None)
    return selector.fileno() if hasattr(selector, "fileno") else None


def _disconnect() -> None:
    """In the child: replace its copies of the descriptors. The connections stay open."""
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
