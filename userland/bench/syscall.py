"""The cost of a syscall: latency of one client, rate of sixteen clients, one fsynced write.

The load runs in its own process. `stat` is a no-op (class C); `nice` is written before it is
acknowledged (class B); `spawn` is fsynced (class A). The echo driver replaces a model: no engine
takes part.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence

from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient

from .figures import Bar, Suite, Take
from .rig import Rig, RigError, daemon

CLIENTS = 16
MODEL = "echo"
BARS = (
    Bar("syscall.p50_us", "no-op syscall, permission check on, 1 client, median", "us", "lower",
        100),
    Bar("syscall.rate_16", "no-op syscalls, 16 connections", "a second", "higher", 15_000),
    Bar("syscall.rate_16_b", "class B syscalls (nice), 16 connections", "a second", "higher", 8000),
    Bar("syscall.a_p50_ms", "class A syscall (spawn), fsynced, 1 client, median", "ms", "lower",
        12),
)  # fmt: skip


def load(rig: Rig, clients: int, seconds: float, call: str, *pids: int) -> dict[str, float]:
    words = [str(rig.socket), str(clients), str(seconds), call, *map(str, pids)]
    line = [sys.executable, "-m", f"{__package__}.load", *words]
    done = subprocess.run(line, env=rig.environment, capture_output=True, text=True)
    if done.returncode:
        raise RigError(f"the load process failed: {done.stderr.strip().splitlines()[-1:]}")
    report: dict[str, float] = json.loads(done.stdout)
    return report


def spawn(client: BlockingClient) -> int:
    return client.call("spawn", v.Spawn(MODEL, app="bench"), v.Spawned).pid


def spawn_ms(client: BlockingClient, count: int) -> Sequence[float]:
    times = list[float]()
    for _ in range(count):
        begun = time.perf_counter()
        spawn(client)
        times.append(1000 * (time.perf_counter() - begun))
    return times


def take(tiny: bool) -> Take:
    repeats, seconds, spawns = (1, 0.2, 5) if tiny else (5, 3.0, 100)
    values: dict[str, list[float]] = {bar.id: [] for bar in BARS}
    p99 = list[float]()
    with daemon(mount=False) as rig, rig.client() as client:
        pids = [spawn(client) for _ in range(CLIENTS)]
        for _ in range(repeats):
            single = load(rig, 1, seconds, "stat")
            values["syscall.p50_us"].append(round(single["p50_us"], 1))
            p99.append(round(single["p99_us"], 1))
            values["syscall.rate_16"].append(round(load(rig, CLIENTS, seconds, "stat")["rate"]))
            rate_b = load(rig, CLIENTS, seconds, "nice", *pids)["rate"]
            values["syscall.rate_16_b"].append(round(rate_b))
        values["syscall.a_p50_ms"] += [round(ms, 3) for ms in spawn_ms(client, spawns)]
    return Take(values, {"p99_us": p99})


SUITE = Suite("syscall", BARS, take)
