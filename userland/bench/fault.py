"""The delay of a request that recalls pages: embedding, search, ranking, layout.

A process with many pages is asked about one of them, then about another. The figure is the time
until the first token of the echo driver, which needs no time of its own, including the socket and
the journal. The same time without recall is in the facts of the result.
"""

import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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
WARM_UP = 10  # first questions, which are not counted
LEAST, TINY_LEAST = 0.75, 0.1  # share of requests that must recall; few pages: fewer
_NOUNS = (
    "harbour", "lantern", "copper", "meadow", "violin", "ledger", "orchard", "ferry", "granite",
    "saddle", "walnut", "engine", "curtain", "glacier", "pepper", "anchor", "marble", "canyon",
)  # fmt: skip
_VERBS = ("was mended by", "belongs to", "reminds me of", "stands behind", "costs more than")


def texts(count: int, seed: int) -> list[str]:
    """Sentences that share their words with many others, and some facts."""
    chance = random.Random(seed)
    noun = partial(chance.choice, _NOUNS)
    pages = [
        f"The {noun()} {number % 997} {chance.choice(_VERBS)} the {noun()} of {noun()} street "
        f"{chance.randrange(count)}."
        for number in range(count)
    ]
    for index, (fact, _) in zip(chance.sample(range(count), len(FACTS)), FACTS, strict=True):
        pages[index] = fact
    return pages


def write_all(rig: Rig, pid: int, pages: Sequence[str]) -> None:
    """Write these pages, through several connections. Raises what a write raises."""
    with ThreadPoolExecutor(WRITERS) as pool:
        writing = [pool.submit(_write, rig, pid, pages[index::WRITERS]) for index in range(WRITERS)]
        for one in writing:
            one.result()


def _write(rig: Rig, pid: int, pages: Sequence[str]) -> None:
    with rig.client() as client:
        for text in pages:
            client.call("write_mem", v.WriteMem(pid, text), v.Written)


def first_token(
    client: BlockingClient, pid: int, question: str, *, recall: bool
) -> tuple[float, bool]:
    """Milliseconds until the first token, and whether pages were recalled."""
    sampling = v.Sampling(max_tokens=1, temperature=0)
    request = v.Generate(pid, [v.Message(v.Role.USER, question)], sampling=sampling, recall=recall)
    begun = time.perf_counter()
    stream = client.stream("generate", request, v.Delta, v.Generated)
    first = 0.0
    for _ in stream:
        first = first or 1000 * (time.perf_counter() - begun)
    return first, stream.reply is not None and bool(stream.reply.faults)


def faults_ms(client: BlockingClient, pid: int, least: float) -> list[float]:
    """The times of requests that recalled pages. RigError when a smaller share did."""
    answers = [first_token(client, pid, question, recall=True) for _, question in FACTS]
    times = [took for took, recalled in answers[WARM_UP:] if recalled]
    if len(times) < least * (len(FACTS) - WARM_UP):
        raise RigError(f"only {len(times)} of {len(FACTS) - WARM_UP} requests recalled pages")
    return times


def take(tiny: bool) -> Take:
    values: dict[str, list[float]] = {}
    without_recall: dict[str, float] = {}
    for name, count in (TINY if tiny else SIZES).items():
        with daemon(mount=False) as rig, rig.client() as client:
            pid = spawn(client)
            write_all(rig, pid, texts(count, 1))
            settle(client)
            times = faults_ms(client, pid, TINY_LEAST if tiny else LEAST)
            values[f"fault.p50_ms_{name}"] = [round(median(times), 2)]
            plain = [first_token(client, pid, question, recall=False)[0] for _, question in FACTS]
        without_recall[name] = round(median(plain), 2)
    return Take(values, {"without_recall_ms": without_recall})


SUITE = Suite("fault", BARS, take)
