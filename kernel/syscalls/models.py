"""Images and devices: installed models, and mounted engines."""

from dataclasses import replace

from anyio import to_thread

from ..abi import values as v
from ..abi.errors import Errno, SyscallError
from ..machine import Machine
from ..scheduling.images import Image
from ..storage.filesystem import Access
from . import files
from .call import CallContext


async def images(m: Machine, call: CallContext, request: v.Nothing) -> v.Images:
    async with m.listings.user_slot(call.caller.owner):  # it reads every file
        return v.Images([await _image(m, image) for image in m.images.all()])


async def _image(m: Machine, image: Image) -> v.ImageInfo:
    try:
        return await m.images.info(image)
    except (SyscallError, OSError) as error:
        return m.images.missing(image, str(error))


async def image_add(m: Machine, call: CallContext, request: v.ImageAdd) -> v.ImageInfo:
    access = files.access(m, call.caller) if request.path else Access()
    claim = files.claim(m, call.caller, request.url, request.options)
    return await m.images.info(await m.images.add(request, access, claim))


async def image_probe(m: Machine, call: CallContext, request: v.ImageProbe) -> v.Endpoint:
    claim = files.claim(m, call.caller, request.url, request.options)
    return v.Endpoint(request.url, await m.images.probe(request, claim))


async def image_remove(m: Machine, call: CallContext, request: v.ImageRemove) -> v.Nothing:
    used = [p.pid for p in m.processes.all() if p.model == request.name and p.ending is None]
    if used or m.loader.device(request.name) is not None:
        who = f"processes {', '.join(map(str, used[:8]))}" if used else "a mount"
        hint = f"`llmasos unmount {request.name}`, and `llmasos rm` the processes first"
        raise SyscallError(Errno.EBUSY, f"{request.name} is in use by {who}", hint)
    await m.images.remove(request.name)
    return v.Nothing()


async def devices(m: Machine, call: CallContext, request: v.ListDevices) -> v.Devices:
    async with m.listings.user_slot(call.caller.owner):  # drivers probe the machine
        hardware = await _hardware(m, request)
    mounted = [device.info() for device in m.loader.each()]
    return v.Devices(mounted, hardware, m.recall.info())


async def _hardware(m: Machine, request: v.ListDevices) -> list[v.Hardware]:
    """The hardware that a mounted engine found; otherwise probed by the drivers, if requested."""
    for device in m.loader.each():
        if device.facts is not None and device.facts.hardware:
            return list(device.facts.hardware)
    found: list[v.Hardware] = []
    for name in sorted({image.driver for image in m.images.all()}) if request.hardware else ():
        found += await to_thread.run_sync(m.drivers[name].hardware)
    return found


async def mount(m: Machine, call: CallContext, request: v.Mount) -> v.DeviceInfo:
    image = m.images.get(request.image)
    files.check_secret(m, call.caller, image.url, request.options)
    before = m.loader.device(image.name)
    device = await m.mount(image, request.options, pin=request.pin, report=call.send)
    wanted = replace(request, image=image.name)
    if device is before and not request.options:  # mounted before: keep its stored options
        last = m.images.mount(image.name)
        wanted = replace(last, pin=last.pin or request.pin)
    try:
        await m.images.remember(wanted)
    except SyscallError:
        if device is not before:
            await m.loader.unmount(image.name)
        raise
    return device.info()


async def unmount(m: Machine, call: CallContext, request: v.Unmount) -> v.Nothing:
    name = m.images.canonical(request.image)
    unloaded = m.loader.device(name) is None and name in m.images.mounts()
    if not unloaded:
        await m.loader.unmount(name)
    await m.images.forget(name)
    return v.Nothing()


async def restart(m: Machine, call: CallContext, request: v.Restart) -> v.Restarted:
    if request.device == v.RECALL:
        await m.recall.process.restart()
        recall = m.recall.info()
        return v.Restarted(v.RECALL, recall.os_pid, recall.restarts)
    name = m.images.canonical(request.device)
    device = m.loader.device(name)
    if device is None:
        hint = "`llmasos devices` lists the mounted devices"
        raise SyscallError(Errno.ENOENT, f"{name} is not mounted", hint)
    with m.loader.use(device):
        await device.restart()
        info = device.info()
    return v.Restarted(name, info.os_pid, info.restarts)


async def image_tune(m: Machine, call: CallContext, request: v.ImageTune) -> v.Tuned:
    image = m.images.get(request.name)
    if not request.off:
        return await m.requantiser.tune(image, request, m.log_of(image), call.send)
    if m.loader.device(image.name) is not None:
        hint = f"`llmasos unmount {image.name}` first"
        raise SyscallError(Errno.EBUSY, f"{image.name} is mounted", hint)
    return await m.requantiser.untune(image)
