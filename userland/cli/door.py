"""The way to the kernel: the one that --host or LLMASOS_HOST names, or this user's own.

One of this user's is started if none answers and the verb's row says so.
"""

import os
from importlib import import_module

from llmasos.kernel import paths
from llmasos.kernel.errors import Errno, SyscallError
from llmasos.kernel.values import Profile
from llmasos.userland.line import Line, inherits

from .invocation import CURRENT
from .show import note


def connect(*, profile: Profile = Profile.OPERATOR) -> Line:
    """A line to the kernel; who decides over others needs the profile owner.

    ECONNREFUSED when nobody answers.
    """
    line = _far(profile) or _near(profile)
    for notice in line.welcome.notices:
        note(f"llmasos: {notice}")
    return line


def is_far() -> bool:
    """Whether the kernel is on another machine: it knows neither our files nor our processes."""
    return not CURRENT.local and bool(_host())


def place() -> str:
    """Where the kernel is, for people: its socket, or its machine."""
    return _host() if is_far() else str(paths.find().socket)


def _host() -> str:
    return CURRENT.remote.get("host") or ("" if inherits() else os.environ.get("LLMASOS_HOST", ""))


def _far(profile: Profile) -> Line | None:
    if not is_far():
        return None
    # Not imported above: who asks this machine does not pay for TLS.
    remote = import_module("llmasos.userland.remote").chosen(**CURRENT.remote)
    if remote is None:
        return None
    key = remote.key()
    return Line(remote.connect(), profile=profile, key=key)


def _near(profile: Profile) -> Line:
    try:
        return Line(profile=profile)
    except SyscallError as error:
        if error.errno is not Errno.ECONNREFUSED or not CURRENT.starts:
            raise
    return _started(profile)


def _started(profile: Profile) -> Line:
    # Not imported above: `ps` never starts a daemon and does not pay for knowing how.
    starter, where = import_module("llmasos.userland.start"), paths.find()
    if starter.allowed() and starter.ensure(where, "--private"):
        note(f"started a private daemon; it leaves when idle, and logs to {where.log}")
    return Line(profile=profile)
