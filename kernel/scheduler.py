"""Every mounted device, by the image it runs: which are loaded, which stay, which go.

A device is loaded at need, goes when nobody has used it for a while, and goes earlier when another
one needs its memory: the least recently used first, never one that is pinned or in use. Who wants a
device `uses` it from the moment it is found, so that none is unloaded under a call. Event-driven:
one timer for each device that nobody uses.
"""

import asyncio
import logging
import time
from collections.abc import Collection, Generator
from contextlib import contextmanager
from functools import partial

import anyio

from .device import Device, Tell
from .driver import Engine
from .errors import DeviceFault, Errno, SyscallError
from .process import Process
from .supervisor import Supervisor
from .suspect import Suspects
from .work import Mounting, Work

log = logging.getLogger(__name__)


class Scheduler:
    """Every device, by the image it runs."""

    def __init__(self, suspects: Suspects, jobs: Supervisor, unload_s: float) -> None:
        self.devices: dict[str, Device] = {}
        self.suspects = suspects
        self._jobs = jobs  # what outlives the call that began it
        self._unload_s = unload_s  # without a user; 0: devices stay
        self._timers: dict[Device, asyncio.TimerHandle] = {}
        self._flights: dict[int, tuple[Device, Work]] = {}  # until they are kept; by call
        self._leaving: dict[Device, asyncio.Event] = {}  # unmounted, their memory not free yet

    def device(self, image: str) -> Device | None:
        return self.devices.get(image)

    def each(self) -> list[Device]:
        return list(self.devices.values())

    def computing(self) -> bool:
        """Whether a call uses a device now."""
        return any(device.users for device in self.devices.values())

    def mount(self, what: Mounting, engine: Engine, tell: Tell) -> Device:
        """A device that begins to load, for everybody who waits for it: nobody's cancel ends it."""
        device = self.devices[what.name] = Device(what, engine, self.suspects, tell)
        self._jobs.once("load", self._load, device, failed=partial(self._load_failed, device))
        return device

    def judge(self) -> None:
        """What is held against calls has changed."""
        for device in self.each():
            device.judge()

    @contextmanager
    def use(self, device: Device) -> Generator[None]:
        """While it is used it is not unloaded by itself."""
        device.users += 1
        self._disarm(device)
        try:
            yield
        finally:
            device.users -= 1
            device.used = time.monotonic()
            self._arm(device)

    @contextmanager
    def flight(self, device: Device, work: Work) -> Generator[None]:
        """From before it is submitted until its answer is kept: so that `purge` can stop it."""
        self._flights[work.claim.call] = device, work
        try:
            yield
        finally:
            del self._flights[work.claim.call]

    def purge(self, process: Process, pages: Collection[int]) -> None:
        """Pages that a process has were forgotten: so are calls and contexts that hold them."""
        for device, work in list(self._flights.values()):
            if work.process.owner == process.owner and not work.pages.isdisjoint(pages):
                device.withdraw(work)
        for device in self.each():
            device.purge(process.domain)

    async def marked(self) -> None:
        """Return when it is on disk which calls may have killed an engine, or cannot be."""
        try:
            await self.suspects.settle()
        except SyscallError as error:
            log.warning("suspects were not written down: %s", error)

    def pin(self, device: Device) -> None:
        """Never unload it by itself."""
        device.pinned = True
        self._disarm(device)

    def check_unused(self, device: Device) -> None:
        """EBUSY while calls use a device."""
        if device.users:
            used = f"{device.users} calls use it" if device.users > 1 else "a call uses it"
            raise SyscallError(
                Errno.EBUSY, f"{device.name} is mounted with other options, and {used}",
                f"`llmasos unmount {device.name}` ends its calls; its processes keep their pages",
            )  # fmt: skip

    async def unmount(self, name: str) -> None:
        device = self.devices.get(name)
        if device is None:
            words = f"{name} is not mounted"
            raise SyscallError(Errno.ENOENT, words, "`llmasos devices` lists what is")
        await self._stop(self._take(device, f"{name} was unmounted"))

    # --- what goes by itself --------------------------------------------------------------------
    def _arm(self, device: Device) -> None:
        loaded = device.state in ("up", "restarting") and self.devices.get(device.name) is device
        if self._unload_s and loaded and not device.users and not device.pinned:
            why = f"no call for {self._unload_s:g} s"
            loop = asyncio.get_running_loop()
            self._timers[device] = loop.call_later(self._unload_s, self._unload, device, why)

    def _disarm(self, device: Device) -> None:
        timer = self._timers.pop(device, None)
        if timer is not None:
            timer.cancel()

    def _unload(self, device: Device, why: str) -> None:
        """Nobody can be waiting for it; who asks from now on mounts it anew."""
        self._jobs.once("unload", self._stop, self._take(device, why))

    def _take(self, device: Device, why: str) -> Device:
        """Off the table."""
        self._disarm(device)
        del self.devices[device.name]
        self._leaving[device] = asyncio.Event()
        device.close(why, "unmounted")
        return device

    async def _stop(self, device: Device) -> None:
        try:
            with anyio.CancelScope(shield=True):
                await device.engine.stop()
        finally:
            self._leaving.pop(device).set()

    # --- what comes -----------------------------------------------------------------------------
    async def _load(self, device: Device) -> None:
        """Start its engine; a device that failed, or was unmounted meanwhile, does not stay."""
        refusal = await device.load()
        while refusal is not None and refusal.errno is Errno.ENOMEM and await self._room(device):
            refusal = await device.load()
        if self.devices.get(device.name) is not device:
            await device.engine.stop()
        elif refusal is None:
            self._arm(device)
        else:
            del self.devices[device.name]
            device.fail(self._explained(refusal))
            await device.engine.stop()

    def _load_failed(self, device: Device) -> None:
        """In an unforeseen way: whoever waits for it gets an error."""
        if self.devices.get(device.name) is device:
            del self.devices[device.name]
        if device.state == "loading":
            message = f"loading {device.name} failed inside the kernel"
            device.fail(DeviceFault(message, "`llmasos daemon logs` has the traceback"))

    async def _room(self, device: Device) -> bool:
        """Free memory for a device. False when nothing more can go."""
        idle = [d for d in self.each() if d.state == "up" and not d.users and not d.pinned]
        if not self._leaving and idle:
            oldest = min(idle, key=lambda other: other.used)
            self._unload(oldest, f"its memory is needed for {device.name}")
        leaving = list(self._leaving.values())
        for gone in leaving:
            await gone.wait()
        return bool(leaving) and self.devices.get(device.name) is device

    def _explained(self, refusal: SyscallError) -> SyscallError:
        """ENOMEM says who has the memory."""
        held = [f"{d.name} ({'pinned' if d.pinned else 'in use'})" for d in self.each()]
        if refusal.errno is not Errno.ENOMEM or not held:
            return refusal
        words = f"{refusal.message}; mounted and not to be unloaded: {', '.join(held)}"
        return SyscallError(Errno.ENOMEM, words, f"{refusal.hint}, or `llmasos unmount` one")
