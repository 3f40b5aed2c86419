"""The way to the kernel: connect, and start one if none answers and the verb's row says so."""

from importlib import import_module

from llmasos.kernel import paths
from llmasos.kernel.errors import Errno, SyscallError
from llmasos.kernel.values import Profile
from llmasos.userland.line import Line

from .invocation import CURRENT
from .show import note


def connect(*, profile: Profile = Profile.OPERATOR) -> Line:
    """A line to this user's kernel; who decides over others needs the profile owner.

    ECONNREFUSED when nobody answers.
    """
    try:
        line = Line(profile=profile)
    except SyscallError as error:
        if error.errno is not Errno.ECONNREFUSED or not CURRENT.starts:
            raise
        line = _started(profile)
    for notice in line.welcome.notices:
        note(f"llmasos: {notice}")
    return line


def _started(profile: Profile) -> Line:
    # Not imported above: `ps` never starts a daemon and does not pay for knowing how.
    starter, where = import_module("llmasos.userland.start"), paths.find()
    if starter.allowed() and starter.ensure(where, "--private"):
        note(f"started a private daemon; it leaves when idle, and logs to {where.log}")
    return Line(profile=profile)
