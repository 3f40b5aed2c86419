"""After a crash: what the last run left open is completed before anybody connects."""

from .errors import Errno, SyscallError
from .journal import Entry
from .machine import HANGUP, Machine
from .memory import erasing


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
