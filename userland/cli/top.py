"""`llmasos top`: prints processes and devices periodically; a terminal is redrawn in place.

Rates change without events, so this verb samples them; nothing else in the command polls.
"""

import sys
import time
from argparse import Namespace
from contextlib import suppress

from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient

from . import exits
from .connection import connect
from .devices import show_devices
from .processes import processes, show_loads
from .show import iso, print_json, size, span

_CLEAR = "\x1b[H\x1b[2J"


def top(arguments: Namespace) -> int:
    with connect() as client, suppress(KeyboardInterrupt):
        while True:
            _sample(client, arguments)
            if arguments.once:
                break
            time.sleep(arguments.interval)
    return exits.OK


def _sample(client: BlockingClient, arguments: Namespace) -> None:
    stat = client.call("stat", v.Nothing(), v.Stat)
    found = processes(client)
    devices = client.call("devices", v.Nothing(), v.Devices).devices
    if arguments.json:
        now = iso(time.time())
        print_json({"time": now, "stat": stat, "processes": found, "devices": devices})
        return
    if sys.stdout.isatty() and not arguments.once:
        sys.stdout.write(_CLEAR)
    print(
        f"llmasos {stat.system}  up {span(stat.uptime_s)}  {stat.processes} processes, "
        f"{stat.running} running, {stat.waiting} waiting\n"
        f"{stat.calls} calls, {stat.refused} refused, "
        f"gate {stat.gate_us:.0f} us  kernel {size(stat.rss_bytes)}"
    )
    print()
    show_devices(devices)
    print()
    show_loads(found)
    sys.stdout.flush()
