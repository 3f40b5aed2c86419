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
    _show_recall(found.recall)
    for device in found.devices:
        for text in filter(None, (device.placement, device.note, _again(device.retry_s))):
            note(f"{device.name}: {text}")
    for text in dict.fromkeys(one.note for one in found.hardware if one.note):
        names = ", ".join(one.name for one in found.hardware if one.note == text)
        note(f"{names}: {text}")
    return exits.OK


def _show_recall(recall: v.RecallInfo | None) -> None:
    """On a line of its own: it computes nothing for calls."""
    if recall is None:
        return
    words = [f"{v.RECALL}: {recall.state}"]
    words += [f"pid {recall.os_pid}"] * bool(recall.os_pid)
    words += [f"{recall.restarts} restarts"] * bool(recall.restarts)
    note(", ".join([*words, *filter(None, (recall.note, _again(recall.retry_s)))]))


def _again(retry_s: float) -> str:
    return f"started again in {retry_s:.0f} s" if retry_s else ""


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


def restart(arguments: Namespace) -> int:
    with connect() as line:
        again = line.call("restart", v.Restart(arguments.device), v.Restarted)
    if arguments.json:
        document(again)
    else:
        where = f", pid {again.os_pid}" if again.os_pid else ""
        note(f"{again.device} is up again{where}")
    return exits.OK


def unmount(arguments: Namespace) -> int:
    with connect() as line:
        line.call("unmount", v.Unmount(arguments.image), v.Nothing)
    if arguments.json:
        document({"image": arguments.image, "mounted": False})
    return exits.OK
