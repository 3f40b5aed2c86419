"""The machine: its parts, and the operations that change several of them.

boot.py creates it; the syscalls use it. What concerns a single part is implemented in that part.
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

from .abi import limits
from .abi.errors import Errno, SyscallError
from .abi.values import SIGNAL_NUMBERS, Event, Fork, Generate, Progress, SettingInfo, Signal
from .access.decisions import Policy
from .access.identity import Caller
from .access.permissions import Permissions
from .access.users import UserTable
from .backpressure import UserLoads
from .counters import Counters, Sizes
from .driver import Driver, Facts, Option
from .memory.erasing import drop
from .memory.faults import Faults
from .memory.forgetting import ForgetResult, forget
from .memory.table import PageTable
from .memory.vector_device import VectorDevice
from .owners.owner import Owner
from .owners.owners import Owners
from .process.table import Process, ProcessTable
from .scheduling.device import Device
from .scheduling.images import Image, ImageRegistry
from .scheduling.loader import Loader
from .scheduling.requantise import Requantiser
from .scheduling.work import Mounting, file_stamp
from .storage.journal import Entry, Journal
from .storage.store import Store
from .storage.threads import FairThreads
from .supervisor import Supervisor
from .watch import Followers, FollowLimits
from .yield_point import YieldPoint

log = logging.getLogger(__name__)
Report = Callable[[Progress], None] | None  # called with the progress of a load
HANGUP = 129  # exit code of a process that ended with its connection: 128 + SIGHUP


class Client(Protocol):
    """A connection."""

    def reauthorise(self) -> None:
        """Permissions have changed: end now what is no longer allowed."""

    def belongs_to(self, process: Process) -> bool:
        """Whether this is a connection of the process's program."""
        ...


class Summariser(Protocol):
    """Summarises the pages that leave windows."""

    def call_begins(self, process: Process) -> None:
        """The process has a call now: a summary of its pages must not compete with it."""

    def call_ended(self, process: Process, evicted: Sequence[int]) -> None:
        """The call has evicted these pages from the window of its process."""

    def pages_forgotten(self, owner: str) -> None:
        """Pages of an owner were erased: no summary may be made of what was read before."""

    def close(self) -> None:
        """The machine shuts down."""


def _nothing() -> None:
    return


