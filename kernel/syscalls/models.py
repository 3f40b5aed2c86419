"""Images and devices: what is installed, and what is mounted."""

import json

from .. import values as v
from ..errors import Errno, SyscallError
from ..machine import Machine
from .call import Call


async def images(m: Machine, call: Call, request: v.Nothing) -> v.Images:
    found: list[v.ImageInfo] = []
    for image in m.images.all():
        try:
            found.append(await m.images.info(image))
        except (SyscallError, OSError) as error:
            found.append(m.images.missing(image, str(error)))
    return v.Images(found)


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


def devices(m: Machine, call: Call, request: v.Nothing) -> v.Devices:
    return v.Devices([device.info() for device in m.scheduler.each()])


async def mount(m: Machine, call: Call, request: v.Mount) -> v.DeviceInfo:
    image = m.images.get(request.image)
    if m.scheduler.device(image.name) is not None:
        hint = f"`llmasos unmount {image.name}` first: its processes keep their pages"
        raise SyscallError(Errno.EBUSY, f"{image.name} is mounted already", hint)
    device = await m.mounted(image, request.options)
    try:
        await m.images.remember(image.name, json.dumps(request.options))
    except SyscallError:
        await m.scheduler.unmount(image.name)
        raise
    return device.info()


async def unmount(m: Machine, call: Call, request: v.Unmount) -> v.Nothing:
    name = m.images.canonical(request.image)
    await m.scheduler.unmount(name)
    await m.images.remember(name, None)
    return v.Nothing()


async def image_tune(m: Machine, call: Call, request: v.ImageTune) -> v.Tuned:
    raise SyscallError(Errno.ENOSYS, "image_tune")
