"""Crash recovery: completes what the last run left unfinished, before the listeners open."""

import contextlib

from .abi.errors import Errno, SyscallError
from .lifecycle import HANGUP, Lifecycle
from .memory import loading
from .owners.owners import Owners
from .storage.journal import Entry, Journal
from .storage.store import Store


def check_processes(store: Store) -> None:
    """EIO: the process table is missing, so recovery would erase every page as unused."""
    path, owners = store.directory / "processes.db", store.directory / "owners"
    if path.exists():
        return
    count = 0
    for file in owners.glob(f"*/{loading.FILE}"):
        with contextlib.suppress(SyscallError):  # damaged: opening it reports this
            rows = store.peek(loading.name(file.parent.name), "SELECT count(*) FROM tables")
            count += int(rows[0][0] or 0) if rows else 0
    if count:
        processes = "1 process has" if count == 1 else f"{count} processes have"
        raise SyscallError(
            Errno.EIO,
            f"{path} is missing, but {processes} pages",
            f"restore it from a backup, or start without these pages: `mv {owners} {owners}.old`",
        )


async def recover(journal: Journal, owners: Owners, lifecycle: Lifecycle) -> None:
    """Journal the end of calls in flight; end the processes whose connection is gone."""
    await journal.start()
    for begin in journal.unfinished():
        try:
            async with owners.use(begin.owner) as owner:
                done = await owner.memory.committed(begin.seq)
        except SyscallError:  # decided by a later run that can read this owner's database
            continue
        journal.append(Entry(
            "end", begin.pid, begin.owner, begin.seq, begin.syscall, begin.object,
            0 if done else Errno.EINTR, "recovered" if done else "interrupted by a restart",
            begin.subject,
        ))  # fmt: skip
    for process in lifecycle.processes.all():
        if not process.keep:
            await lifecycle.processes.exit(process, HANGUP, "restart")
            await lifecycle.try_to_reap(process)
