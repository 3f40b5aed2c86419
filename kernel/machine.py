"""The machine: its parts, and the few changes that touch several of them.

boot.py makes one; the syscalls work on it. What only one part needs stands in that part.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from anyio.abc import TaskGroup

from . import limits
from .device import Device
from .driver import Driver, Option
from .errors import Errno, SyscallError
from .image import Image, Images
from .journal import Entry, Journal
from .memory import Memory
from .policy import Policy
from .process import Process, Processes
from .scheduler import Scheduler
from .store import Store
from .values import SIGNAL_NUMBERS, Event, Signal
from .watch import Followers

log = logging.getLogger(__name__)
OS_PID = os.getpid()
HANGUP = 129  # exit code of a process that ended with its connection


@dataclass(slots=True)
class Counters:
    """Since boot."""

    calls: int = 0
    refused: int = 0
    gate_s: float = 0.0
    connections: int = 0  # now
    most: int = limits.CONNECTIONS  # of them, with the descriptors that we have


@dataclass(slots=True)
class Sizes:
    """Figures that cost a look at the disk, at most once a second old."""

    resident: int = 0  # bytes of this process in RAM
    journal: int = 0  # bytes
    at: float = -1.0

    def look(self, journal: Journal) -> None:
        now = time.monotonic()
        if now - self.at >= 1.0 or self.at < 0:
            self.resident, self.journal, self.at = resident_bytes(), journal.bytes, now


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _nothing() -> None:
    return


@dataclass(slots=True)
class Machine:
    store: Store
    journal: Journal
    events: Followers[Event]
    policy: Policy
    images: Images
    processes: Processes
    memory: Memory
    scheduler: Scheduler
    drivers: Mapping[str, Driver]
    defaults: Mapping[str, Mapping[str, Option]]  # mount options, by driver
    owner: str
    private: bool
    system: str  # version
    tasks: TaskGroup  # what outlives the call that began it
    started: float = field(default_factory=time.monotonic)
    counters: Counters = field(default_factory=Counters)
    sizes: Sizes = field(default_factory=Sizes)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    drain: bool = True  # when stopping: calls in flight get DRAIN_S
    hurry: Callable[[], None] = field(default=_nothing)  # while draining: do not wait for them
    owed: int = 0  # answers to calls of class A and B that are on their way
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # none is
    active: float = field(default_factory=time.monotonic)  # when a connection last closed

    def __post_init__(self) -> None:
        self.settled.set()

    def owe(self, answers: int) -> None:
        """So many more answers are on their way, or fewer."""
        self.owed += answers
        if self.owed:
            self.settled.clear()
        else:
            self.settled.set()

    def stop(self, *, drain: bool) -> None:
        """Go down. A second time, or without `drain`, calls in flight are not waited for."""
        if self.stopping.is_set() or not drain:
            self.drain = False
            self.hurry()
        self.stopping.set()

    # --- devices --------------------------------------------------------------------------------
    async def mounted(self, image: Image, options: Mapping[str, Option] | None = None) -> Device:
        """The image's device, mounted at need. EIO, ENOMEM, ENOENT when it cannot be."""
        device = self.scheduler.device(image.name)
        if device is None:
            driver = self.drivers[image.driver]
            chosen = {**self.defaults.get(image.driver, {}), **(options or {})}
            driver.check(chosen)
            log = self.store.directory / "engines" / f"{image.name}.log"
            log.parent.mkdir(mode=0o700, exist_ok=True)
            engine = driver.engine(image.path, chosen, log)
            device = self.scheduler.mount(image.name, image.driver, engine, self._device_tell)
            # Loaded for everybody who waits for it: nobody's cancel ends it.
            self.tasks.start_soon(self.scheduler.load, device)
        await device.wait_up()
        return device

    def _device_tell(self, device: Device, state: str, note: str) -> None:
        errno = Errno.EIO if state in ("restarting", "failed") else 0
        path = f"/dev/image/{device.name}"
        first = note.splitlines()[0] if note else ""
        self.journal.append(
            Entry("device", object=path, errno=errno, note=f"{state} {first}".strip())
        )

    # --- processes ------------------------------------------------------------------------------
    def tell_process(self, process: Process, note: str) -> None:
        self.journal.append(
            Entry("process", process.pid, process.owner, object=f"/proc/{process.pid}", note=note)
        )

    def interrupt(self, process: Process) -> None:
        """End its call in flight, if any, at the next step."""
        if process.call:
            if process.patience is not None:
                process.patience()
            device = self.scheduler.device(process.model)
            if device is not None:
                device.cancel(process.call)

    async def end(self, process: Process, signal: Signal) -> None:
        """TERM or KILL. A process with nothing in flight ends cleanly at TERM."""
        code = 128 + SIGNAL_NUMBERS[signal]
        if signal is Signal.TERM and not process.call:
            code = 0
        await self.exit(process, code, signal)

    async def exit(self, process: Process, code: int, reason: str) -> None:
        await self.processes.exit(process, code, reason)
        process.discard |= reason == Signal.KILL
        self.interrupt(process)
        self.tell_process(process, f"exit {code} {reason}")
        for zombie in self.processes.surplus():
            if zombie.idle.is_set():
                await self.reap(zombie)

    async def reap(self, process: Process) -> None:
        """Free what an ended process still holds: its row and its pages."""
        await process.idle.wait()
        await self.memory.drop(process)
        await self.processes.reap(process)

    async def hangup(self, connection: int) -> None:
        """A connection closed: the processes that were to end with it do."""
        self.active = time.monotonic()
        for process in self.processes.all():
            if process.connection == connection and not process.keep:
                try:
                    await self.exit(process, HANGUP, "its connection closed")
                    await self.reap(process)
                except SyscallError as error:
                    log.warning("process %d stays: %s", process.pid, error)

    # --- after a crash --------------------------------------------------------------------------
    async def recover(self) -> None:
        """Complete what the last run left open, before anybody connects."""
        for begin in self.journal.unfinished():
            done = self.memory.committed(begin.owner, begin.seq)
            self.journal.append(Entry(
                "end", begin.pid, begin.owner, begin.seq, begin.syscall, begin.object,
                0 if done else Errno.EINTR, "recovered" if done else "interrupted by a restart",
            ))  # fmt: skip
        for process in self.processes.all():
            if not process.keep:
                await self.processes.exit(process, HANGUP, "restart")
                await self.reap(process)
        alive = {process.pid for process in self.processes.all()}
        for owner, pid in self.memory.orphans(alive):
            await self.memory.erase(owner, pid)
