"""The cost of many children of one parent, compared with as many prompts of the same length.

Both sides are timed from the first spawn until all sixteen have a first token: a parent that reads
1,000 tokens and is forked, whose children each read a few tokens of their own; and sixteen
processes that read different prompts of 1,000 tokens.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio

from llmasos.userland.sdk.prompt import Options

from .figures import Bar, Suite, Take
from .rig import MODEL, facts, mounted, tuned
from .streams import Ask, crowd, greedy
from .texts import Writer, letter

CHILDREN, PROMPT_TOKENS = 16, 1000
FIRST: Options = {**greedy(1), "raw": True}
BARS = (
    Bar("fork.first_token_vs_prefill", f"{CHILDREN} forks of a process with {PROMPT_TOKENS:,} "
        "tokens until all have a first token, including the parent's prefill, over "
        f"{CHILDREN} different prompts of that length", "x", "lower", 0.07),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ForkSize:
    repeats: int
    children: int
    prompt: int


async def forked(path: Path, text: str, children: int) -> float:
    """Seconds for one prompt and its forks."""
    async with crowd(path, children) as people:
        begun = time.perf_counter()
        parent = await people.client.spawn(MODEL, app="bench", keep=False)
        await parent.generate(text, **FIRST)
        processes = await parent.fork(children, keep=False)
        answers = await people.all(
            Ask(f" {letter(index)}:", FIRST, process=child) for index, child in enumerate(processes)
        )
        return max(one.first_at for one in answers) - begun


async def prefilled(path: Path, texts: Sequence[str]) -> float:
    """Seconds for as many different prompts."""
    async with crowd(path, len(texts)) as people:
        begun = time.perf_counter()
        answers = await people.all(Ask(text, FIRST) for text in texts)
        return max(one.first_at for one in answers) - begun


def take(tiny: bool) -> Take:
    size = ForkSize(1, 2, 100) if tiny else ForkSize(3, CHILDREN, PROMPT_TOKENS)
    shape = {"slots": size.children + 1}
    times = list[tuple[float, float]]()
    with tuned() as (rig, client), mounted(client, **shape):
        writer = Writer.of(client)
        for repeat in range(size.repeats):
            texts = [writer.private(repeat, i, size.prompt) for i in range(size.children + 1)]
            quick = anyio.run(forked, rig.socket, texts.pop(), size.children)
            times.append((quick, anyio.run(prefilled, rig.socket, texts)))
        measured = facts(client)
    measured |= {
        "forked_and_prefilled_s": [[round(one, 3) for one in pair] for pair in times],
    }
    ratios = [round(quick / slow, 4) for quick, slow in times]
    return Take({"fork.first_token_vs_prefill": ratios}, measured, settings={"both": shape})


SUITE = Suite("fork", BARS, take)
