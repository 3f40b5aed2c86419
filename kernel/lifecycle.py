"""The life of processes: creates, interrupts, ends and removes them with all that they have.

A process has a row in the process table, pages and messages of its owner, contexts in an engine,
and counts by its pid. Each part is implemented elsewhere; here are the operations that change
several of them.
"""

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from anyio import CancelScope

from .abi.errors import SyscallError
from .abi.values import SIGNAL_NUMBERS, Fork, Generate, Signal
from .access.decisions import Policy
from .access.identity import Caller
from .access.reauthorisation import Clients
from .memory.erasing import drop
from .memory.faults import Faults
from .owners.owner import Owner
from .owners.owners import Owners
from .process.table import Process, ProcessTable
from .scheduling.images import ImageRegistry
from .scheduling.loader import Loader
from .storage.journal import Entry, Journal

log = logging.getLogger(__name__)
HANGUP = 129  # exit code of a process that ended with its connection: 128 + SIGHUP


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """The operations that create, end and remove processes."""

    processes: ProcessTable
    owners: Owners
    images: ImageRegistry
    loader: Loader
    journal: Journal
    faults: Faults
    policy: Policy
    clients: Clients

    def record(self, process: Process, note: str) -> None:
        """Write an event of a process to the journal."""
        self.journal.append(Entry(
            "process", process.pid, process.owner, object=f"/proc/{process.pid}", note=note,
            subject=process.lineage,
        ))  # fmt: skip

    # --- create -----------------------------------------------------------------------------------
    async def fork(self, parent: Process, request: Fork, caller: Caller) -> list[Process]:
        """Create children with the parent's committed pages: all of them or none. EAGAIN."""
        children: list[Process] = []
        with self.processes.reserve(request.count, parent.owner), CancelScope(shield=True):
            await self.processes.pids.ready(request.count)
            children = self.processes.children(parent, request, caller)
            # A crash before `add` leaves pages without a process, which recovery erases.
            memory = self.owners.get(parent.owner).memory
            await memory.copy(parent, children)
            try:
                await self.processes.add(children)
            except SyscallError:
                for child in children:
                    await drop(memory, child)
                raise
        return children

    @asynccontextmanager
    async def single(self, caller: Caller, request: Generate, pid: int) -> AsyncGenerator[Process]:
        """A process that exists until the end of the block. ENOENT, EAGAIN."""
        image = self.images.get(request.model)
        async with self.processes.single(caller, request, image.name, pid) as process:
            try:
                yield process
            finally:
                with CancelScope(shield=True):
                    await self._remove_single(process)

    async def _remove_single(self, process: Process) -> None:
        """Free what the process had: usually nothing of it is on disk. A failure is only logged."""
        pages = self.owners.get(process.owner).pages
        if pages is not None and not pages.memory.discard(process):
            await self.try_to_reap(process)  # another call has written pages to it
            return
        self._release(process)
        try:
            mailboxes = self.owners.get(process.owner).mailboxes
            if mailboxes is not None:
                await mailboxes.drop(process)
        except SyscallError as error:
            log.warning("cannot remove the messages of process %d: %s", process.pid, error)

    # --- end --------------------------------------------------------------------------------------
    def interrupt(self, process: Process) -> None:
        """Cancel its call in flight, if any, at the next step."""
        if process.call:
            if process.cancel_wait is not None:
                process.cancel_wait()
            device = self.loader.device(process.model)
            if device is not None:
                device.cancel(process.call)

    async def end(self, process: Process, signal: Signal) -> None:
        """End a process by TERM or KILL. Exit code 0 for TERM with no call in flight."""
        code = 128 + SIGNAL_NUMBERS[signal]
        if signal is Signal.TERM and not process.call:
            code = 0
        await self.exit(process, code, signal)

    async def exit(self, process: Process, code: int, reason: str) -> None:
        await self.processes.exit(process, code, reason)
        process.discard |= reason == Signal.KILL
        self.interrupt(process)
        mailboxes = self.owners.get(process.owner).mailboxes
        if mailboxes is not None:
            mailboxes.interrupt(process)
        self.record(process, f"exit {code} {reason}")
        for client in self.clients.of_process(process.pid):
            client.reauthorise()  # a program whose process has ended is allowed nothing
        for oldest in self.processes.surplus(process.owner):
            if oldest.idle.is_set():
                await self.try_to_reap(oldest)

    async def connection_closed(self, connection: int) -> None:
        """End the processes that were to end with this connection."""
        for owner in self.owners.opened():
            if owner.mailboxes is not None:
                owner.mailboxes.requeue(connection)
        for process in self.processes.all():
            if process.connection == connection and not process.keep:
                try:
                    await self.exit(process, HANGUP, "its connection closed")
                except SyscallError as error:
                    log.warning("cannot end process %d: %s", process.pid, error)
                else:
                    await self.try_to_reap(process)

    # --- remove -----------------------------------------------------------------------------------
    async def remove_of(self, owner: str) -> None:
        """End and remove the processes of a removed user: the name may be given to another one."""
        with CancelScope(shield=True):
            for process in self.processes.all():
                if process.owner == owner:
                    await self.exit(process, HANGUP, "its user was removed")
                    await self.try_to_reap(process)

    async def try_to_reap(self, process: Process) -> None:
        """Reap a process that no call waits for; a failure is only logged."""
        try:
            await self.reap(process)
        except SyscallError as error:
            log.warning("cannot remove ended process %d: %s", process.pid, error)

    async def reap(self, process: Process) -> None:
        """Free the resources of an ended process: its row, its pages and its contexts. EIO."""
        await process.idle.wait()
        async with self.owners.use(process.owner) as owner:
            await self._reap(process, owner)

    async def _reap(self, process: Process, owner: Owner) -> None:
        memory = owner.memory  # raises EIO if unreadable, before anything changes
        self._release(process)
        if owner.mailboxes is not None:
            await owner.mailboxes.drop(process)
        table = memory.tables.get(process.pid)
        pages = sum(one.count for one in table.ranges) if table is not None else 0
        spaces = await drop(memory, process)
        await self.processes.reap(process)
        if pages:
            await owner.vectors.remove(spaces)
            await memory.count_waiting()
            owner.sweeper.dirty(pages)

    def _release(self, process: Process) -> None:
        """Free what an ended process has in engines and in memory, except its pages."""
        device = self.loader.device(process.model)
        if device is not None:
            device.forget(process.pid)
        process.reaped = True
        self.faults.forget(process.pid)
        self.policy.forget(process.pid)
