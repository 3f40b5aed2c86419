"""Shares of tokens when more processes generate than the engine has slots, and one short request.

The shares are read with `ps`, for all processes at once, at both ends of an interval. The target of
a group is its part of all weights (1.25^-nice); the error is the larger relative error of the two
groups. Jain's index, (sum x)^2 / (n sum x^2), is the smaller one of the two groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import anyio

from llmasos import AsyncLLMasOS
from llmasos.kernel.abi import limits

from .answers import TimedAnswer
from .figures import Bar, Suite, Take
from .rig import MODEL, READY_S, RigError, facts, mounted, tuned
from .streams import crowd, finished, greedy, raw, speaking
from .texts import Writer

PROCESSES, WIDTH, NICE = 24, 8, 5
WARM_S, SECONDS = 10.0, 30.0  # the prompts are charged by then; a quantum: 1/18 of the small share
BUSY, SHORT_TOKENS, SHORT_NEW, LONG_TOKENS = 16, 20, 32, 2000
ENDLESS = greedy(limits.WINDOW_TOKENS - SHORT_TOKENS - 1)
BARS = (
    Bar("fairness.share_error", f"{PROCESSES} endless processes, at most {WIDTH} in a step, half "
        f"at nice 0, half at nice {NICE}: relative error of the shares", "", "lower", 0.05),
    Bar("fairness.jain", "Jain index of a group, the smaller of both groups", "", "higher", 0.99),
    Bar("fairness.short_vs_alone", f"a request of {SHORT_TOKENS} prompt and {SHORT_NEW} new tokens "
        f"beside {BUSY} generations and a {LONG_TOKENS:,}-token prompt, over its time beside "
        f"{BUSY} equal requests", "x", "lower", 1.3),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FairnessSize:
    repeats: int
    processes: int
    width: int
    warm_s: float
    seconds: float
    busy: int
    long: int


def jain(counts: Sequence[int]) -> float:
    """Jain's index; 0 when all values are 0."""
    return sum(counts) ** 2 / max(1, len(counts) * sum(count**2 for count in counts))


def error(groups: Sequence[tuple[int, Sequence[int]]]) -> float:
    """The largest relative error of a group's share; the groups are (nice, counts)."""
    weights = [len(counts) * limits.NICE_STEP**-nice for nice, counts in groups]
    whole = max(1, sum(sum(counts) for _, counts in groups))
    promised = [weight / sum(weights) for weight in weights]
    got = [sum(counts) / whole for _, counts in groups]
    return max(abs(a - b) / b for a, b in zip(got, promised, strict=True))


async def shares(
    path: Path, texts: Sequence[str], size: FairnessSize
) -> list[tuple[int, list[int]]]:
    """Tokens of each process in the interval, grouped by nice."""
    async with crowd(path, len(texts)) as people:
        pids = dict[int, int]()  # to nice
        answers = list[TimedAnswer]()
        for index, text in enumerate(texts):
            nice = NICE * (index % 2)
            process = await people.client.spawn(MODEL, app="bench", nice=nice, keep=False)
            pids[process.pid] = nice
            answers.append(people.begin(replace(raw(text, ENDLESS), process=process)))
        await anyio.sleep(size.warm_s)
        before = await generated(people.client)
        await anyio.sleep(size.seconds)
        after = await generated(people.client)
        if any(one.ended for one in answers):
            raise RigError("a window was full before the measurement ended")
    return [
        (nice, [after[pid] - before[pid] for pid, own in pids.items() if own == nice])
        for nice in (0, NICE)
    ]


async def generated(client: AsyncLLMasOS) -> dict[int, int]:
    return {one.pid: one.generated for one in (await client.ps()).processes}


async def beside(path: Path, texts: Sequence[str], long_text: str) -> float:
    """Seconds of the first text's request while the others decode and a long prompt is computed."""
    async with crowd(path, len(texts) + 1) as people:
        others = [people.begin(raw(text, ENDLESS)) for text in texts[1:]]
        await speaking(others)
        long = people.begin(raw(long_text, greedy(1)))
        await fed(people.client, len(texts))
        short = people.begin(raw(texts[0], greedy(SHORT_NEW)))
        await finished([short])
        if any(one.ended for one in others) or 0 < long.ended < short.begun:
            raise RigError("the load ended before the short request did")
        return short.took_s


async def fed(client: AsyncLLMasOS, busy: int) -> None:
    """Wait until `busy` calls hold a slot."""
    with anyio.fail_after(READY_S):
        while sum(one.busy for one in (await client.devices()).devices) < busy:  # noqa: ASYNC110
            await anyio.sleep(0.005)


async def without_load(path: Path, texts: Sequence[str]) -> float:
    """The median time of these requests, run at once without other load."""
    async with crowd(path, len(texts)) as people:
        answers = await people.all(raw(text, greedy(SHORT_NEW)) for text in texts)
        return median(one.took_s for one in answers)


def take(tiny: bool) -> Take:
    size = (
        FairnessSize(1, 4, 2, 0.1, 0.4, 2, 200)
        if tiny
        else FairnessSize(3, PROCESSES, WIDTH, WARM_S, SECONDS, BUSY, LONG_TOKENS)
    )
    groups, times = list[Sequence[tuple[int, list[int]]]](), list[tuple[float, float]]()
    shape = {"slots": size.processes, "width": size.width}
    few = {"slots": size.busy + 4}
    with tuned() as (rig, client):
        with mounted(client, **shape):
            writer = Writer.of(client)
            for repeat in range(size.repeats):
                texts = [writer.private(repeat, i, SHORT_TOKENS) for i in range(size.processes)]
                groups.append(anyio.run(shares, rig.socket, texts, size))
        with mounted(client, **few):
            for repeat in range(size.repeats):
                texts = [writer.private(repeat, i, SHORT_TOKENS) for i in range(size.busy + 1)]
                long = writer.private(repeat, size.busy + 1, size.long)
                slow = anyio.run(beside, rig.socket, texts, long)
                times.append((slow, anyio.run(without_load, rig.socket, texts)))
        measured = facts(client)
    values = {
        "fairness.share_error": [round(error(one), 4) for one in groups],
        "fairness.jain": [round(min(jain(n) for _, n in one), 5) for one in groups],
        "fairness.short_vs_alone": [round(slow / quick, 4) for slow, quick in times],
    }
    measured |= {
        "tokens_by_nice": groups,
        "short_beside_and_alone_s": [[round(one, 3) for one in pair] for pair in times],
    }
    return Take(values, measured, settings={"shares": shape, "short": few})


SUITE = Suite("fairness", BARS, take)