@dataclass(slots=True)
class Machine:
    store: Store
    journal: Journal
    events: Followers[Event]
    policy: Policy
    permissions: Permissions
    users: UserTable
    images: ImageRegistry
    requantiser: Requantiser
    processes: ProcessTable
    owners: Owners
    recall: VectorDevice
    loader: Loader
    drivers: Mapping[str, Driver]
    defaults: Mapping[str, Mapping[str, Option]]  # mount options, by driver
    owner: str
    private_paths: tuple[Path, ...]  # files under these are opened for no caller
    private: bool
    system: str  # version
    shared: bool  # other users of the system may connect
    listens: bool  # over TCP
    jobs: Supervisor  # background jobs, which outlive the call that started them
    summaries: Summariser | None = None  # None: pages that leave a window are not summarised
    last_run: str = ""  # how the run before this one ended
    settings: Sequence[SettingInfo] = ()
    stop_reason: str = ""  # why this run ends
    started: float = field(default_factory=time.monotonic)
    counters: Counters = field(default_factory=Counters)
    faults: Faults = field(default_factory=Faults)
    sizes: Sizes = field(default_factory=Sizes)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    drain: bool = True  # when stopping: calls in flight get DRAIN_S
    skip_drain: Callable[[], None] = field(default=_nothing)  # stops the wait for these calls
    pending_replies: int = 0  # to calls of class A and B
    no_pending_replies: asyncio.Event = field(default_factory=asyncio.Event)
    user_connections: int = limits.USER_CONNECTIONS  # limit for each user except the owner
    follow_limits: FollowLimits = field(default_factory=FollowLimits)
    slots: Counter[str] = field(default_factory=Counter[str])  # connections, by their holder
    loads: UserLoads = field(default_factory=UserLoads)
    programs: dict[int, Process] = field(default_factory=dict[int, Process])  # by OS pid
    is_subreaper: bool = False  # it adopts the orphans of programs
    clients: set[Client] = field(default_factory=set[Client])
    policy_lock: anyio.Lock = field(default_factory=anyio.Lock)  # changes of rules and of roles
    readers: FairThreads = field(  # by user: what reads the journal and the rules
        default_factory=lambda: FairThreads(limits.USER_JOURNAL_READERS, limits.JOURNAL_READERS)
    )
    listings: FairThreads = field(  # of images, by user
        default_factory=lambda: FairThreads(1, limits.FILES)
    )
    last_closed: float = field(default_factory=time.monotonic)  # when a connection last closed

    def __post_init__(self) -> None:
        self.no_pending_replies.set()

    def add_pending_replies(self, count: int) -> None:
        """Change the number of pending replies; a negative count subtracts."""
        self.pending_replies += count
        if self.pending_replies:
            self.no_pending_replies.clear()
        else:
            self.no_pending_replies.set()

    def stop(self, reason: str, *, drain: bool) -> None:
        """Shut down. A second call, or one without `drain`, does not wait for calls in flight."""
        self.stop_reason = self.stop_reason or reason
        if self.stopping.is_set() or not drain:
            self.drain = False
            self.skip_drain()
        self.stopping.set()

    # --- permissions: shielded from cancellation, so that no change is applied by half ----------
    async def replace_user_rules(self, text: str, *, undo: bool = False) -> None:
        """Replace the user rules, on disk first; then re-authorise all connections and calls."""
        own = self.policy.user_rules
        with CancelScope(shield=True):
            if text != await to_thread.run_sync(own.read) or undo:
                await to_thread.run_sync(own.restore if undo else own.write, text)
            await self.policy.reload(text)
            self.journal.append(Entry("policy", note=f"epoch {self.policy.epoch}"))
            await self.reauthorise_all()

    async def apply_role_changes(self) -> None:
        """Users or their roles have changed: update the policy, re-authorise everything."""
        with CancelScope(shield=True):
            await self.reauthorise_all()  # removed users are disconnected before the slow rebuild
            async with self.policy_lock:
                self.policy.set_members(self.users.roles())
                await self.policy.reload(self.policy.text)  # a file that is being edited can wait
            await self.reauthorise_all()

    async def reauthorise_all(self) -> None:
        """Check the permissions of every connection and every call in flight again."""
        yield_point = YieldPoint(shield=True)
        for client in list(self.clients):
            if client in self.clients:  # it may have closed meanwhile
                client.reauthorise()
            await yield_point()

    async def remove_processes(self, owner: str) -> None:
        """End and remove the processes of a removed user: the name may be given to another one."""
        with CancelScope(shield=True):
            for process in self.processes.all():
                if process.owner == owner:
                    await self.exit(process, HANGUP, "its user was removed")
                    await self.try_to_reap(process)

    # --- devices --------------------------------------------------------------------------------
    @asynccontextmanager
    async def using(
        self, model: str, report: Report = None
    ) -> AsyncGenerator[tuple[Device, Facts]]:
        """A model's device, mounted on demand, up, and not unloaded during the block.

        EIO, ENOMEM or ENOENT when that fails; `report` is called with the progress of a load.
        """
        device = await self._mount_on_demand(self.images.get(model), report)
        with self.loader.use(device):
            yield device, await device.wait_up(report)

    async def load(self, model: str) -> Device:
        """As `using`, but not protected: a mount with other options may replace the device."""
        device = await self._mount_on_demand(self.images.get(model), None)
        await device.wait_up(None)
        return device

    async def mount(
        self, image: Image, options: Mapping[str, Option], *, pin: bool, report: Report = None
    ) -> Device:
        """Mount an image with these options; without options, keep an existing mount.

        A device with other options is mounted again if no call uses it. EBUSY while it is used,
        EINVAL for the options, otherwise as `using`.
        """
        if self.loader.device(image.name) is None:
            await self.requantiser.prepare(image, self.log_of(image), report)
        while (device := self.loader.device(image.name)) is not None:
            if not options or device.options == self._chosen(image, options):
                break
            self.loader.check_unused(device)
            await self.loader.unmount(image.name)
        if device is None:
            device = self._start(image, options, pin=pin)
        elif pin:
            self.loader.pin(device)
        with self.loader.use(device):
            await device.wait_up(report)
        return device

    def window(self, model: str) -> int:
        """Tokens of a model's window; of the next mount if it is not mounted."""
        device = self.loader.device(model)
        if device is not None and device.facts is not None:
            return device.facts.window
        image = self.images.get(model)
        chosen = image.chosen(self.images.mount(image.name).options)
        usual = limits.REMOTE_WINDOW_TOKENS if image.url else limits.WINDOW_TOKENS
        return int({"window": usual, **self.defaults.get(image.driver, {}), **chosen}["window"])

    async def _mount_on_demand(self, image: Image, report: Report) -> Device:
        """The mounted device, or a new mount with the options of the last one."""
        if self.loader.device(image.name) is None:
            await self.requantiser.prepare(image, self.log_of(image), report)
        device = self.loader.device(image.name)
        if device is None:
            mount = self.images.mount(image.name)
            device = self._start(image, mount.options, pin=mount.pin)
        return device

    def _chosen(self, image: Image, options: Mapping[str, Option]) -> Mapping[str, Option]:
        """Mount options over the image's options over the defaults of its driver."""
        return {**self.defaults.get(image.driver, {}), **image.chosen(options)}

    def _start(self, image: Image, options: Mapping[str, Option], *, pin: bool) -> Device:
        """Start to load a device."""
        driver = self.drivers[image.driver]
        chosen = self._chosen(image, options)
        driver.check(chosen)
        file = image.file
        engine = driver.engine(file, chosen, self.log_of(image))
        remark = self.requantiser.failures.get(image.name, "")
        model = f"{image.name} {file_stamp(file)}"
        mounting = Mounting(image.name, image.driver, model, pin, remark, chosen)
        return self.loader.mount(mounting, engine, self._journal_device)

    def log_of(self, image: Image) -> Path:
        """The log file for the output of its driver's processes."""
        log = self.store.directory / "engines" / f"{image.name}.log"
        log.parent.mkdir(mode=0o700, exist_ok=True)
        return log

    def _journal_device(self, device: Device, state: str, note: str) -> None:
        errno = Errno.EIO if state in ("restarting", "failed") else 0
        path = f"/dev/image/{device.name}"
        first = note.splitlines()[0] if note else ""
        self.journal.append(
            Entry("device", object=path, errno=errno, note=f"{state} {first}".strip())
        )

    # --- processes ------------------------------------------------------------------------------
    def journal_process(self, process: Process, note: str) -> None:
        self.journal.append(Entry(
            "process", process.pid, process.owner, object=f"/proc/{process.pid}", note=note,
            subject=process.lineage,
        ))  # fmt: skip

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
    async def single_process(self, caller: Caller, request: Generate) -> AsyncGenerator[Process]:
        """A process that exists until the end of the block. ENOENT, EAGAIN."""
        image = self.images.get(request.model)
        async with self.processes.single(caller, request, image.name) as process:
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
        self.journal_process(process, f"exit {code} {reason}")
        for client in [client for client in self.clients if client.belongs_to(process)]:
            client.reauthorise()  # a program whose process has ended is allowed nothing
        for oldest in self.processes.surplus(process.owner):
            if oldest.idle.is_set():
                await self.try_to_reap(oldest)

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

    # --- pages ----------------------------------------------------------------------------------
    async def forget(
        self, process: Process, table: PageTable, numbers: Sequence[int]
    ) -> ForgetResult:
        """Erase pages in every process that has them, and the contexts computed from them."""

        def purge(ids: Sequence[int], pids: Sequence[int]) -> None:
            self.loader.purge(process, ids)
            if self.summaries is not None:
                self.summaries.pages_forgotten(process.owner)
            for one in self.processes.all():
                if one.pid in pids:
                    one.output.drop()

        owner, done = self.owners.get(process.owner), ForgetResult(0, [])
        with CancelScope(shield=True):  # completed even if the caller disconnects
            done = await forget(owner.memory, owner.vectors, table, numbers, purge)
        if done.left:
            owner.sweeper.dirty()
        return done

    async def embed(self, model: str, texts: Sequence[str]) -> Sequence[bytes]:
        """Vectors by an image that is configured as embedder. ENOENT, ENOTSUP, E2BIG, EIO."""
        async with self.using(model) as (device, _):
            return (await device.engine.embed(texts)).vectors

    async def connection_closed(self, connection: int) -> None:
        """A connection closed: end the processes that were to end with it."""
        self.last_closed = time.monotonic()
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
