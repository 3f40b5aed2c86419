"""The cost of a durable page with 64 writers and with one, and the delay until it has a vector.

The load runs in its own process; the echo driver replaces a model. Embedding and Chroma run beside
the writers, as in normal operation; the writes do not wait for them.
"""

import time

from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient

from .figures import Bar, Suite, Take
from .planted import conversation
from .recall import settle
from .rig import daemon
from .syscall import load, spawn

WRITERS = 64
RATE = 200  # pages a second
BARS = (
    Bar("page.write_rate_64", f"durable page writes, {WRITERS} writers of one owner", "a second",
        "higher", 1000),
    Bar("page.write_p50_ms", "one writer, median", "ms", "lower", 12),
    Bar("page.lag_s_200", f"{RATE} page writes a second: delay until the last is found by meaning",
        "s", "lower", 2),
)  # fmt: skip


def lag_s(client: BlockingClient, pid: int, seconds: float, seed: int) -> float:
    """From the last acknowledged page until no page waits for its vector."""
    begun = time.perf_counter()
    for number, turn in enumerate(conversation(int(RATE * seconds), seed)):
        time.sleep(max(0.0, begun + number / RATE - time.perf_counter()))
        client.call("write_mem", v.WriteMem(pid, turn.text), v.Written)
    last = time.perf_counter()
    while client.call("stat", v.Nothing(), v.Stat).pages_waiting:
        time.sleep(0.02)
    return round(time.perf_counter() - last, 3)


def take(tiny: bool) -> Take:
    repeats, seconds = (1, 0.2) if tiny else (5, 3.0)
    rates: list[float] = []
    single: list[float] = []
    embedder = "none" if tiny else "builtin"
    with daemon(mount=False, **{"memory-embedder": embedder}) as rig, rig.client() as client:
        pids = [spawn(client) for _ in range(WRITERS)]
        for _ in range(repeats):
            rates.append(round(load(rig, WRITERS, seconds, "write", *pids)["rate"]))
        settle(client)
        for _ in range(repeats):
            single.append(round(load(rig, 1, seconds, "write", pids[0])["p50_us"] / 1000, 3))
        settle(client)
        lags = [lag_s(client, pids[0], seconds, seed) for seed in range(repeats)]
    values = {"page.write_rate_64": rates, "page.write_p50_ms": single, "page.lag_s_200": lags}
    return Take(values)


SUITE = Suite("page", BARS, take)
