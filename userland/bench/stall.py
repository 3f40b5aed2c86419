"""The effect of a long prompt on running streams, and what protecting them costs the prompt.

Eight streams decode; then a prompt of 2,000 tokens arrives. It is computed in chunks that the time
budget of a step allows (the default) and whole (`chunk_s=0`), alternately, each on a fresh engine.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import anyio

from llmasos.userland.client import BlockingClient

from .answers import longest_gap_s
from .figures import Bar, Suite, Take
from .rig import Rig, RigError, facts, mounted, tuned
from .streams import crowd, finished, greedy, raw, speaking
from .texts import Writer

STREAMS, PROMPT_TOKENS = 8, 2000
STREAM_TOKENS = 16  # prompt of each stream
Shape = dict[str, int]
WHOLE: Shape = {"chunk_s": 0}
BARS = (
    Bar("stall.gap_vs_whole", f"{STREAMS} streams decode while a {PROMPT_TOKENS:,}-token prompt "
        "arrives in chunks: longest gap between tokens of a stream, over that of a whole prompt",
        "x", "lower", 0.10),
    Bar("stall.ttft_vs_whole", "time to first token of the long prompt, over the same",
        "x", "lower", 1.25),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class StallSize:
    repeats: int
    streams: int
    prompt: int
    window: int


@dataclass(frozen=True, slots=True)
class Stall:
    """The measurements of one arrival."""

    gap_s: float
    ttft_s: float


async def arrival(path: Path, others: Sequence[str], prompt: str, new: int) -> Stall:
    """Measure one arrival. RigError when a stream ends before the prompt's first token."""
    async with crowd(path, len(others) + 1) as people:
        streams = [people.begin(raw(text, greedy(new))) for text in others]
        await speaking(streams)
        long = people.begin(raw(prompt, greedy(1)))
        await finished([long])
        if any(one.ended for one in streams):
            raise RigError("a stream ended before the long prompt had its first token")
        return Stall(longest_gap_s(streams, long.begun, long.arrivals[0][0]), long.ttft_s)


def arrivals(
    tiny: bool, rig: Rig, client: BlockingClient
) -> tuple[list[Stall], list[Stall], Shape]:
    """Each repeat once in chunks and once whole."""
    size = StallSize(1, 2, 200, 512) if tiny else StallSize(3, STREAMS, PROMPT_TOKENS, 4096)
    shape: Shape = {"slots": size.streams + 1, "window": size.window, "batch": 4096}
    chunks, whole = list[Stall](), list[Stall]()
    for repeat in range(size.repeats):
        for stalls, options in ((chunks, shape), (whole, {**shape, **WHOLE})):
            with mounted(client, **options):
                writer = Writer.of(client)
                others = [writer.private(repeat, i, STREAM_TOKENS) for i in range(size.streams)]
                prompt = writer.private(repeat, size.streams, size.prompt)
                new = size.window - STREAM_TOKENS - 1
                stalls.append(anyio.run(arrival, rig.socket, others, prompt, new))
    return chunks, whole, shape


def take(tiny: bool) -> Take:
    with tuned() as (rig, client):
        chunks, whole, shape = arrivals(tiny, rig, client)
        measured = facts(client)
    pairs = list(zip(chunks, whole, strict=True))
    values = {
        "stall.gap_vs_whole": [round(one.gap_s / other.gap_s, 4) for one, other in pairs],
        "stall.ttft_vs_whole": [round(one.ttft_s / other.ttft_s, 4) for one, other in pairs],
    }
    measured |= {
        "chunks_s": [asdict(one) for one in chunks],
        "whole_s": [asdict(one) for one in whole],
    }
    settings = {"in chunks": shape, "whole": {**shape, **WHOLE}}
    return Take(values, measured, settings=settings)


SUITE = Suite("stall", BARS, take)
