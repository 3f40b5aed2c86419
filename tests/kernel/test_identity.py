"""Who is a caller, which events it caused, and from what its process descends."""

import errno
import os
import resource
import socket

import pytest

from llmasos.kernel.abi.errors import Denied, os_message
from llmasos.kernel.abi.values import Event, Profile
from llmasos.kernel.access import identity
from llmasos.kernel.access.identity import Caller


def event(subject: str, kind: str = "call") -> Event:
    return Event(1, 0.0, kind, 7, "ann", 0, "ps", "/proc", 0, "", subject)


def test_a_program_is_the_source_of_the_events_of_its_process() -> None:
    program = Caller(1, "ann", Profile.OPEN, ("u:ann", "pid:7"), program=7)
    assert program.is_source_of(event("u:ann r:open app:notes pid:7"))
    assert not program.is_source_of(event("u:ann r:open app:notes pid:77"))
    client = Caller(1, "ann", Profile.OPEN, ("u:ann",), app="notes")
    assert client.is_source_of(event("u:ann r:open app:notes"))
    assert not client.is_source_of(event("u:ann r:open app:other app:notes"))
    assert client.is_source_of(event("app:other app:notes", "process"))


def test_who_is_no_descendant_of_a_program_is_none() -> None:
    """Its ancestors are followed up to init."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        parent = identity.PeerCredentials(os.getppid(), os.geteuid())
        assert identity.descends_from(ours, parent, {2**22 + 1}, subreaper=True) == 0
        assert identity.descends_from(ours, parent, {os.getppid()}, subreaper=True) == os.getppid()


def test_an_orphan_of_a_program_is_refused() -> None:
    """The kernel has adopted it, and no program is among its ancestors."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    pid, (read, write) = 0, os.pipe()
    pid = os.fork()
    if not pid:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    try:
        with ours, theirs, pytest.raises(Denied, match="orphan of a program"):
            child = identity.PeerCredentials(pid, os.geteuid())
            identity.descends_from(ours, child, {2**22 + 1}, subreaper=True)
    finally:
        os.close(read)
        os.close(write)
        os.waitpid(pid, 0)


def test_a_user_without_a_name_is_called_by_the_number() -> None:
    assert identity.user(4_000_000_000) == "uid4000000000"


def test_the_message_of_the_system_names_a_limit_that_was_reached() -> None:
    own, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    for number, words in (
        (errno.EMFILE, f"all {own} file descriptors of this process"),
        (errno.ENFILE, "all file descriptors of this machine"),
        (errno.EIO, os.strerror(errno.EIO)),
    ):
        assert os_message(OSError(number, os.strerror(number))).startswith(words)
    assert os_message(OSError("no number")) == "no number"
