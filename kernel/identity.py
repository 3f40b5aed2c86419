"""Who is on the other end of a connection.

The socket's peer credentials say which user, hello says which profile, a key speaks for whom the
system does not know; nothing in a later message changes any of it. A pid or a role inside a message
is never trusted. A program that the kernel started inherits its connection: that is its identity.
"""

import os
import pwd
import select
import socket
import struct
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .errors import Denied
from .values import Profile

# The word of the examples; people paste it before they read on.
NO_KEY = "YOUR_API_KEY"
_CREDENTIALS = struct.Struct("3i")
_SO_PEERPIDFD = 77  # Linux 6.5
_GENERATIONS = 64  # of processes of the system, looked at upwards


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
    key: str = ""  # the id of the key that it came with
    told: str = ""  # the subjects, as the journal has them

    @property
    def bounds(self) -> tuple[str, ...]:
        """What a process that it starts may not exceed."""
        return self.subjects[1:]


def peer(connection: socket.socket) -> Peer:
    """The credentials of a unix socket's other end."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _gid = _CREDENTIALS.unpack(raw)
    return Peer(pid, uid)


def program(
    connection: socket.socket, who: Peer, programs: Collection[int], *, adopts: bool
) -> int:
    """The pid of the kernel's program that this peer descends from, or 0.

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
    except OSError:  # an older kernel of the system
        return found
    descriptor = struct.unpack("i", raw)[0]
    try:
        ended = select.poll()  # select() knows no descriptor above 1,023
        ended.register(descriptor, select.POLLIN)
        gone = bool(ended.poll(0))
    finally:
        os.close(descriptor)
    if gone:
        raise Denied("the process that connected has ended already", "connect again")
    return found


def _ancestors(pid: int) -> list[int]:
    """The process and its parents, upwards."""
    found: list[int] = []
    while pid > 1 and len(found) < _GENERATIONS:
        found.append(pid)
        parent = 0
        with suppress(OSError, ValueError, IndexError):
            # The name of a process may hold blanks and brackets; what follows the last one is ours.
            status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
            parent = int(status.rpartition(")")[2].split()[1])
        pid = parent
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
