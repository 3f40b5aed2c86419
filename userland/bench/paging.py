"""A conversation far longer than its window: tokens computed, and facts present when needed.

200 turns on a window of 2,048 tokens. The comparison is arithmetic: a plain chat sends the system
prompt and the newest messages that fit, and computes all of them each time. Questions are about
facts told long before; each is counted by whether it is in the window.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient

from .figures import Bar, Suite, Take
from .planted import FACTS, OLD, conversation
from .rig import MODEL, RigError, facts, mounted, tuned

WINDOW, TURNS, ANSWER = 2_048, 200, 60
SYSTEM = "You are a friendly companion. You answer in a few plain sentences."
BARS = (
    Bar("paging.recompute_share", f"{TURNS} turns on a window of {WINDOW:,} tokens: prompt tokens "
        "computed, over those of a plain chat", "x", "lower", 0.35),
    Bar("paging.planted_facts", "old facts that are in the window when a question needs them",
        "", "higher", 0.95),
)  # fmt: skip
TEMPLATE = 5  # tokens that the template adds to a message


@dataclass(frozen=True, slots=True)
class PagingSize:
    """The size of a conversation."""

    window: int
    turns: int
    answer: int = ANSWER  # tokens
    old: int = OLD  # turns between a fact and its question, at least


@dataclass(slots=True)
class Tally:
    """Counters of a conversation."""

    computed: int = 0
    plain: int = 0
    asked: int = 0
    there: int = 0
    faults: int = 0
    compactions: int = 0
    hard: int = 0
    missed: list[str] = field(default_factory=list[str])


def plain_tokens(sizes: list[int], system: int, reserve: int, window: int) -> int:
    """Tokens that a plain chat sends: the newest messages that fit beside the system prompt."""
    room = window - reserve - system
    sent = system
    for size in reversed(sizes):
        if size + TEMPLATE > room:
            break
        room -= size + TEMPLATE
        sent += size + TEMPLATE
    return sent


def converse(client: BlockingClient, size: PagingSize, seed: int, model: str = MODEL) -> Tally:
    """Run one conversation."""
    pid = client.call("spawn", v.Spawn(model, app="bench", system=SYSTEM), v.Spawned).pid
    system = client.call("read_mem", v.ReadMem(pid), v.Pages).pages[0].tokens + TEMPLATE
    tally = Tally()
    pages: dict[int, list[int]] = {}  # of each fact
    sizes: list[int] = []
    sampling = v.Sampling(
        temperature=0, max_tokens=size.answer, ignore_eos=True, repeat_penalty=1.1
    )
    for turn in conversation(size.turns, seed, size.old):
        asked = v.Generate(pid, [v.Message(v.Role.USER, turn.text)], sampling=sampling)
        stream = client.stream("generate", asked, v.Delta, v.Generated)
        for _ in stream:
            pass
        reply = stream.reply
        if reply is None:
            raise RigError("a generation ended without a reply")
        new = client.call("read_mem", v.ReadMem(pid, reply.pages[0]), v.Pages).pages
        sizes.append(sum(page.tokens for page in new if page.kind is v.Kind.USER))
        tally.plain += plain_tokens(sizes, system, size.answer, size.window)
        sizes.append(size.answer)
        tally.computed += reply.usage.prompt_tokens - reply.usage.cached_tokens
        tally.faults += len(reply.faults)
        tally.compactions += bool(reply.evicted)
        if turn.tells is not None:
            pages[turn.tells] = reply.pages[:1]
        if turn.asks is not None:
            tally.asked += 1
            found = set(pages[turn.asks]) <= set(reply.window)
            tally.there += found
            if not found:
                tally.missed.append(FACTS[turn.asks][1])
    client.call("kill", v.Kill(pid), v.Nothing)
    return tally


def take(tiny: bool) -> Take:
    seeds = (1,) if tiny else (1, 2, 3)
    size = PagingSize(512, 10, 8, 4) if tiny else PagingSize(WINDOW, TURNS)
    shape = {"window": size.window}

    def one(seed: int) -> Tally:
        with rig.client() as line:
            return converse(line, size, seed)

    with tuned() as (rig, client), mounted(client, **shape), ThreadPoolExecutor(len(seeds)) as pool:
        tallies = list(pool.map(one, seeds))
        measured = facts(client)
    measured |= {
        "computed_and_plain": [[t.computed, t.plain] for t in tallies],
        "faults": [t.faults for t in tallies],
        "compactions": [t.compactions for t in tallies],
        "missed": [t.missed for t in tallies],
    }
    values = {
        "paging.recompute_share": [round(t.computed / t.plain, 4) for t in tallies],
        "paging.planted_facts": [round(t.there / max(1, t.asked), 4) for t in tallies],
    }
    return Take(values, measured, settings={"both": shape})


SUITE = Suite("paging", BARS, take, timed=False)
