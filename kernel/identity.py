"""Who is on the other end of a connection.

The socket's peer credentials say which user, hello says which profile; nothing in a later message
changes either. A pid or a role inside a message is never trusted.
"""

import os
import pwd
import socket
import struct
from dataclasses import dataclass

from .errors import Denied
from .values import Hello, Profile

# The word of the examples; people paste it before they read on.
NO_KEY = "YOUR_API_KEY"
_CREDENTIALS = struct.Struct("3i")


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
    subjects: tuple[str, ...]  # what the gate is asked about: the user, then the profile


def peer(connection: socket.socket) -> Peer:
    """The credentials of a unix socket's other end."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _gid = _CREDENTIALS.unpack(raw)
    return Peer(pid, uid)


def user(uid: int) -> str:
    """The owner's name for a uid; a directory's name too, so odd ones are spelled by number."""
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid{uid}"
    plain = name.replace("-", "").replace("_", "").replace(".", "")
    return name if plain.isascii() and plain.isalnum() and name[0] not in ".-" else f"uid{uid}"


def admit(who: Peer) -> str:
    """The owner's name, if this peer may connect at all. EACCES names both users."""
    if who.uid != os.geteuid():
        raise Denied(
            f"this machine belongs to {user(os.geteuid())}, you are {user(who.uid)}",
            "start your own with `llmasos daemon start`",
        )
    return user(who.uid)


def subject(owner: str) -> tuple[str, ...]:
    """Before hello there is only the user."""
    return (f"u:{owner}",)


def greet(connection: int, owner: str, hello: Hello) -> tuple[Caller, list[str]]:
    """The caller that hello makes, and what it should be told. EACCES for a key: none exist yet."""
    notices: list[str] = []
    if hello.key == NO_KEY:
        notices.append(f"the key {NO_KEY} is the examples' placeholder: going on without a key")
    elif hello.key is not None:
        raise Denied(
            "a key was sent, and this machine has no keys yet",
            "leave api_key out: the socket's owner needs none",
        )
    subjects = (*subject(owner), f"r:{hello.profile}")
    return Caller(connection, owner, hello.profile, subjects), notices
