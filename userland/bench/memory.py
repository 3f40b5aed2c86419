"""Resident memory: of the kernel with a hundred idle processes and with ten thousand pages, and of
the engines.

Each process has a system prompt and therefore a page in its owner's database. Engines and the
recall process are separate processes and are not counted; the size of the latter is reported beside
the figure. An engine is measured with all slots full, and, by its bare loop, over steps of random
shapes.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient

from . import bare
from .engine import EngineSide, side
from .figures import Bar, MissingFigure, Suite, Take
from .peers import Absent
from .rig import ENGINES, MODEL, RigError, daemon, image, tuned
from .syscall import load

PROCESSES, PAGES, WRITERS = 100, 10_000, 16
SLOTS, WINDOW, STEPS = 16, 2048, 20_000
_LEFT_TOKENS = 8  # of a window that a prompt does not fill
BARS = (
    Bar("memory.kernel_100_idle_mb", "resident memory of the kernel with 100 idle processes", "MB",
        "lower", 150),
    Bar("memory.kernel_10k_pages_mb", f"its growth from 0 to {PAGES:,} pages", "MB", "lower", 60),
    Bar("memory.engine_16x2048_mb", f"resident memory of the OpenVINO engine with {SLOTS} full "
        f"windows of {WINDOW:,} tokens, over that of llama.cpp's", "x", "lower", 1.1),
    Bar("memory.engine_growth_mb", f"its growth over {STEPS:,} steps of random shapes", "MB",
        "lower", 40),
)  # fmt: skip


def resident_mb(os_pid: int) -> float:
    lines = Path(f"/proc/{os_pid}/status").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return round(kib * 1024 / 1e6, 1)


def spawn(client: BlockingClient, index: int) -> None:
    words = f"You are assistant number {index}. Answer briefly."
    client.call("spawn", v.Spawn(MODEL, app="bench", system=words), v.Spawned)


def child_mb(os_pid: int, name: str) -> float:
    """Resident memory of the daemon's child with this name in its command; 0: there is none."""
    for path in Path(f"/proc/{os_pid}/task").glob("*/children"):
        for pid in path.read_text().split():
            if name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                return resident_mb(int(pid))
    return 0.0


def full_mb(one: EngineSide, window: int, slots: int) -> float:
    """Resident memory of an engine whose slots are full."""
    count = window - _LEFT_TOKENS
    texts = [one.writer.private(0, index, count) for index in range(slots)]
    one.rate(texts, count, _LEFT_TOKENS - 1)
    size = child_mb(one.rig.os_pid, f"drivers.{one.engine}.child")
    if not size:
        raise RigError(f"the daemon has no process for {ENGINES[one.engine]}")
    return size


def engines_mb(slots: int, window: int) -> dict[str, float]:
    """Of both engines. Absent when one of them cannot be mounted."""
    found = dict[str, float]()
    for engine in ENGINES:
        with ExitStack() as stack:
            one = stack.enter_context(side(engine, slots=slots, window=window))
            found[engine] = full_mb(one, window, slots)
    return found


def engine_figures(tiny: bool) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """The figures of the engines and what they are made of. Absent without OpenVINO."""
    slots, window, steps = (2, 256, 20) if tiny else (SLOTS, WINDOW, STEPS)
    sizes = engines_mb(slots, window)
    with tuned() as (_, client):
        found = image(client)
    path = found.tuned or found.path
    [grown] = bare.loop(path, "--random-steps", steps, engine="openvino")
    values = {
        "memory.engine_16x2048_mb": [round(sizes["openvino"] / sizes["llama"], 4)],
        "memory.engine_growth_mb": [round(grown["after_mb"] - grown["before_mb"], 1)],
    }
    return values, {"full_engines_mb": sizes, "random_shapes": grown}


def grown_mb(pages: int) -> tuple[float, float]:
    """Growth by so many pages, and the size of the recall process."""
    with daemon(mount=False) as rig, rig.client() as client:
        pid = client.call("spawn", v.Spawn("echo", app="bench"), v.Spawned).pid
        first = "The first page brings what every page needs."
        client.call("write_mem", v.WriteMem(pid, first), v.Written)
        before = resident_mb(rig.os_pid)
        seconds = min(1.0, pages / 500)
        while pages > 0:
            rate = load(rig, WRITERS, seconds, "write", *[pid] * WRITERS)["rate"]
            pages -= max(1, round(rate * seconds))
        return round(resident_mb(rig.os_pid) - before, 1), child_mb(rig.os_pid, "recall")


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
    facts: dict[str, Any] = {
        "model": digest,
        "processes": count,
        "without_processes_mb": empty,
        "recall_process_mb": [beside for _, beside in grown],
    }
    pages = [growth for growth, _ in grown]
    figures = {"memory.kernel_100_idle_mb": values, "memory.kernel_10k_pages_mb": pages}
    try:
        more, sizes = engine_figures(tiny)
    except Absent as error:
        return Take(figures, facts, [MissingFigure(str(error), "make peers")])
    return Take({**figures, **more}, {**facts, **sizes})


SUITE = Suite("memory", BARS, take)
