"""The machine: its parts, and the few changes that touch several of them.

boot.py makes one; the syscalls work on it. What only one part needs stands in that part.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import anyio
from anyio import CancelScope, to_thread

from . import limits
from .backpressure import Loads
from .breath import Breath
from .counters import Counters, Sizes
from .device import Device
from .driver import Driver, Facts, Option
from .errors import Errno, SyscallError
from .identity import Caller
from .image import Image, Images
from .journal import Entry, Journal
from .mailbox import Mailboxes
from .memory.erasing import drop
from .memory.faults import Faults
from .memory.forgetting import Forgotten, forget
from .memory.meaning import Meaning
from .memory.memory import Memory
from .memory.paging import Pager
from .memory.sweeping import Sweeper
from .memory.table import Table
from .policy import Policy
from .process import Process, Processes
from .scheduler import Scheduler
from .store import Store
from .supervisor import Supervisor
from .tuning import Tuner
from .turns import Turns
from .users import Users
from .values import SIGNAL_NUMBERS, Event, Fork, Progress, SettingInfo, Signal
from .watch import Followers, Following
from .work import Mounting

log = logging.getLogger(__name__)
Tell = Callable[[Progress], None] | None  # hears how far a load is
HANGUP = 129  # exit code of a process that ended with its connection


class Client(Protocol):
    """Somebody connected."""

    def revised(self) -> None:
        """Who may do what has changed: what may no longer be ends now."""

    def of(self, process: Process) -> bool:
        """Whether it is a connection of this process's program."""
        ...


def _nothing() -> None:
    return


def _stamp(path: Path) -> str:
    """Another word for another file; a driver says for itself that there is none."""
    try:
        status = path.stat() if path.name else None
    except OSError:
        status = None
    return f"{status.st_size} {status.st_mtime_ns}" if status else ""


