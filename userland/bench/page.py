"""What a durable page costs: 64 writers of one owner, and one alone.

The load is a process of its own, the echo device stands in for a model. Embedding and Chroma go on
beside the writers, as they do in life; nobody waits for them.
"""

from .figures import Bar, Suite, Take
from .recall import settle
from .rig import daemon
from .syscall import load, spawn

WRITERS = 64
BARS = (
    Bar("page.write_rate_64", f"durable page writes, {WRITERS} writers of one owner", "a second",
        "higher", 1000),
    Bar("page.write_p50_ms", "one writer alone, median", "ms", "lower", 12),
)  # fmt: skip


def take(tiny: bool) -> Take:
    repeats, seconds = (1, 0.2) if tiny else (5, 3.0)
    rates: list[float] = []
    alone: list[float] = []
    embedder = "none" if tiny else "builtin"
    with daemon(mount=False, **{"memory-embedder": embedder}) as rig, rig.client() as client:
        pids = [spawn(client) for _ in range(WRITERS)]
        for _ in range(repeats):
            rates.append(round(load(rig, WRITERS, seconds, "write", *pids)["rate"]))
        settle(client)
        for _ in range(repeats):
            alone.append(round(load(rig, 1, seconds, "write", pids[0])["p50_us"] / 1000, 3))
    return Take({"page.write_rate_64": rates, "page.write_p50_ms": alone})


SUITE = Suite("page", BARS, take)
