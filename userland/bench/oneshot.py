"""The cost of a single answer: round trips, flushes to the disk, latency against a spawned process.

The kernel counts both (`stat`): the calls that it has received, and the flushes of databases that
calls waited for. SQLite's own flushes at the checkpoint of a log, once in about 1,000 pages, are
not among them; a test counts every flush with strace. The echo driver replaces a model.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean, median

from llmasos import LLMasOS, Model

from .figures import Bar, Suite, Take
from .rig import daemon
from .streams import in_turn

MODEL, PROMPT = "echo", "one two three four"
BARS = (
    Bar("oneshot.syscalls", "round trips of one `Model.generate()` of the SDK", "", "lower", 1),
    Bar("oneshot.flushes", "flushes to the disk during it", "", "lower", 1),
    Bar("oneshot.vs_spawn", "its latency, over spawn, generate, kill and wait of a process", "x",
        "lower", 0.5),
)  # fmt: skip


def counted(client: LLMasOS, answer: Callable[[], object]) -> tuple[int, int]:
    """The calls that the kernel received and its flushes, while an answer is made."""
    before = client.stat()
    answer()
    after = client.stat()
    return after.calls - before.calls - 1, after.flushes - before.flushes  # without this `stat`


def seconds(answer: Callable[[], object]) -> float:
    begun = time.perf_counter()
    answer()
    return time.perf_counter() - begun


def single(model: Model) -> None:
    model.generate(PROMPT, temperature=0)


def spawned(client: LLMasOS) -> None:
    """The same answer of a process that is started for it and ended."""
    with client.spawn(MODEL) as process:
        process.generate(PROMPT, temperature=0)


def take(tiny: bool) -> Take:
    repeats, count = (1, 5) if tiny else (5, 50)
    counts: dict[str, list[tuple[int, int]]] = {"single": [], "spawned": []}
    times: list[tuple[float, float]] = []
    with daemon(mount=False) as rig, LLMasOS(socket=rig.socket, profile="operator") as client:
        model = client.get_model(MODEL)
        single(model)  # mounts it
        sides = {"single": partial(single, model), "spawned": partial(spawned, client)}
        for _ in range(repeats):
            found: dict[str, list[float]] = {"single": [], "spawned": []}
            for number in range(count):
                for side in in_turn(number, [*sides]):
                    found[side].append(seconds(sides[side]))
                    counts[side].append(counted(client, sides[side]))
            times.append((median(found["single"]), median(found["spawned"])))
    values = {
        "oneshot.syscalls": medians(counts["single"], 0, repeats),
        "oneshot.flushes": medians(counts["single"], 1, repeats),
        "oneshot.vs_spawn": [round(new / old, 4) for new, old in times],
    }
    facts = {
        "single_and_spawned_ms": [[round(1000 * one, 3) for one in pair] for pair in times],
        "most_syscalls": {side: max(calls for calls, _ in some) for side, some in counts.items()},
        "mean_flushes": {side: mean_flushes(some) for side, some in counts.items()},
    }
    return Take(values, facts)


def medians(counts: Sequence[tuple[int, int]], which: int, repeats: int) -> list[float]:
    """The median of each repeat."""
    size = len(counts) // repeats
    return [
        median(one[which] for one in counts[at : at + size]) for at in range(0, len(counts), size)
    ]


def mean_flushes(counts: Sequence[tuple[int, int]]) -> float:
    return round(fmean(flushes for _, flushes in counts), 3)


SUITE = Suite("oneshot", BARS, take)
