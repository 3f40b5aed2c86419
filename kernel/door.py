"""Who may come in, and as whom: the rules of the door, before there is a caller.

Private: only the user whose machine this is. Shared: users of the system that the table knows, and
whoever has a key. Over TCP only a key counts. A key that is sent is always checked, and it can only
confirm what the system says of the peer, or speak for somebody whom the system does not know.
Who somebody is gets settled at hello, not before: a name may have gone to somebody else meanwhile.
"""

import asyncio
import os
import socket
from dataclasses import dataclass
from typing import Any

from . import identity, limits
from .errors import Denied, Errno, SyscallError
from .identity import Caller
from .machine import Machine
from .process import Process
from .values import Hello


@dataclass(slots=True)
class Visitor:
    """Somebody at the door."""

    who: str  # whose places it takes
    own: bool = False  # the user whose machine this is
    uid: int | None = None  # of a client on this machine
    process: Process | None = None  # whose program it is

    @property
    def far(self) -> bool:
        """Whether it came over TCP."""
        return self.uid is None and self.process is None


def visit(machine: Machine, transport: asyncio.BaseTransport, process: Process | None) -> Visitor:
    """Who has connected, as far as the system knows. EACCES for who may not."""
    connection: Any = transport.get_extra_info("socket")
    if process is not None:
        return _program(process)
    if connection.family != socket.AF_UNIX:
        return Visitor(far(transport.get_extra_info("peername")))
    peer = identity.peer(connection)
    own = peer.uid == os.geteuid()
    if not own and not machine.shared:
        raise Denied(
            f"this machine belongs to {machine.owner}, you are {identity.user(peer.uid)}",
            "start your own with `llmasos daemon start`",
        )
    pid = identity.descends_from(connection, peer, machine.programs, adopts=machine.adopts)
    if pid:
        return _program(machine.programs[pid])
    return Visitor(f"uid:{peer.uid}", own, peer.uid)


def _program(process: Process) -> Visitor:
    why = left_over(process)
    if why:
        raise Denied(why, "start it again")
    return Visitor(f"pid:{process.pid}", process=process)


def left_over(process: Process | None) -> str:
    """Why a program may do nothing any more; "" while it may."""
    if process is None or process.ending is None:
        return ""
    return f"process {process.pid} has ended, and with it what its program may do"


def far(peer: object) -> str:
    """Whose places a TCP client takes until it has shown a key: its address's."""
    return f"tcp:{peer[0]}" if isinstance(peer, tuple) else "tcp"


class Place:
    """A connection's place among all, and among those of one user. EAGAIN when there is none."""

    def __init__(self, machine: Machine, who: str, *, own: bool = False) -> None:
        counters = machine.counters
        free = counters.most if own else max(1, counters.most - limits.OWNER_CONNECTIONS)
        if counters.connections >= free:
            words = f"{counters.connections} clients are connected"
            raise SyscallError(Errno.EAGAIN, words, "try again later")
        self._machine, self._who, self._own = machine, "", own
        self.move(who)
        counters.connections += 1

    def move(self, who: str) -> None:
        """It is somebody's now. EAGAIN when that one has no more; then it stays where it was."""
        taken, most = self._machine.visitors[who], self._machine.places
        if not self._own and taken >= most:
            words = f"{taken} connections of {who}, {most} are allowed"
            hint = "close some, or let the owner set `user_connections`"
            raise SyscallError(Errno.EAGAIN, words, hint)
        self._forget()
        self._who = who
        self._machine.visitors[who] += 1

    def leave(self) -> None:
        self._forget()
        self._machine.counters.connections -= 1

    def _forget(self) -> None:
        visitors = self._machine.visitors
        visitors[self._who] -= 1
        if visitors[self._who] <= 0:  # so many pids and addresses come and go
            del visitors[self._who]


def known(machine: Machine, visitor: Visitor) -> str:
    """The user that the system vouches for, now; "" when it knows none."""
    if visitor.process is not None:
        return visitor.process.owner
    if visitor.own:
        return machine.owner
    return (machine.users.by_uid(visitor.uid) if visitor.uid is not None else None) or ""


def greet(
    machine: Machine, visitor: Visitor, number: int, hello: Hello
) -> tuple[Caller, list[str]]:
    """The caller that hello makes, and what it should be told. EACCES for a key that is none."""
    notices: list[str] = []
    key, owner = "", known(machine, visitor)
    if hello.key == identity.NO_KEY:
        words = "is the examples' placeholder: going on without a key"
        notices.append(f"the key {identity.NO_KEY} {words}")
    elif hello.key is not None:
        shown = machine.users.identify(hello.key)
        if owner and shown.user != owner:
            raise Denied(
                f"this key is {shown.user}'s, and you are {owner}",
                f"leave the key out, or `llmasos keys create --user {owner}`",
            )
        key, owner = shown.key, shown.user
    if not owner:
        raise Denied(
            "nobody knows you here, and you sent no key",
            "ask the machine's owner for `llmasos users add` or for a key",
        )
    return _caller(visitor, number, owner, hello, key), notices


def _caller(visitor: Visitor, number: int, owner: str, hello: Hello, key: str) -> Caller:
    """The user, the profile and the application, which a client names and may be any.

    A program is what the kernel made it: it has the identity of its process, whatever it says, and
    needs the consent of all above it.
    """
    process = visitor.process
    if process is not None:
        app, started_by, above = process.app, process.started_by, process.subjects
    else:
        app = hello.app or limits.UNNAMED_APP
        started_by, above = (app,), (f"app:{app}",)
    subjects = tuple(dict.fromkeys((f"u:{owner}", f"r:{hello.profile}", *above)))
    return Caller(
        number, owner, hello.profile, subjects, None if key else visitor.uid, key,
        " ".join(subjects), app, started_by, process.pid if process is not None else 0,
    )  # fmt: skip


def reserved(hard: int) -> int:
    """Clients that may be connected at once, with so many descriptors."""
    return max(1, min(limits.CONNECTIONS, hard - limits.DESCRIPTORS_RESERVED))
