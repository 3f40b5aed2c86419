"""The delay of a request that recalls pages: embedding, search, ranking, layout.

A process with many pages is asked about one of them, then about another. The figure is the time
until the first token of the echo driver, which needs no time of its own, including the socket and
the journal. The same time without recall is reported beside it.
"""

import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient

from .figures import Bar, Suite, Take
from .planted import FACTS
from .recall import settle
from .rig import Rig, RigError, daemon
from .syscall import spawn

SIZES = {"10k": 10_000, "100k": 100_000}
TINY = {"10k": 60, "100k": 120}
BARS = (
    Bar("fault.p50_ms_10k", "time to first token of a request that recalls pages, 10,000 pages",
        "ms", "lower", 15),
    Bar("fault.p50_ms_100k", "the same with 100,000 pages", "ms", "lower", 60),
)  # fmt: skip
WRITERS = 8
WARM = 10  # questions before the measurement
MOST, TINY_MOST = 0.75, 0.1  # share of requests that must recall; few pages: fewer
_NOUNS = (
    "harbour", "lantern", "copper", "meadow", "violin", "ledger", "orchard", "ferry", "granite",
    "saddle", "walnut", "engine", "curtain", "glacier", "pepper", "anchor", "marble", "canyon",
)  # fmt: skip
_DEEDS = ("was mended by", "belongs to", "reminds me of", "stands behind", "costs more than")


def texts(count: int, seed: int) -> list[str]:
    """Sentences that share their words with many others, and some facts."""
    dice = random.Random(seed)
    made = [
        f"The {dice.choice(_NOUNS)} {number % 997} {dice.choice(_DEEDS)} the {dice.choice(_NOUNS)} "
        f"of {dice.choice(_NOUNS)} street {dice.randrange(count)}."
        for number in range(count)
    ]
    for place, (fact, _) in zip(dice.sample(range(count), len(FACTS)), FACTS, strict=True):
        made[place] = fact
    return made


def write(rig: Rig, pid: int, some: Sequence[str]) -> None:
    with rig.client() as client:
        for text in some:
            client.call("write_mem", v.WriteMem(pid, text), v.Written)


def first_token(
    client: BlockingClient, pid: int, question: str, *, recall: bool
) -> tuple[float, bool]:
    """Milliseconds until the first token, and whether pages were recalled."""
    sampling = v.Sampling(max_tokens=1, temperature=0)
    asked = v.Generate(pid, [v.Message(v.Role.USER, question)], sampling=sampling, recall=recall)
    begun = time.perf_counter()
    stream = client.stream("generate", asked, v.Delta, v.Generated)
    first = 0.0
    for _ in stream:
        first = first or 1000 * (time.perf_counter() - begun)
    return first, stream.reply is not None and bool(stream.reply.faults)


def faults_ms(client: BlockingClient, pid: int, most: float) -> list[float]:
    """The times of requests that recalled pages. RigError when too few did."""
    asked = [first_token(client, pid, question, recall=True) for _, question in FACTS]
    times = [took for took, recalled in asked[WARM:] if recalled]
    if len(times) < most * (len(FACTS) - WARM):
        raise RigError(f"only {len(times)} of {len(FACTS) - WARM} requests recalled pages")
    return times


def take(tiny: bool) -> Take:
    values: dict[str, list[float]] = {}
    plain: dict[str, float] = {}
    for name, count in (TINY if tiny else SIZES).items():
        with daemon(mount=False) as rig, rig.client() as client:
            pid = spawn(client)
            made = texts(count, 1)
            with ThreadPoolExecutor(WRITERS) as pool:
                for index in range(WRITERS):
                    pool.submit(write, rig, pid, made[index::WRITERS])
            settle(client)
            times = faults_ms(client, pid, TINY_MOST if tiny else MOST)
            values[f"fault.p50_ms_{name}"] = [round(median(times), 2)]
            without = [first_token(client, pid, asked, recall=False)[0] for _, asked in FACTS]
        plain[name] = round(median(without), 2)
    return Take(values, {"without_recall_ms": plain})


SUITE = Suite("fault", BARS, take)
