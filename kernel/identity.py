"""Who is on the other end of a connection.

The socket's peer credentials say which user, hello says which profile, a key speaks for whom the
system does not know; nothing in a later message changes any of it. A pid or a role inside a message
is never trusted. A program that the kernel started inherits its connection: that is its identity.
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

from . import limits
from .errors import Denied
from .values import Event, Profile

# The word of the examples; people paste it before they read on.
NO_KEY = "YOUR_API_KEY"
_CREDENTIALS = struct.Struct("3i")
_SO_PEERPIDFD = 77  # Linux 6.5
_GONE = "the process that connected, or one above it, has ended"


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end, as the operating system knows it."""

    pid: int
    uid: int


@dataclass(frozen=True, slots=True)
class Caller:
    """A connection that has said hello."""

    connection: int
    owner: str
    profile: Profile
    subjects: tuple[str, ...]  # the gate asks each: the user, the profile, where it descends from
    uid: int | None = None  # that makes it this user; None: it came with a key, or is a program
    key: str = ""  # the id of the key that it came with
    told: str = ""  # the subjects, joined once: the journal has them with each call
    app: str = limits.UNNAMED_APP  # the application, as the client says or the kernel gave it
    started_by: tuple[str, ...] = ()  # applications whose the processes are that it starts
    program: int = 0  # the process whose program it is; 0: a client

    @property
    def bounds(self) -> tuple[str, ...]:
        """What a process that it starts may not exceed."""
        return self.subjects[1:]

    @property
    def author(self) -> str:
        """Of what it writes: the user at the command line, or else the application."""
        person = self.app == limits.COMMAND_APP and not self.program
        return self.owner if person else f"app:{self.app}"

    def made(self, event: Event) -> bool:
        """Whether an event is of its application's calls, or of its processes.

        A client's call has its application as the third subject, a process's event names all of
        the applications that it is of. A program is known by its process.
        """
        told = event.subject.split()
        if self.program:
            return f"pid:{self.program}" in told
        return f"app:{self.app}" in (told if event.kind == "process" else told[2:3])


def peer(connection: socket.socket) -> Peer:
    """The credentials of a unix socket's other end."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _gid = _CREDENTIALS.unpack(raw)
    return Peer(pid, uid)


def descends_from(
    connection: socket.socket, who: Peer, programs: Collection[int], *, adopts: bool
) -> int:
    """The pid of the kernel's program that this peer descends from, or 0. EACCES when unclear.

    A program could connect anew by the socket's path; it stays what it is. The pidfd makes sure
    that the pid was not given to somebody else while its ancestors were looked up.
    """
    if not programs and not adopts:
        return 0  # no program was ever started
    above = _ancestors(who.pid)
    found = next((pid for pid in above if pid in programs), 0)
    if not found and adopts and os.getpid() in above[1:]:
        # The kernel adopts the orphans of its programs.
        raise Denied("this process was left over by a program that has ended", "start it again")
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:  # an older kernel of the system
            return found
        raise Denied(_GONE, "connect again") from error
    descriptor = struct.unpack("i", raw)[0]
    try:
        ended = select.poll()  # select() knows no descriptor above 1,023
        ended.register(descriptor, select.POLLIN)
        gone = bool(ended.poll(0))
    finally:
        os.close(descriptor)
    if gone:
        raise Denied(_GONE, "connect again")
    return found


def _ancestors(pid: int) -> list[int]:
    """The process and its parents, upwards to the first of the system or to us. EACCES when the
    line breaks off: somewhere in it a program could hide."""
    found: list[int] = []
    while pid > 1:
        found.append(pid)
        if pid == os.getpid():
            break
        if len(found) > limits.ANCESTORS:
            words = f"more than {limits.ANCESTORS} processes above the one that connected"
            raise Denied(words, "connect from further up")
        try:
            # The name of a process may hold blanks and brackets; what follows the last one is ours.
            status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
            pid = int(status.rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError) as error:
            raise Denied(_GONE, "connect again") from error
    return found


def user(uid: int) -> str:
    """The owner's name for a uid; a directory's name too, so odd ones are spelled by number."""
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid{uid}"
    plain = name.replace("-", "").replace("_", "").replace(".", "")
    fits = plain.isascii() and plain.isalnum() and name[0] not in "._-" and len(name) <= 32
    return name if fits else f"uid{uid}"
