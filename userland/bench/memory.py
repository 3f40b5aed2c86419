"""What processes cost while they do nothing: the kernel's resident memory with a hundred of them.

Each has a system prompt, so each has a page in its owner's database. The engine is a process of its
own and is not counted.
"""

from pathlib import Path

from llmasos.kernel import values as v
from llmasos.userland.line import Line

from .figures import Bar, Suite, Take
from .rig import MODEL, daemon

PROCESSES = 100
BARS = (
    Bar("memory.kernel_100_idle_mb", "kernel process with 100 idle processes", "MB", "lower", 150),
)


def resident_mb(os_pid: int) -> float:
    lines = Path(f"/proc/{os_pid}/status").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return round(kib * 1024 / 1e6, 1)


def spawn(client: Line, index: int) -> None:
    words = f"You are assistant number {index}. Answer briefly."
    client.call("spawn", v.Spawn(MODEL, app="bench", system=words), v.Spawned)


def take(tiny: bool) -> Take:
    count = 5 if tiny else PROCESSES
    values, empty = list[float](), list[float]()
    digest = ""
    for _ in range(1 if tiny else 3):
        with daemon() as rig, rig.client() as client:
            client.call("tokenize", v.Tokenize(MODEL, "ready"), v.Tokens)
            empty.append(resident_mb(rig.os_pid))
            for index in range(count):
                spawn(client, index)
            values.append(resident_mb(rig.os_pid))
            digest = rig.digest()
    facts = {"model": digest, "processes": count, "without_processes_mb": empty}
    return Take({"memory.kernel_100_idle_mb": values}, facts)


SUITE = Suite("memory", BARS, take)
