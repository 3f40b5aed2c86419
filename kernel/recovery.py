"""After a crash: what the last run left open is completed before anybody connects."""

from .errors import Errno, SyscallError
from .journal import Entry
from .machine import HANGUP, Machine
from .memory import erasing
from .memory.memory import Memory
from .store import Store


def check_processes(store: Store, memory: Memory) -> None:
    """EIO: the process table is gone, so every page would be taken for one that nobody has."""
    path = store.directory / "processes.db"
    if memory.unread and not path.exists():
        owners, many = store.directory / "owners", len(memory.unread)
        whose = f"{many} process{'es' * (many > 1)}"
        raise SyscallError(
            Errno.EIO,
            f"{path} is missing, and there are pages of {whose}",
            f"put a copy of it back, or begin anew without these pages: `mv {owners} {owners}.old`",
        )


async def recover(machine: Machine) -> None:
    await machine.journal.start()
    for begin in machine.journal.unfinished():
        try:
            done = machine.memory.committed(begin.owner, begin.seq)
        except SyscallError:  # it is known when that owner's database can be read again
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
