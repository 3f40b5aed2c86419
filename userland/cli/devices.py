"""Verbs about devices: hardware, mounted models and their placement."""

from argparse import Namespace
from collections.abc import Sequence

from llmasos.kernel.abi import values as v

from . import exits, options
from .connection import connect
from .progress import follow
from .show import note, print_json, size, table


def devices(arguments: Namespace) -> int:
    with connect() as client:
        found = client.call("devices", v.ListDevices(hardware=True), v.Devices)
    if arguments.json:
        print_json(found)
        return exits.OK
    _show_hardware(found.hardware)
    print()
    show_devices(found.devices)
    _show_recall(found.recall)
    for device in found.devices:
        for text in filter(None, (device.placement, device.note, _retry(device.retry_s))):
            note(f"{device.name}: {text}")
    for text in dict.fromkeys(one.note for one in found.hardware if one.note):
        names = ", ".join(one.name for one in found.hardware if one.note == text)
        note(f"{names}: {text}")
    return exits.OK


def _show_recall(recall: v.RecallInfo | None) -> None:
    """Print the recall process on a separate line: it is no engine and runs no calls."""
    if recall is None:
        return
    parts = [f"{v.RECALL}: {recall.state}"]
    parts += [f"pid {recall.os_pid}"] * bool(recall.os_pid)
    parts += [f"{recall.restarts} restarts"] * bool(recall.restarts)
    note(", ".join([*parts, *filter(None, (recall.note, _retry(recall.retry_s)))]))


def _retry(retry_s: float) -> str:
    return f"restarts in {retry_s:.0f} s" if retry_s else ""


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
    if arguments.engine:
        chosen["engine"] = arguments.engine
    request = v.Mount(arguments.image, chosen, arguments.pin)
    with connect() as client:
        device = follow(client.stream("mount", request, v.Progress, v.DeviceInfo))
    if arguments.json:
        print_json(device)
    else:
        show_devices([device])
    return exits.OK


def restart(arguments: Namespace) -> int:
    with connect() as client:
        restarted = client.call("restart", v.Restart(arguments.device), v.Restarted)
    if arguments.json:
        print_json(restarted)
    else:
        where = f", pid {restarted.os_pid}" if restarted.os_pid else ""
        note(f"restarted {restarted.device}{where}")
    return exits.OK


def unmount(arguments: Namespace) -> int:
    with connect() as client:
        client.call("unmount", v.Unmount(arguments.image), v.Nothing)
    if arguments.json:
        print_json({"image": arguments.image, "mounted": False})
    return exits.OK
