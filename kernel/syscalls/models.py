"""Images and devices: installed models, and mounted engines."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from anyio import to_thread

from ..abi import limits
from ..abi import values as v
from ..abi.errors import Errno, SyscallError
from ..driver import Driver
from ..memory.recall_device import RecallDevice
from ..process.table import ProcessTable
from ..scheduling.images import Image, ImageRegistry
from ..scheduling.loader import Loader, Mounts
from ..scheduling.requantise import Requantiser
from ..storage.filesystem import Access
from ..storage.threads import FairThreads
from .call import CallContext
from .caller_access import CallerAccess


@dataclass(frozen=True, slots=True)
class ModelSyscalls:
    """The handlers, and the parts of the kernel that they use."""

    registry: ImageRegistry
    requantiser: Requantiser
    mounts: Mounts
    loader: Loader
    drivers: Mapping[str, Driver]
    recall: RecallDevice
    processes: ProcessTable
    caller_access: CallerAccess
    listings: FairThreads = field(  # of images and hardware, by user
        default_factory=lambda: FairThreads(1, limits.FILES)
    )

    async def images(self, call: CallContext, request: v.Nothing) -> v.Images:
        async with self.listings.user_slot(call.caller.user):  # it reads every file
            return v.Images([await self._image(image) for image in self.registry.all()])

    async def _image(self, image: Image) -> v.ImageInfo:
        try:
            return await self.registry.info(image)
        except (SyscallError, OSError) as error:
            return self.registry.missing(image, str(error))

    async def image_add(self, call: CallContext, request: v.ImageAdd) -> v.ImageInfo:
        access = self.caller_access.file_access(call.caller) if request.path else Access()
        bind_secret = self.caller_access.secret_binder(call.caller, request.url, request.options)
        image = await self.registry.add(request, call.caller.user, access, bind_secret)
        return await self.registry.info(image)

    async def image_probe(self, call: CallContext, request: v.ImageProbe) -> v.Endpoint:
        bind_secret = self.caller_access.secret_binder(call.caller, request.url, request.options)
        return v.Endpoint(request.url, await self.registry.probe(request, bind_secret))

    async def image_remove(self, call: CallContext, request: v.ImageRemove) -> v.Nothing:
        used = [p.pid for p in self.processes.all() if p.model == request.name and p.ending is None]
        if used or self.loader.device(request.name) is not None:
            who = f"processes {', '.join(map(str, used[:8]))}" if used else "a mount"
            hint = f"`llmasos unmount {request.name}`, and `llmasos rm` the processes first"
            raise SyscallError(Errno.EBUSY, f"{request.name} is in use by {who}", hint)
        if self.requantiser.is_tuning(request.name):
            hint = "wait until it is done, or interrupt `llmasos models tune`"
            raise SyscallError(Errno.EBUSY, f"{request.name} is being tuned", hint)
        await self.registry.remove(request.name)
        return v.Nothing()

    async def devices(self, call: CallContext, request: v.ListDevices) -> v.Devices:
        async with self.listings.user_slot(call.caller.user):  # drivers probe the machine
            hardware = await self._hardware(request)
        mounted = [device.info() for device in self.loader.each()]
        return v.Devices(mounted, hardware, self.recall.info())

    async def _hardware(self, request: v.ListDevices) -> list[v.Hardware]:
        """The hardware that a mounted engine found; else probed by the drivers, if requested."""
        for device in self.loader.each():
            if device.facts is not None and device.facts.hardware:
                return list(device.facts.hardware)
        found: list[v.Hardware] = []
        drivers = {image.driver for image in self.registry.all()} if request.hardware else ()
        for name in sorted(drivers):
            found += await to_thread.run_sync(self.drivers[name].hardware)
        return found

    async def mount(self, call: CallContext, request: v.Mount) -> v.DeviceInfo:
        image = self.registry.get(request.image)
        self.caller_access.check_secret(call.caller, image.url, request.options)
        before = self.loader.device(image.name)
        device = await self.mounts.mount(image, request.options, pin=request.pin, report=call.send)
        wanted = replace(request, image=image.name)
        if device is before and not request.options:  # mounted before: keep its stored options
            last = self.registry.mount(image.name)
            wanted = replace(last, pin=last.pin or request.pin)
        try:
            await self.registry.remember(wanted)
        except SyscallError:
            if device is not before:
                await self.loader.unmount(image.name)
            raise
        return device.info()

    async def unmount(self, call: CallContext, request: v.Unmount) -> v.Nothing:
        name = self.registry.canonical(request.image)
        unloaded = self.loader.device(name) is None and name in self.registry.mounts()
        if not unloaded:
            await self.loader.unmount(name)
        await self.registry.forget(name)
        return v.Nothing()

    async def restart(self, call: CallContext, request: v.Restart) -> v.Restarted:
        if request.device == v.RECALL:
            await self.recall.lifecycle.restart()
            recall = self.recall.info()
            return v.Restarted(v.RECALL, recall.os_pid, recall.restarts)
        name = self.registry.canonical(request.device)
        device = self.loader.device(name)
        if device is None:
            hint = "`llmasos devices` lists the mounted devices"
            raise SyscallError(Errno.ENOENT, f"{name} is not mounted", hint)
        with self.loader.use(device):
            await device.restart()
            info = device.info()
        return v.Restarted(name, info.os_pid, info.restarts)

    async def image_tune(self, call: CallContext, request: v.ImageTune) -> v.Tuned:
        image = self.registry.get(request.name)
        if not request.off:
            setting = self.mounts.tune_setting(image)
            return await self.requantiser.tune(image, request, setting, call.send)
        if self.loader.device(image.name) is not None:
            hint = f"`llmasos unmount {image.name}` first"
            raise SyscallError(Errno.EBUSY, f"{image.name} is mounted", hint)
        return await self.requantiser.untune(image)
