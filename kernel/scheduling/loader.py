"""Devices: mounted on demand, loaded, and unloaded when they are not used.

`Loader` has the mounted devices. A device is unloaded after it was unused for a while, or earlier
when another one needs its memory: the least recently used first, never one that is pinned or in
use. A call enters `use` as soon as it has a device, so that the device is not unloaded during the
call. Event-driven: one timer for each unused device. `Mounts` mounts the device of a model.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio

from ..abi import limits
from ..abi.errors import DeviceFault, Errno, SyscallError
from ..abi.values import Progress
from ..driver import Driver, Engine, Facts, Option
from ..process.table import Process
from ..storage.journal import Entry, Journal
from ..supervisor import Supervisor
from .device import Device, Report
from .images import Image, ImageRegistry
from .quarantine import Quarantine
from .requantise import Requantiser, TuneSetting
from .work import Mounting, Work

log = logging.getLogger(__name__)
LoadReport = Callable[[Progress], None] | None  # called with the progress of a load


class Loader:
    """Every device, by the image it runs."""

    def __init__(self, quarantine: Quarantine, jobs: Supervisor, unload_s: float) -> None:
        self.devices: dict[str, Device] = {}
        self.quarantine = quarantine
        self._jobs = jobs  # for work that outlives the call that started it
        self._unload_s = unload_s  # unload after this time without use; 0: never
        self._timers: dict[Device, asyncio.TimerHandle] = {}
        self._in_flight: dict[int, tuple[Device, Work]] = {}  # by call, until its answer is stored
        self._stopping: dict[Device, asyncio.Event] = {}  # unmounted, their memory not free yet

    def device(self, image: str) -> Device | None:
        return self.devices.get(image)

    def each(self) -> list[Device]:
        return list(self.devices.values())

    def computing(self) -> bool:
        """Whether a call uses a device now."""
        return any(device.users for device in self.devices.values())

    def mount(self, mounting: Mounting, engine: Engine, report: Report) -> Device:
        """Start to load a device. Cancelling a call that waits for it does not stop the load."""
        device = Device(mounting, engine, self.quarantine, report)
        self.devices[mounting.name] = device
        self._jobs.once("load", self._load, device, failed=partial(self._load_failed, device))
        return device

    def apply_quarantine(self) -> None:
        """Apply the current marks to the waiting calls of every device."""
        for device in self.each():
            device.apply_quarantine()

    @contextmanager
    def use(self, device: Device) -> Generator[None]:
        """Keep a device from being unloaded automatically."""
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
        """Register a call from before it is submitted until its answer is stored, for `purge`."""
        self._in_flight[work.claim.call] = device, work
        try:
            yield
        finally:
            del self._in_flight[work.claim.call]

    def purge(self, process: Process, pages: Collection[int]) -> None:
        """Pages of a process were forgotten: withdraw calls and contexts that contain them."""
        for device, work in list(self._in_flight.values()):
            if work.process.owner == process.owner and not work.pages.isdisjoint(pages):
                device.withdraw(work)
        for device in self.each():
            device.purge(process.domain)

    async def wait_marks_written(self) -> None:
        """Return when all quarantine marks are on disk, or their write has failed."""
        try:
            await self.quarantine.wait_written()
        except SyscallError as error:
            log.warning("cannot write quarantine marks: %s", error)

    def pin(self, device: Device) -> None:
        """Never unload the device automatically."""
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
            hint = "`llmasos devices` lists the mounted devices"
            raise SyscallError(Errno.ENOENT, f"{name} is not mounted", hint)
        await self._stop(self._remove(device, f"{name} was unmounted"))

    # --- automatic unloading --------------------------------------------------------------------
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
        """Unload an unused device; the next call that needs it mounts it again."""
        self._jobs.once("unload", self._stop, self._remove(device, why))

    def _remove(self, device: Device, why: str) -> Device:
        """Take a device off the table of mounted devices; `_stop` must follow."""
        self._disarm(device)
        del self.devices[device.name]
        self._stopping[device] = asyncio.Event()
        device.close(why, "unmounted")
        return device

    async def _stop(self, device: Device) -> None:
        try:
            with anyio.CancelScope(shield=True):
                await device.engine.stop()
        finally:
            self._stopping.pop(device).set()

    # --- loading --------------------------------------------------------------------------------
    async def _load(self, device: Device) -> None:
        """Start its engine; remove the device if that fails or it was unmounted meanwhile."""
        refusal = await device.load()
        while refusal is not None and refusal.errno is Errno.ENOMEM:
            if not await self._free_memory(device):
                break
            refusal = await device.load()
        if self.devices.get(device.name) is not device:
            await device.engine.stop()
        elif refusal is None:
            self._arm(device)
        else:
            del self.devices[device.name]
            device.fail(self._with_mounted(refusal))
            await device.engine.stop()

    def _load_failed(self, device: Device) -> None:
        """An unexpected exception ended the load: calls that wait for the device get an error."""
        if self.devices.get(device.name) is device:
            del self.devices[device.name]
        if device.state == "loading":
            message = f"loading {device.name} failed inside the kernel"
            device.fail(DeviceFault(message, "`llmasos daemon logs` has the traceback"))

    async def _free_memory(self, device: Device) -> bool:
        """Free memory for a device. False when no other device can be unloaded."""
        idle = [d for d in self.each() if d.state == "up" and not d.users and not d.pinned]
        if not self._stopping and idle:
            oldest = min(idle, key=lambda other: other.used)
            self._unload(oldest, f"its memory is needed for {device.name}")
        stopping = list(self._stopping.values())
        for stopped in stopping:
            await stopped.wait()
        return bool(stopping) and self.devices.get(device.name) is device

    def _with_mounted(self, refusal: SyscallError) -> SyscallError:
        """Add to ENOMEM the devices that use the memory."""
        mounted = [f"{d.name} ({'pinned' if d.pinned else 'in use'})" for d in self.each()]
        if refusal.errno is not Errno.ENOMEM or not mounted:
            return refusal
        message = f"{refusal.message}; mounted and not unloadable: {', '.join(mounted)}"
        return SyscallError(Errno.ENOMEM, message, f"{refusal.hint}, or `llmasos unmount` one")


@dataclass(frozen=True, slots=True)
class Mounts:
    """The device of a model, mounted on demand with the options of its last mount."""

    images: ImageRegistry
    loader: Loader
    requantiser: Requantiser
    drivers: Mapping[str, Driver]
    defaults: Mapping[str, Mapping[str, Option]]  # mount options, by driver
    logs: Path  # directory for the output of drivers' processes
    measured: Path | None  # directory of what drivers measure; None: nothing is measured
    journal: Journal

    @asynccontextmanager
    async def using(
        self, model: str, report: LoadReport = None
    ) -> AsyncGenerator[tuple[Device, Facts]]:
        """A model's device, mounted on demand, up, and not unloaded during the block.

        EIO, ENOMEM or ENOENT when that fails; `report` is called with the progress of a load.
        """
        device = await self._device(model, report)
        with self.loader.use(device):
            yield device, await device.wait_up(report)

    async def load(self, model: str) -> Device:
        """As `using`, but not protected: a mount with other options may replace the device."""
        device = await self._device(model, None)
        await device.wait_up(None)
        return device

    async def embed(self, model: str, texts: Sequence[str]) -> Sequence[bytes]:
        """Vectors by an image that is configured as embedder. ENOENT, ENOTSUP, E2BIG, EIO."""
        async with self.using(model) as (device, _):
            return (await device.engine.embed(texts)).vectors

    async def mount(
        self, image: Image, options: Mapping[str, Option], *, pin: bool, report: LoadReport = None
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
            self.drivers[image.driver].check(self._chosen(image, options))
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

    def tune_setting(self, image: Image) -> TuneSetting:
        """What is tuned for: the next mount of the image."""
        options = self._chosen(image, self.images.mount(image.name).options)
        return TuneSetting(self.log_of(image), options, self.measured)

    def log_of(self, image: Image) -> Path:
        """The log file for the output of its driver's processes."""
        self.logs.mkdir(mode=0o700, exist_ok=True)
        return self.logs / f"{image.name}.log"

    async def _device(self, model: str, report: LoadReport) -> Device:
        """The mounted device, or a new mount with the options of the last one."""
        device = self.loader.device(model)
        if device is not None:
            return device
        image = self.images.get(model)  # the model may be an alias
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
        engine = driver.engine(image.file, chosen, self.log_of(image), self.measured)
        remark = self.requantiser.failures.get(image.name, "")
        mounting = Mounting(image.name, image.driver, image.version(), pin, remark, chosen)
        return self.loader.mount(mounting, engine, self._record)

    def _record(self, device: Device, state: str, note: str) -> None:
        """Write a change of a device's state to the journal."""
        errno = Errno.EIO if state in ("restarting", "failed") else 0
        path = f"/dev/image/{device.name}"
        first = note.splitlines()[0] if note else ""
        self.journal.append(
            Entry("device", object=path, errno=errno, note=f"{state} {first}".strip())
        )
