"""Authentication of a connection: which user, application and process its caller is.

A private machine accepts only the user who started it. A shared machine accepts operating system
users in the user table, and every holder of a key. Over TCP only a key authenticates. A key that is
sent is always checked: it must belong to the user that the operating system reports, if that one is
in the user table. The user is determined at hello: before it, the name may pass to another person.
"""

import asyncio
import os
import socket
from dataclasses import dataclass
from typing import Any

from ..abi import limits
from ..abi.errors import Denied, Errno, SyscallError
from ..abi.values import Hello
from ..access import identity
from ..access.identity import Caller
from ..machine import Machine
from ..process.table import Process


@dataclass(slots=True)
class Peer:
    """The other end of a connection, as the operating system reports it."""

    holder: str  # the user, address or process that its slot is counted for
    is_machine_owner: bool = False
    uid: int | None = None  # of a client on this machine
    process: Process | None = None  # the process, if the peer is a program

    @property
    def remote(self) -> bool:
        """Whether it is connected over TCP."""
        return self.uid is None and self.process is None


def identify(machine: Machine, transport: asyncio.BaseTransport, process: Process | None) -> Peer:
    """The peer of a connection. EACCES for a peer that may not connect."""
    connection: Any = transport.get_extra_info("socket")
    if process is not None:
        return _program(process)
    if connection.family != socket.AF_UNIX:
        return Peer(address_holder(transport.get_extra_info("peername")))
    credentials = identity.peer(connection)
    is_machine_owner = credentials.uid == os.geteuid()
    if not is_machine_owner and not machine.run.shared:
        you = identity.user(credentials.uid)
        raise Denied(
            f"this machine belongs to {machine.run.owner}, and you are {you}",
            "`llmasos daemon start` starts your own",
        )
    programs = machine.connections.programs
    pid = identity.descends_from(
        connection, credentials, programs, subreaper=machine.connections.is_subreaper
    )
    if pid:
        return _program(programs[pid])
    return Peer(f"uid:{credentials.uid}", is_machine_owner, credentials.uid)


def _program(process: Process) -> Peer:
    why = end_reason(process)
    if why:
        raise Denied(why, "start it again")
    return Peer(f"pid:{process.pid}", process=process)


def end_reason(process: Process | None) -> str:
    """The reason why a program may make no more calls; "" while it may."""
    if process is None or process.ending is None:
        return ""
    return f"process {process.pid} has ended, so its program cannot make calls"


def address_holder(peer: object) -> str:
    """The holder of a TCP client's slot until it has sent a key: its address."""
    return f"tcp:{peer[0]}" if isinstance(peer, tuple) else "tcp"


class ConnectionSlot:
    """One connection, counted against the limit of the machine and that of its holder.

    EAGAIN when a limit is reached.
    """

    def __init__(self, machine: Machine, holder: str, *, is_machine_owner: bool = False) -> None:
        counters = machine.counters
        most = (
            counters.most if is_machine_owner else max(1, counters.most - limits.OWNER_CONNECTIONS)
        )
        if counters.connections >= most:
            message = f"{counters.connections} clients are connected; at most {most} are allowed"
            raise SyscallError(Errno.EAGAIN, message, "try again later")
        self._machine, self._holder, self._is_machine_owner = machine, "", is_machine_owner
        self.move(holder)
        counters.connections += 1

    def move(self, holder: str) -> None:
        """Count it for another holder. EAGAIN at that one's limit; then nothing changes."""
        connections = self._machine.connections
        taken, most = connections.slots[holder], connections.user_limit
        if not self._is_machine_owner and taken >= most:
            message = f"{taken} connections of {holder} are open; at most {most} are allowed"
            hint = "close some, or ask the owner to raise `user_connections`"
            raise SyscallError(Errno.EAGAIN, message, hint)
        self._uncount()
        self._holder = holder
        connections.slots[holder] += 1

    def release(self) -> None:
        self._uncount()
        self._machine.counters.connections -= 1

    def _uncount(self) -> None:
        slots = self._machine.connections.slots
        slots[self._holder] -= 1
        if slots[self._holder] <= 0:  # the number of pids and addresses is unbounded
            del slots[self._holder]


def user_of(machine: Machine, peer: Peer) -> str:
    """The user that the operating system reports now; "" when it is not in the user table."""
    if peer.process is not None:
        return peer.process.owner
    if peer.is_machine_owner:
        return machine.run.owner
    return (machine.users.by_uid(peer.uid) if peer.uid is not None else None) or ""


def authenticate(
    machine: Machine, peer: Peer, number: int, hello: Hello
) -> tuple[Caller, list[str]]:
    """The caller, and notices for it. EACCES without a user, and for an invalid key."""
    notices: list[str] = []
    key, user = "", user_of(machine, peer)
    if hello.key == identity.NO_KEY:
        notices.append(f"the key {identity.NO_KEY} is the placeholder of the examples: ignored")
    elif hello.key is not None:
        holder = machine.users.identify(hello.key)
        if user and holder.user != user:
            raise Denied(
                f"this key belongs to {holder.user}, and you are {user}",
                f"omit the key, or create one with `llmasos keys create --user {user}`",
            )
        key, user = holder.key, holder.user
    if not user:
        raise Denied(
            "your user is not in the user table of this machine, and no key was sent",
            "ask the machine's owner for `llmasos users add NAME` or for a key",
        )
    return _caller(peer, number, user, hello, key), notices


def _caller(peer: Peer, number: int, user: str, hello: Hello, key: str) -> Caller:
    """The user, the profile and the application. A client may name any application.

    A program has the identity of its process, whatever its hello says. Each subject of the process
    and of its ancestors must allow its calls.
    """
    process = peer.process
    if process is not None:
        app, started_by, bounds = process.app, process.started_by, process.subjects
    else:
        app = hello.app or limits.UNNAMED_APP
        started_by, bounds = (app,), (f"app:{app}",)
    subjects = tuple(dict.fromkeys((f"u:{user}", f"r:{hello.profile}", *bounds)))
    return Caller(
        number, user, hello.profile, subjects, None if key else peer.uid, key,
        " ".join(subjects), app, started_by, process.pid if process is not None else 0,
    )  # fmt: skip


def shares(descriptors: int) -> tuple[int, int]:
    """The maximum numbers of connections and of open owners, given the limit of descriptors.

    When it is low, owners get half of the descriptors.
    """
    free = max(0, descriptors - limits.DESCRIPTORS_RESERVED)
    owners = max(1, min(limits.OWNERS_OPEN, free // 2 // limits.OWNER_DESCRIPTORS))
    connections = free - owners * limits.OWNER_DESCRIPTORS
    return max(1, min(limits.CONNECTIONS, connections)), owners
