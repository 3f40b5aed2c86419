"""The latency of tokenizing while the engine is busy: 200 words over the socket beside 16 decodes.

The answers of the sixteen processes are not read: they are small, and a reader would use CPU time.
The engine must still be busy at the end.
"""

import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median

from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient

from .figures import Bar, Suite, Take
from .rig import MODEL, READY_S, Rig, RigError, daemon

SEQUENCES = 16
WORDS = 200
WORD = ("river", "stone", "window", "letter", "garden", "engine", "paper", "market")
BARS = (
    Bar("tokenize.p50_ms_busy", "tokenize 200 words beside 16 decodes, median", "ms", "lower", 2),
)


def text(words: int = WORDS) -> str:
    return " ".join(WORD[(i * 5 + i // 8) % len(WORD)] for i in range(words))


def busy(client: BlockingClient) -> int:
    """The number of slots in use."""
    return sum(d.busy for d in client.call("devices", v.Nothing(), v.Devices).devices)


@contextmanager
def decoding(rig: Rig, client: BlockingClient, count: int) -> Generator[None]:
    """`count` processes that generate until the block ends."""
    with ExitStack() as stack:
        for _ in range(count):
            other = stack.enter_context(rig.client())
            pid = other.call("spawn", v.Spawn(MODEL, app="bench", keep=False), v.Spawned).pid
            story = [v.Message(v.Role.USER, "Tell a long story.")]
            sampling = v.Sampling(max_tokens=1900, temperature=0, ignore_eos=True)
            other.send("generate", v.Generate(pid, story, sampling=sampling))
        deadline = time.monotonic() + READY_S
        while busy(client) < count:
            if time.monotonic() > deadline:
                raise RigError(f"{busy(client)} of {count} sequences decode after {READY_S:g} s")
            time.sleep(0.05)
        yield


def sample_ms(client: BlockingClient, count: int) -> Sequence[float]:
    request = v.Tokenize(MODEL, text())
    times = list[float]()
    for _ in range(count):
        time.sleep(0.013)  # not in phase with the engine
        begun = time.perf_counter()
        client.call("tokenize", request, v.Tokens)
        times.append(1000 * (time.perf_counter() - begun))
    return times


def take(tiny: bool) -> Take:
    repeats, count, sequences = (1, 5, 2) if tiny else (5, 100, SEQUENCES)
    medians = list[float]()
    with daemon() as rig, rig.client() as client:
        client.call("tokenize", v.Tokenize(MODEL, "ready"), v.Tokens)
        with decoding(rig, client, sequences):
            for _ in range(repeats):
                medians.append(round(median(sample_ms(client, count)), 3))
            if busy(client) < sequences:
                raise RigError("the generations ended before the measurement")
        digest = rig.digest()
    return Take({"tokenize.p50_ms_busy": medians}, {"model": digest, "words": WORDS})


SUITE = Suite("tokenize", BARS, take)
