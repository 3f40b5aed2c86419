"""Images and devices: what is installed, and what is mounted."""

from dataclasses import replace

from anyio import to_thread

from .. import values as v
from ..errors import Errno, SyscallError
from ..filesystem import Access
from ..image import Image
from ..machine import Machine
from . import files
from .call import Call


async def images(m: Machine, call: Call, request: v.Nothing) -> v.Images:
    async with m.listings.turn(call.caller.owner):  # each file is read again
        return v.Images([await _image(m, image) for image in m.images.all()])


async def _image(m: Machine, image: Image) -> v.ImageInfo:
    try:
        return await m.images.info(image)
    except (SyscallError, OSError) as error:
        return m.images.missing(image, str(error))


async def image_add(m: Machine, call: Call, request: v.ImageAdd) -> v.ImageInfo:
    access = files.access(m, call.caller) if request.path else Access()
    claim = files.claim(m, call.caller, request.url, request.options)
    return await m.images.info(await m.images.add(request, access, claim))


async def image_probe(m: Machine, call: Call, request: v.ImageProbe) -> v.Endpoint:
    claim = files.claim(m, call.caller, request.url, request.options)
    return v.Endpoint(request.url, await m.images.probe(request, claim))


async def image_remove(m: Machine, call: Call, request: v.ImageRemove) -> v.Nothing:
    used = [p.pid for p in m.processes.all() if p.model == request.name and p.ending is None]
    if used or m.scheduler.device(request.name) is not None:
        who = f"processes {', '.join(map(str, used[:8]))}" if used else "a mount"
        hint = f"`llmasos unmount {request.name}` and end the processes first"
        raise SyscallError(Errno.EBUSY, f"{request.name} is in use by {who}", hint)
    await m.images.remove(request.name)
    return v.Nothing()


async def devices(m: Machine, call: Call, request: v.Look) -> v.Devices:
    async with m.listings.turn(call.caller.owner):  # drivers look at the machine
        hardware = await _hardware(m, request)
    mounted = [device.info() for device in m.scheduler.each()]
    return v.Devices(mounted, hardware, m.meaning.info())


async def _hardware(m: Machine, request: v.Look) -> list[v.Hardware]:
    """All that computes, as a mounted engine found it; else as the drivers do, if requested."""
    for device in m.scheduler.each():
        if device.facts is not None and device.facts.hardware:
            return list(device.facts.hardware)
    found: list[v.Hardware] = []
    for name in sorted({image.driver for image in m.images.all()}) if request.hardware else ():
        found += await to_thread.run_sync(m.drivers[name].hardware)
    return found


async def mount(m: Machine, call: Call, request: v.Mount) -> v.DeviceInfo:
    image = m.images.get(request.image)
    files.check_secret(m, call.caller, image.url, request.options)
    before = m.scheduler.device(image.name)
    device = await m.mount(image, request.options, pin=request.pin, tell=call.send)
    wanted = replace(request, image=image.name)
    if (
        device is before and not request.options
    ):  # mounted already, in the way it was asked for then
        last = m.images.mount(image.name)
        wanted = replace(last, pin=last.pin or request.pin)
    try:
        await m.images.remember(wanted)
    except SyscallError:
        if device is not before:
            await m.scheduler.unmount(image.name)
        raise
    return device.info()


async def unmount(m: Machine, call: Call, request: v.Unmount) -> v.Nothing:
    name = m.images.canonical(request.image)
    unloaded = m.scheduler.device(name) is None and name in m.images.mounts()
    if not unloaded:
        await m.scheduler.unmount(name)
    await m.images.forget(name)
    return v.Nothing()


async def restart(m: Machine, call: Call, request: v.Restart) -> v.Restarted:
    if request.device == v.RECALL:
        await m.meaning.power.restart()
        recall = m.meaning.info()
        return v.Restarted(v.RECALL, recall.os_pid, recall.restarts)
    name = m.images.canonical(request.device)
    device = m.scheduler.device(name)
    if device is None:
        hint = "`llmasos devices` lists what is"
        raise SyscallError(Errno.ENOENT, f"{name} is not mounted", hint)
    with m.scheduler.use(device):
        await device.restart()
        info = device.info()
    return v.Restarted(name, info.os_pid, info.restarts)


async def image_tune(m: Machine, call: Call, request: v.ImageTune) -> v.Tuned:
    image = m.images.get(request.name)
    if not request.off:
        return await m.tuner.tune(image, request, m.log_of(image), call.send)
    if m.scheduler.device(image.name) is not None:
        hint = f"`llmasos unmount {image.name}` first"
        raise SyscallError(Errno.EBUSY, f"{image.name} is mounted", hint)
    return await m.tuner.untune(image)
