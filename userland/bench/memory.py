"""The resident memory of the kernel: with a hundred idle processes, with ten thousand pages.

Each process has a system prompt and therefore a page in its owner's database. Engines and the
recall process are separate processes and are not counted; the size of the latter is reported beside
the figure.
"""

from pathlib import Path

from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient

from .figures import Bar, Suite, Take
from .rig import MODEL, daemon
from .syscall import load

PROCESSES, PAGES, WRITERS = 100, 10_000, 16
BARS = (
    Bar("memory.kernel_100_idle_mb", "resident memory of the kernel with 100 idle processes", "MB",
        "lower", 150),
    Bar("memory.kernel_10k_pages_mb", f"its growth from 0 to {PAGES:,} pages", "MB", "lower", 60),
)  # fmt: skip


def resident_mb(os_pid: int) -> float:
    lines = Path(f"/proc/{os_pid}/status").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return round(kib * 1024 / 1e6, 1)


def spawn(client: BlockingClient, index: int) -> None:
    words = f"You are assistant number {index}. Answer briefly."
    client.call("spawn", v.Spawn(MODEL, app="bench", system=words), v.Spawned)


def recall_mb(os_pid: int) -> float:
    """Resident memory of the recall process; 0: there is none."""
    for pid in Path(f"/proc/{os_pid}/task/{os_pid}/children").read_text().split():
        if b"recall" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return resident_mb(int(pid))
    return 0.0


def grown_mb(pages: int) -> tuple[float, float]:
    """Growth by so many pages, and the size of the recall process."""
    with daemon(mount=False) as rig, rig.client() as client:
        pid = client.call("spawn", v.Spawn("echo", app="bench"), v.Spawned).pid
        first = "The first page brings what every page needs."
        client.call("write_mem", v.WriteMem(pid, first), v.Written)
        before = resident_mb(rig.os_pid)
        while pages > 0:
            pages -= round(load(rig, WRITERS, 1.0, "write", *[pid] * WRITERS)["rate"])
        return round(resident_mb(rig.os_pid) - before, 1), recall_mb(rig.os_pid)


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
    grown = [grown_mb(100 if tiny else PAGES) for _ in range(1 if tiny else 3)]
    facts = {
        "model": digest,
        "processes": count,
        "without_processes_mb": empty,
        "recall_process_mb": [beside for _, beside in grown],
    }
    pages = [growth for growth, _ in grown]
    return Take({"memory.kernel_100_idle_mb": values, "memory.kernel_10k_pages_mb": pages}, facts)


SUITE = Suite("memory", BARS, take)
