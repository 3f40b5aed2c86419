"""Who may come in, and as whom: the rules of the door, before there is a caller.

Private: only the user whose machine this is. Shared: users of the system that the table knows, and
whoever has a key. Over TCP only a key counts. A key that is sent is always checked, and it can only
confirm what the system says of the peer, or speak for somebody whom the system does not know.
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

TCP = "tcp"  # whose places everybody takes who comes that way


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody at the door."""

    owner: str  # "": nobody knows before there is a key
    who: str  # whose places it takes
    process: Process | None = None  # whose program it is


def visit(machine: Machine, transport: asyncio.BaseTransport, process: Process | None) -> Visitor:
    """Somebody has connected. EACCES for who may not, EAGAIN when there is no place."""
    if process is not None:
        return Visitor(process.owner, f"pid:{process.pid}", process)
    connection: Any = transport.get_extra_info("socket")
    if connection.family != socket.AF_UNIX:  # it got its place when it was accepted
        return Visitor("", TCP)
    peer = identity.peer(connection)
    own = peer.uid == os.geteuid()
    owner = machine.owner if own else machine.users.by_uid(peer.uid)
    if not own and not machine.shared:
        raise Denied(
            f"this machine belongs to {machine.owner}, you are {identity.user(peer.uid)}",
            "start your own with `llmasos daemon start`",
        )
    pid = identity.program(connection, peer, machine.programs, adopts=machine.adopts)
    program = machine.programs.get(pid)
    if program is not None:
        return Visitor(program.owner, f"pid:{program.pid}", program)
    who = f"uid:{peer.uid}"
    place(machine, who, own=own)
    return Visitor(owner or "", who)


def place(machine: Machine, who: str, *, own: bool) -> None:
    """The owner may take every place but the reserved ones, each other user so many. EAGAIN."""
    counters = machine.counters
    if counters.connections >= counters.most:
        words = f"{counters.most} clients are connected"
        raise SyscallError(Errno.EAGAIN, words, "try again later")
    taken = machine.visitors[who]
    if not own and taken >= machine.places:
        words = f"{taken} connections of {who}, {machine.places} are allowed"
        hint = "close some, or let the owner set `user_connections`"
        raise SyscallError(Errno.EAGAIN, words, hint)


def greet(
    machine: Machine, visitor: Visitor, number: int, hello: Hello
) -> tuple[Caller, list[str]]:
    """The caller that hello makes, and what it should be told. EACCES for a key that is none."""
    notices: list[str] = []
    key, owner = "", visitor.owner
    if hello.key == identity.NO_KEY:
        words = "is the examples' placeholder: going on without a key"
        notices.append(f"the key {identity.NO_KEY} {words}")
    elif hello.key is not None:
        known = machine.users.identify(hello.key)
        if owner and known.user != owner:
            raise Denied(
                f"this key is {known.user}'s, and you are {owner}",
                f"leave the key out, or `llmasos keys create --user {owner}`",
            )
        key, owner = known.key, known.user
    if not owner:
        raise Denied(
            "nobody knows you here, and you sent no key",
            "ask the machine's owner for `llmasos users add` or for a key",
        )
    return _caller(visitor, number, owner, hello, key), notices


def _caller(visitor: Visitor, number: int, owner: str, hello: Hello, key: str) -> Caller:
    """The user, the profile, and for a program what its process needs the consent of."""
    above = visitor.process.subjects if visitor.process is not None else ()
    subjects = tuple(dict.fromkeys((f"u:{owner}", f"r:{hello.profile}", *above)))
    return Caller(number, owner, hello.profile, subjects, key, " ".join(subjects))


def reserved(hard: int) -> int:
    """Clients that may be connected at once, with so many descriptors."""
    return max(1, min(limits.CONNECTIONS, hard - limits.DESCRIPTORS_RESERVED))
