"""Verbs about devices: what computes, what is mounted there, and why there."""

from argparse import Namespace
from collections.abc import Sequence

from llmasos.kernel import values as v

from . import exits, options
from .door import connect
from .progress import follow
from .show import document, note, size, table


def devices(arguments: Namespace) -> int:
    with connect() as line:
        found = line.call("devices", v.Look(hardware=True), v.Devices)
    if arguments.json:
        document(found)
        return exits.OK
    _show_hardware(found.hardware)
    print()
    show_devices(found.devices)
    for device in found.devices:
        for text in filter(None, (device.placement, device.note)):
            note(f"{device.name}: {text}")
    for text in dict.fromkeys(one.note for one in found.hardware if one.note):
        names = ", ".join(one.name for one in found.hardware if one.note == text)
        note(f"{names}: {text}")
    return exits.OK


def _show_hardware(found: Sequence[v.Hardware]) -> None:
    head = ("HARDWARE", "KIND", "MEMORY", "USABLE", "DESCRIPTION")
    rows = [
        (h.name, h.kind, size(h.memory) if h.memory else "-", "yes" if h.usable else "no",
         h.description)
        for h in found
    ]  # fmt: skip
    table(head, rows)


def show_devices(found: Sequence[v.DeviceInfo]) -> None:
    head = ("DEVICE", "DRIVER", "STATE", "ON", "BUSY", "WAITING", "WINDOW", "TOK/S", "OS PID",
            "RESTARTS")  # fmt: skip
    rows = [
        (d.name, d.driver, _state(d), d.on or "-", f"{d.busy}/{d.slots}", d.waiting,
         d.window or "-", f"{d.rate:.1f}", d.os_pid or "-", d.restarts)
        for d in found
    ]  # fmt: skip
    table(head, rows)


def _state(device: v.DeviceInfo) -> str:
    loading = f" {device.loaded:.0%}" if device.state == "loading" else ""
    marks = [", pinned"] * device.pinned + [", deterministic"] * device.deterministic
    return f"{device.state}{loading}{''.join(marks)}"


def mount(arguments: Namespace) -> int:
    chosen = options.read(arguments.options)
    if arguments.deterministic:
        chosen["deterministic"] = True
    request = v.Mount(arguments.image, chosen, arguments.pin)
    with connect() as line:
        device = follow(line.stream("mount", request, v.Progress, v.DeviceInfo))
    if arguments.json:
        document(device)
    else:
        show_devices([device])
    return exits.OK


def unmount(arguments: Namespace) -> int:
    with connect() as line:
        line.call("unmount", v.Unmount(arguments.image), v.Nothing)
    if arguments.json:
        document({"image": arguments.image, "mounted": False})
    return exits.OK
