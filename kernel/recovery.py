"""Crash recovery: completes what the last run left unfinished, before the listeners open."""

from .abi.errors import Errno, SyscallError
from .machine import HANGUP, Machine
from .memory import erasing
from .memory.memory import Memory
from .storage.journal import Entry
from .storage.store import Store


def check_processes(store: Store, memory: Memory) -> None:
    """EIO: the process table is missing, so recovery would erase every page as unused."""
    path = store.directory / "processes.db"
    if memory.unread and not path.exists():
        owners, count = store.directory / "owners", len(memory.unread)
        processes = "1 process has" if count == 1 else f"{count} processes have"
        raise SyscallError(
            Errno.EIO,
            f"{path} is missing, but {processes} pages",
            f"restore it from a backup, or start without these pages: `mv {owners} {owners}.old`",
        )


async def recover(machine: Machine) -> None:
    await machine.journal.start()
    for begin in machine.journal.unfinished():
        try:
            done = machine.memory.committed(begin.owner, begin.seq)
        except SyscallError:  # decided by a later run that can read this owner's database
            continue
        machine.journal.append(Entry(
            "end", begin.pid, begin.owner, begin.seq, begin.syscall, begin.object,
            0 if done else Errno.EINTR, "recovered" if done else "interrupted by a restart",
            begin.subject,
        ))  # fmt: skip
    for process in machine.processes.all():
        if not process.keep:
            await machine.processes.exit(process, HANGUP, "restart")
            await machine.try_to_reap(process)
    await erasing.recover(machine.memory, {process.pid for process in machine.processes.all()})
