"""Connects to the kernel: the one that --host or LLMASOS_HOST names, or the local one of this user.

A local daemon is started if none answers and the row of the verb allows it.
"""

import os
from importlib import import_module

from llmasos.kernel.abi import paths
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.values import Profile
from llmasos.userland.client import BlockingClient, started_by_kernel

from .invocation import CURRENT
from .show import note


def connect(*, profile: Profile = Profile.OPERATOR) -> BlockingClient:
    """Connect to the kernel. Verbs that administer other users need the profile `owner`.

    Raises ECONNREFUSED if no kernel answers.
    """
    client = _connect_remote(profile) or _connect_local(profile)
    for notice in client.welcome.notices:
        note(f"llmasos: {notice}")
    return client


def is_remote() -> bool:
    """Whether the kernel is on another machine, without access to local files and processes."""
    return not CURRENT.local and bool(_host())


def kernel_address() -> str:
    """The address of the kernel: the path of its socket, or HOST:PORT."""
    return _host() if is_remote() else str(paths.find().socket)


def _host() -> str:
    return CURRENT.remote.get("host") or (
        "" if started_by_kernel() else os.environ.get("LLMASOS_HOST", "")
    )


def _connect_remote(profile: Profile) -> BlockingClient | None:
    if not is_remote():
        return None
    # Imported on demand: a local connection does not load TLS.
    remote = import_module("llmasos.userland.remote").resolve(**CURRENT.remote)
    if remote is None:
        return None
    key = remote.key()
    return BlockingClient(remote.connect(), profile=profile, key=key)


def _connect_local(profile: Profile) -> BlockingClient:
    try:
        return BlockingClient(profile=profile)
    except SyscallError as error:
        if error.errno is not Errno.ECONNREFUSED or not CURRENT.starts:
            raise
    return _start_and_connect(profile)


def _start_and_connect(profile: Profile) -> BlockingClient:
    # Imported on demand: `ps` never starts a daemon.
    starter, where = import_module("llmasos.userland.start"), paths.find()
    if starter.allowed() and starter.ensure(where, "--private"):
        note(f"started a private daemon; it stops when idle and logs to {where.log}")
    return BlockingClient(profile=profile)
