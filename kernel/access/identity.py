"""The identity of a connection's peer, and of the caller that it becomes after hello.

The socket's peer credentials give the user, hello gives the profile, and a key identifies a user
whom the operating system does not know. No later message changes any of them. A pid or a role in a
message is never trusted. The identity of a program that the kernel started is the connection that
it inherits.
"""

import errno
import os
import pwd
import select
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ..abi import limits
from ..abi.errors import Denied
from ..abi.values import Event, Profile

# The placeholder in the examples, which is often sent unchanged.
NO_KEY = "YOUR_API_KEY"
_CREDENTIALS = struct.Struct("3i")
_SO_PEERPIDFD = 77  # Linux 6.5
_GONE = "the process that connected, or an ancestor of it, has ended"


@dataclass(frozen=True, slots=True)
class PeerCredentials:
    """The process at the other end, as the operating system reports it."""

    pid: int
    uid: int


@dataclass(frozen=True, slots=True)
class Caller:
    """The identity of a connection after hello."""

    connection: int
    user: str
    profile: Profile
    subjects: tuple[str, ...]  # each must allow a call: user, profile, application or ancestors
    uid: int | None = None  # that identifies the user; None: a key does, or it is a program
    key: str = ""  # the id of the key that it sent
    recorded: str = ""  # the subjects joined, as the journal records them
    app: str = limits.UNNAMED_APP  # the application: sent by a client, or set by the kernel
    started_by: tuple[str, ...] = ()  # applications recorded for processes that it starts
    program: int = 0  # the pid of the process whose program it is; 0: a client

    @property
    def bounds(self) -> tuple[str, ...]:
        """The subjects that bound each process that it starts: all but the user."""
        return self.subjects[1:]

    @property
    def author(self) -> str:
        """The author of what it writes: the user for the command line, else the application."""
        person = self.app == limits.COMMAND_APP and not self.program
        return self.user if person else f"app:{self.app}"

    def is_source_of(self, event: Event) -> bool:
        """Whether an event is about a call of its application, or about one of its processes.

        A client's call has the application as its third subject. A process event names all
        applications of the process. A program is identified by its process.
        """
        subjects = event.subject.split()
        if self.program:
            return f"pid:{self.program}" in subjects
        return f"app:{self.app}" in (subjects if event.kind == "process" else subjects[2:3])


def peer(connection: socket.socket) -> PeerCredentials:
    """The credentials of the peer of a unix socket."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _gid = _CREDENTIALS.unpack(raw)
    return PeerCredentials(pid, uid)


def descends_from(
    connection: socket.socket, who: PeerCredentials, programs: Collection[int], *, subreaper: bool
) -> int:
    """The pid of the program that this peer descends from, or 0. EACCES when it is unknown.

    A program that opens a new connection by the socket's path keeps its identity. The pidfd makes
    sure that the pid was not reused while its ancestors were looked up. `subreaper`: the kernel
    adopts the orphans of its programs.
    """
    if not programs and not subreaper:
        return 0  # no program was ever started
    ancestors = _ancestors(who.pid)
    found = next((pid for pid in ancestors if pid in programs), 0)
    if not found and subreaper and os.getpid() in ancestors[1:]:
        raise Denied("this process is an orphan of a program that has ended", "start it again")
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:  # Linux before 6.5
            return found
        raise Denied(_GONE, "connect again") from error
    descriptor = struct.unpack("i", raw)[0]
    try:
        poll = select.poll()  # select() takes no descriptor above 1,023
        poll.register(descriptor, select.POLLIN)
        exited = bool(poll.poll(0))
    finally:
        os.close(descriptor)
    if exited:
        raise Denied(_GONE, "connect again")
    return found


def _ancestors(pid: int) -> list[int]:
    """The process and its ancestors, up to init or to this process.

    EACCES when the chain is incomplete: the missing part could contain a program.
    """
    found: list[int] = []
    while pid > 1:
        found.append(pid)
        if pid == os.getpid():
            break
        if len(found) > limits.ANCESTORS:
            message = f"the process that connected has more than {limits.ANCESTORS} ancestors"
            raise Denied(message, "connect from a process with fewer ancestors")
        try:
            # A process name may contain blanks and brackets: parse what follows the last bracket.
            status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
            pid = int(status.rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError) as error:
            raise Denied(_GONE, "connect again") from error
    return found


def user(uid: int) -> str:
    """The user name of a uid. It is also a directory name: other names become uidNUMBER."""
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid{uid}"
    letters = name.replace("-", "").replace("_", "").replace(".", "")
    valid = letters.isascii() and letters.isalnum() and name[0] not in "._-" and len(name) <= 32
    return name if valid else f"uid{uid}"
