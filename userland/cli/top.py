"""`llmasos top`: processes and devices, again and again; on a terminal in one place.

Rates change without events, so this samples; it is the one place that looks at a clock to do so.
"""

import sys
import time
from argparse import Namespace
from contextlib import suppress

from llmasos.kernel import values as v
from llmasos.userland.line import Line

from . import exits
from .devices import show_devices
from .door import connect
from .processes import processes, show_loads
from .show import document, iso, size, span

_CLEAR = "\x1b[H\x1b[2J"


def top(arguments: Namespace) -> int:
    with connect() as line, suppress(KeyboardInterrupt):
        while True:
            _sample(line, arguments)
            if arguments.once:
                break
            time.sleep(arguments.interval)
    return exits.OK


def _sample(line: Line, arguments: Namespace) -> None:
    stat = line.call("stat", v.Nothing(), v.Stat)
    found = processes(line)
    devices = line.call("devices", v.Nothing(), v.Devices).devices
    if arguments.json:
        now = iso(time.time())
        document({"time": now, "stat": stat, "processes": found, "devices": devices})
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
