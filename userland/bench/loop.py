"""The delay of the kernel's event loop while the engine decodes sixteen sequences.

Measured from outside: round trips of `stat`, a no-op call, at random times. The client's own
wake-up is included, so this is an upper bound of the delay of the loop.
"""

import random
import time
from collections.abc import Sequence
from statistics import quantiles

from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient

from .figures import Bar, Suite, Take
from .rig import RigError, facts, mounted, tuned
from .tokenize import busy, decoding

SEQUENCES, SAMPLES = 16, 2000
PAUSE_S = 0.006  # mean time between two samples
BARS = (
    Bar("loop.p99_ms", f"delay of the kernel's event loop while the engine decodes {SEQUENCES} "
        "sequences, p99 of round trips", "ms", "lower", 5),
)  # fmt: skip


def cuts_ms(client: BlockingClient, count: int, chance: random.Random) -> Sequence[float]:
    """The percentiles of round trips, in milliseconds."""
    times = list[float]()
    for _ in range(count):
        time.sleep(chance.expovariate(1 / PAUSE_S))
        begun = time.perf_counter()
        client.call("stat", v.Nothing(), v.Stat)
        times.append(1000 * (time.perf_counter() - begun))
    return quantiles(times, n=100)


def take(tiny: bool) -> Take:
    repeats, samples, sequences = (1, 100, 2) if tiny else (3, SAMPLES, SEQUENCES)
    chance = random.Random(1)
    percentiles = list[Sequence[float]]()
    with tuned() as (rig, client), mounted(client, slots=sequences):
        idle = cuts_ms(client, samples, chance)
        with decoding(rig, client, sequences):
            for _ in range(repeats):
                percentiles.append(cuts_ms(client, samples, chance))
            if busy(client) < sequences:
                raise RigError("the generations ended before the measurement")
        measured = facts(client)
    measured |= {
        "samples": samples,
        "p50_p95_ms": [[round(one[49], 3), round(one[94], 3)] for one in percentiles],
        "idle_p50_p99_ms": [round(idle[49], 3), round(idle[98], 3)],
    }
    return Take({"loop.p99_ms": [round(one[98], 3) for one in percentiles]}, measured)


SUITE = Suite("loop", BARS, take)