@dataclass(slots=True)
class Machine:
    store: Store
    journal: Journal
    events: Followers[Event]
    policy: Policy
    users: Users
    images: Images
    tuner: Tuner
    processes: Processes
    memory: Memory
    meaning: Meaning
    pager: Pager
    sweeper: Sweeper
    summaries: bool  # of what leaves windows
    mail: Mailboxes
    scheduler: Scheduler
    drivers: Mapping[str, Driver]
    defaults: Mapping[str, Mapping[str, Option]]  # mount options, by driver
    owner: str
    private_paths: tuple[Path, ...]  # whose files no caller is given
    private: bool
    system: str  # version
    shared: bool  # other users of the system may connect
    listens: bool  # over TCP
    jobs: Supervisor  # what outlives the call that began it
    last_run: str = ""  # how the run before this one ended
    settings: Sequence[SettingInfo] = ()
    why: str = ""  # this run ends
    started: float = field(default_factory=time.monotonic)
    counters: Counters = field(default_factory=Counters)
    faults: Faults = field(default_factory=Faults)
    sizes: Sizes = field(default_factory=Sizes)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    drain: bool = True  # when stopping: calls in flight get DRAIN_S
    hurry: Callable[[], None] = field(default=_nothing)  # while draining: do not wait for them
    owed: int = 0  # answers to calls of class A and B that are on their way
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # none is
    places: int = limits.USER_CONNECTIONS  # connections of each user but the owner
    following: Following = field(default_factory=Following)
    visitors: Counter[str] = field(default_factory=Counter[str])  # connections, by whose they are
    loads: Loads = field(default_factory=Loads)
    programs: dict[int, Process] = field(default_factory=dict[int, Process])  # by OS pid
    adopts: bool = False  # orphans of programs become its children
    clients: set[Client] = field(default_factory=set[Client])
    changing: anyio.Lock = field(default_factory=anyio.Lock)  # the rules, and who has which role
    readers: Turns = field(  # by user: what reads the journal and the rules
        default_factory=lambda: Turns(limits.USER_JOURNAL_READERS, limits.JOURNAL_READERS)
    )
    listings: Turns = field(default_factory=lambda: Turns(1, limits.FILES))  # of images, by user
    busy: dict[str, anyio.Lock] = field(default_factory=dict[str, anyio.Lock])  # see summarising
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

    def stop(self, why: str, *, drain: bool) -> None:
        """Go down. A second time, or without `drain`, calls in flight are not waited for."""
        self.why = self.why or why
        if self.stopping.is_set() or not drain:
            self.drain = False
            self.hurry()
        self.stopping.set()

    # --- who may do what: no cancel points, or half of a change would be in force ---------------
    async def revise(self, text: str, *, undo: bool = False) -> None:
        """These own rules from now on, on disk first; calls in flight are judged again."""
        own = self.policy.own
        with CancelScope(shield=True):
            if text != await to_thread.run_sync(own.read) or undo:
                await to_thread.run_sync(own.undone if undo else own.write, text)
            await self.policy.reload(text)
            self.journal.append(Entry("policy", note=f"epoch {self.policy.epoch}"))
            await self.review()

    async def reidentify(self) -> None:
        """Users or their roles have changed. Who is out is out at once, rules take a moment."""
        with CancelScope(shield=True):
            await self.review()
            async with self.changing:
                self.policy.members(self.users.roles())
                await self.policy.reload(self.policy.text)  # a file that is being edited can wait
            await self.review()

    async def review(self) -> None:
        """Every connection and every call in flight is judged again."""
        breath = Breath(shield=True)
        for client in list(self.clients):
            if client in self.clients:  # it may have left meanwhile
                client.revised()
            await breath()

    async def evict(self, owner: str) -> None:
        """End whatever is left of a user: the next one of that name is somebody else."""
        with CancelScope(shield=True):
            for process in self.processes.all():
                if process.owner == owner:
                    await self.exit(process, HANGUP, "its user was removed")
                    await self.try_to_reap(process)

    # --- devices --------------------------------------------------------------------------------
    @asynccontextmanager
    async def using(self, model: str, tell: Tell = None) -> AsyncGenerator[tuple[Device, Facts]]:
        """A model's device, mounted at need and up, which stays while it is used.

        EIO, ENOMEM, ENOENT when it cannot be; `tell` hears how far a load is.
        """
        device = await self._at_need(self.images.get(model), tell)
        with self.scheduler.use(device):
            yield device, await device.wait_up(tell)

    async def load(self, model: str) -> Device:
        """As `using`, without a use: a mount with other options may take its place meanwhile."""
        device = await self._at_need(self.images.get(model), None)
        await device.wait_up(None)
        return device

    async def mount(
        self, image: Image, options: Mapping[str, Option], *, pin: bool, tell: Tell = None
    ) -> Device:
        """Mount an image with these options; without any, as it is mounted already.

        A device that nobody uses is mounted anew when its options are others. EBUSY while it is
        used, EINVAL for the options, else as `using`.
        """
        if self.scheduler.device(image.name) is None:
            await self.tuner.prepare(image, self.log_of(image), tell)
        while (device := self.scheduler.device(image.name)) is not None:
            if not options or device.options == self._chosen(image, options):
                break
            self.scheduler.check_unused(device)
            await self.scheduler.unmount(image.name)
        if device is None:
            device = self._begin(image, options, pin=pin)
        elif pin:
            self.scheduler.pin(device)
        with self.scheduler.use(device):
            await device.wait_up(tell)
        return device

    def window(self, model: str) -> int:
        """Tokens of a model's window; while it is not mounted, of one that it would be given."""
        device = self.scheduler.device(model)
        if device is not None and device.facts is not None:
            return device.facts.window
        image = self.images.get(model)
        chosen = image.chosen(self.images.mount(image.name).options)
        usual = limits.REMOTE_WINDOW_TOKENS if image.url else limits.WINDOW_TOKENS
        return int({"window": usual, **self.defaults.get(image.driver, {}), **chosen}["window"])

    async def _at_need(self, image: Image, tell: Tell) -> Device:
        """Mounted, or mounted again as a person mounted it last."""
        if self.scheduler.device(image.name) is None:
            await self.tuner.prepare(image, self.log_of(image), tell)
        device = self.scheduler.device(image.name)
        if device is None:
            mount = self.images.mount(image.name)
            device = self._begin(image, mount.options, pin=mount.pin)
        return device

    def _chosen(self, image: Image, options: Mapping[str, Option]) -> Mapping[str, Option]:
        """The defaults of its driver, the options of the image, and those of a mount."""
        return {**self.defaults.get(image.driver, {}), **image.chosen(options)}

    def _begin(self, image: Image, options: Mapping[str, Option], *, pin: bool) -> Device:
        """A device that begins to load."""
        driver = self.drivers[image.driver]
        chosen = self._chosen(image, options)
        driver.check(chosen)
        file = image.file
        engine = driver.engine(file, chosen, self.log_of(image))
        remark = self.tuner.complaints.get(image.name, "")
        model = f"{image.name} {_stamp(file)}"
        what = Mounting(image.name, image.driver, model, pin, remark, chosen)
        return self.scheduler.mount(what, engine, self._device_tell)

    def log_of(self, image: Image) -> Path:
        """What the processes of its driver print."""
        log = self.store.directory / "engines" / f"{image.name}.log"
        log.parent.mkdir(mode=0o700, exist_ok=True)
        return log

    def _device_tell(self, device: Device, state: str, note: str) -> None:
        errno = Errno.EIO if state in ("restarting", "failed") else 0
        path = f"/dev/image/{device.name}"
        first = note.splitlines()[0] if note else ""
        self.journal.append(
            Entry("device", object=path, errno=errno, note=f"{state} {first}".strip())
        )

    # --- processes ------------------------------------------------------------------------------
    def tell_process(self, process: Process, note: str) -> None:
        who, where, of = process.owner, f"/proc/{process.pid}", process.lineage
        self.journal.append(
            Entry("process", process.pid, who, object=where, note=note, subject=of)
        )  # fmt: skip

    async def fork(self, parent: Process, request: Fork, caller: Caller) -> list[Process]:
        """Children with the parent's committed pages: all of them, or none. EAGAIN."""
        children: list[Process] = []
        with self.processes.reserve(request.count, parent.owner), CancelScope(shield=True):
            await self.processes.pids.ready(request.count)
            children = self.processes.children(parent, request, caller)
            # A crash between the two leaves pages without a process, which recovery erases.
            await self.memory.copy(parent, children)
            try:
                await self.processes.add(children)
            except SyscallError:
                for child in children:
                    await drop(self.memory, child)
                raise
        return children

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
        self.mail.interrupt(process)
        self.tell_process(process, f"exit {code} {reason}")
        for client in [client for client in self.clients if client.of(process)]:
            client.revised()  # a program that is left over may do nothing any more
        for oldest in self.processes.surplus(process.owner):
            if oldest.idle.is_set():
                await self.try_to_reap(oldest)

    async def try_to_reap(self, process: Process) -> None:
        """Reap a process that nobody waits for."""
        try:
            await self.reap(process)
        except SyscallError as error:
            log.warning("process %d stays in the table: %s", process.pid, error)

    async def reap(self, process: Process) -> None:
        """Free what an ended process still holds: its row, its pages, and its contexts. EIO."""
        await process.idle.wait()
        self.memory.database(process.owner)  # it can be read: else nothing changes
        device = self.scheduler.device(process.model)
        if device is not None:
            device.forget(process.pid)
        process.reaped = True
        self.faults.forget(process.pid)
        self.policy.forget(process.pid)
        await self.mail.drop(process)
        table = self.memory.tables.get(process.pid)
        pages = sum(one.count for one in table.ranges) if table is not None else 0
        gone = await drop(self.memory, process)
        await self.processes.reap(process)
        if pages:
            await self.meaning.erased(process.owner, gone, [])
            await self.memory.count_waiting(process.owner)
            self.sweeper.dirty(process.owner, pages)

    # --- pages ----------------------------------------------------------------------------------
    async def forget(self, process: Process, table: Table, numbers: Sequence[int]) -> Forgotten:
        """Erase pages for everybody who has them, and what engines keep of them."""

        def purge(ids: Sequence[int], pids: Sequence[int]) -> None:
            self.scheduler.purge(process, ids)
            for one in self.processes.all():
                if one.pid in pids:
                    one.output.drop()

        done = Forgotten(0, [])
        with CancelScope(shield=True):  # what was begun is ended, whoever hangs up
            done = await forget(self.memory, self.meaning, table, numbers, purge)
        if done.left:
            self.sweeper.dirty(process.owner)
        return done

    async def freed(self, owner: str, spaces: Sequence[int], pages: Sequence[int]) -> None:
        """Stored pages that nobody has any more: indexes are told, and swept later."""
        if spaces or pages:
            await self.meaning.erased(owner, spaces, pages)
            self.sweeper.dirty(owner)

    def summarising(self, device: str) -> anyio.Lock:
        """One summary at a time, on each device."""
        return self.busy.setdefault(device, anyio.Lock())

    async def embed(self, model: str, texts: Sequence[str]) -> Sequence[bytes]:
        """Vectors of an installed model, where it is the embedder. ENOENT, ENOTSUP, E2BIG, EIO."""
        async with self.using(model) as (device, _):
            return (await device.engine.embed(texts)).vectors

    async def hangup(self, connection: int) -> None:
        """A connection closed: the processes that were to end with it do."""
        self.active = time.monotonic()
        self.mail.hangup(connection)
        for process in self.processes.all():
            if process.connection == connection and not process.keep:
                try:
                    await self.exit(process, HANGUP, "its connection closed")
                except SyscallError as error:
                    log.warning("process %d stays: %s", process.pid, error)
                else:
                    await self.try_to_reap(process)
