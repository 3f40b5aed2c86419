"""Verbs about models and the devices that run them."""

import os
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict

from llmasos.kernel import values as v
from llmasos.kernel.errors import Errno, SyscallError

from . import exits
from .door import connect
from .show import card, document, note, size, table


def _images() -> list[v.ImageInfo]:
    with connect(start=True) as line:
        return line.call("images", v.Nothing(), v.Images).images


def list_(arguments: Namespace) -> int:
    images = _images()
    if arguments.json:
        document({"images": images})
        return exits.OK
    rows = [
        (i.name, i.driver, i.architecture, size(i.bytes), i.context, i.licence,
         ", ".join(i.aliases))
        for i in images
    ]  # fmt: skip
    table(("NAME", "DRIVER", "KIND", "SIZE", "CONTEXT", "LICENCE", "ALIASES"), rows)
    return exits.OK


def show(arguments: Namespace) -> int:
    images = _images()
    for image in images:
        if arguments.name == image.name or arguments.name in image.aliases:
            _one(image, arguments)
            return exits.OK
    names = ", ".join(image.name for image in images)
    words = f"there is no model {arguments.name!r}; there are: {names}"
    hint = f"`llmasos models alias {arguments.name} EXISTING` gives one this name"
    raise SyscallError(Errno.ENOENT, words, hint)


def _one(image: v.ImageInfo, arguments: Namespace) -> None:
    if arguments.json:
        document(image)
    else:
        card({**asdict(image), "bytes": size(image.bytes), "aliases": ", ".join(image.aliases)})


def add(arguments: Namespace) -> int:
    # The daemon does not know our directory.
    return _add(v.ImageAdd(arguments.name, path=os.path.abspath(arguments.file)), arguments)


def alias(arguments: Namespace) -> int:
    return _add(v.ImageAdd(arguments.name, image=arguments.image), arguments)


def _add(request: v.ImageAdd, arguments: Namespace) -> int:
    with connect(start=True) as line:
        image = line.call("image_add", request, v.ImageInfo)
    _one(image, arguments)
    return exits.OK


def rm(arguments: Namespace) -> int:
    with connect(start=True) as line:
        line.call("image_remove", v.ImageRemove(arguments.name), v.Nothing)
    if arguments.json:
        document({"name": arguments.name, "removed": True})
    else:
        note(f"{arguments.name} is forgotten; its file stays")
    return exits.OK


# --- devices ----------------------------------------------------------------------------------
def devices(arguments: Namespace) -> int:
    with connect() as line:
        found = line.call("devices", v.Nothing(), v.Devices).devices
    if arguments.json:
        document({"devices": found})
    else:
        show_devices(found)
        for device in found:
            for text in filter(None, (device.placement, device.note)):
                note(f"{device.name}: {text}")
    return exits.OK


def show_devices(found: Sequence[v.DeviceInfo]) -> None:
    head = ("DEVICE", "DRIVER", "STATE", "BUSY", "WAITING", "WINDOW", "TOK/S", "OS PID", "RESTARTS")
    rows = [
        (d.name, d.driver, d.state, f"{d.busy}/{d.slots}", d.waiting, d.window or "-",
         f"{d.rate:.1f}", d.os_pid or "-", d.restarts)
        for d in found
    ]  # fmt: skip
    table(head, rows)


def mount(arguments: Namespace) -> int:
    options = dict(_option(text) for text in arguments.options)
    with connect(start=True) as line:
        device = line.call("mount", v.Mount(arguments.image, options), v.DeviceInfo)
    if arguments.json:
        document(device)
    else:
        show_devices([device])
    return exits.OK


def _option(text: str) -> tuple[str, bool | int | float | str]:
    """KEY=VALUE, the value as the driver wants it. EINVAL without a `=`."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise SyscallError(Errno.EINVAL, f"--set {text}: not KEY=VALUE", "as in --set window=4096")
    if value in ("true", "false"):
        return key, value == "true"
    for kind in (int, float):
        try:
            return key, kind(value)
        except ValueError:
            continue
    return key, value


def unmount(arguments: Namespace) -> int:
    with connect() as line:
        line.call("unmount", v.Unmount(arguments.image), v.Nothing)
    if arguments.json:
        document({"image": arguments.image, "mounted": False})
    return exits.OK
