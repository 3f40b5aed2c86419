"""Images and devices: what is installed, and what is mounted."""

from dataclasses import replace

from .. import values as v
from ..device import Device
from ..errors import Errno, SyscallError
from ..image import Image
from ..machine import Machine
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
    return await m.images.info(await m.images.add(request))


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
        hardware = await m.hardware(look=request.hardware)
    return v.Devices([device.info() for device in m.scheduler.each()], hardware)


async def mount(m: Machine, call: Call, request: v.Mount) -> v.DeviceInfo:
    image = m.images.get(request.image)
    device = m.scheduler.device(image.name)
    if device is not None:
        return await _pin(m, device, request)
    device = await m.mount(image, request.options, pin=request.pin, tell=call.send)
    try:
        await m.images.remember(replace(request, image=image.name))
    except SyscallError:
        await m.scheduler.unmount(image.name)
        raise
    return device.info()


async def _pin(m: Machine, device: Device, request: v.Mount) -> v.DeviceInfo:
    """What is mounted already can still be pinned."""
    name = device.name
    if request.options or not request.pin:
        hint = f"`llmasos unmount {name}` first: its processes keep their pages"
        raise SyscallError(Errno.EBUSY, f"{name} is mounted already", hint)
    await m.images.remember(replace(m.images.mount(name), pin=True))
    m.scheduler.pin(device)
    return device.info()


async def unmount(m: Machine, call: Call, request: v.Unmount) -> v.Nothing:
    name = m.images.canonical(request.image)
    unloaded = m.scheduler.device(name) is None and name in m.images.mounts()
    if not unloaded:
        await m.scheduler.unmount(name)
    await m.images.forget(name)
    return v.Nothing()


async def image_tune(m: Machine, call: Call, request: v.ImageTune) -> v.Tuned:
    image = m.images.get(request.name)
    if not request.off:
        return await m.tuner.tune(image, request, m.log_of(image), call.send)
    if m.scheduler.device(image.name) is not None:
        hint = f"`llmasos unmount {image.name}` first"
        raise SyscallError(Errno.EBUSY, f"{image.name} is mounted", hint)
    return await m.tuner.untune(image)
