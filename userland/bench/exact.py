"""Whether a deterministic mount keeps its promise beside others, and what that costs.

Half of the generations are greedy, half are drawn with a seed. Each is made alone, and then on a
fresh engine twice in a crowd of sixteen, with other neighbours each time (and its prompt computed
before the second time); it is identical when its text, its count of tokens and the probabilities
told beside them are the same bits each time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llmasos.userland.line import Line
from llmasos.userland.sdk.process import Options

from .answers import Answer, crowded
from .figures import Bar, Suite, Take
from .rig import Rig, facts, mounted, tuned
from .streams import greedy, raw, together
from .texts import Writer
from .throughput import NEW_TOKENS, PROMPT_TOKENS, SEQUENCES

GENERATIONS = 32
EXACT = {"deterministic": True}
BARS = (
    Bar("exact.batch_invariant", f"deterministic mount: share of {GENERATIONS} generations "
        f"identical alone and among {SEQUENCES - 1} others", "", "higher", 1.0),
    Bar("exact.cost", "deterministic mount: throughput lost", "", "lower", 0.10),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Size:
    repeats: int
    sequences: int
    generations: int
    new: int


def options(index: int, new: int) -> Options:
    """Greedy or seeded, in turn."""
    told: Options = {"deterministic": True, "logprobs": 2}
    if index % 2:
        return {**told, "temperature": 0.8, "seed": index, "ignore_eos": True, "max_tokens": new}
    return {**told, **greedy(new)}


def same(answers: Sequence[Answer]) -> bool:
    first, *rest = [(one.text, one.tokens, one.logprobs) for one in answers]
    return all(one == first for one in rest)


def compared(rig: Rig, client: Line, size: Size) -> list[list[Answer]]:
    """Each generation alone, then in two crowds on an engine that has computed none of them yet."""
    shape = {"slots": size.sequences, **EXACT}
    with mounted(client, **shape):
        writer = Writer.of(client)
        asks = [
            raw(writer.private(0, index, PROMPT_TOKENS), options(index, size.new))
            for index in range(size.generations)
        ]
        seen = [together(rig.socket, [ask]) for ask in asks]
    groups = len(asks) // size.sequences
    neighbours = list(range(len(asks)))
    strangers = [index for first in range(groups) for index in neighbours[first::groups]]
    with mounted(client, **shape):
        for order in (neighbours, strangers):
            for begin in range(0, len(order), size.sequences):
                members = order[begin : begin + size.sequences]
                answers = together(rig.socket, [asks[index] for index in members])
                for index, answer in zip(members, answers, strict=True):
                    seen[index].append(answer)
    return seen


def rate(rig: Rig, writer: Writer, repeat: int, size: Size) -> float:
    asks = [
        raw(writer.private(repeat, index, PROMPT_TOKENS), greedy(size.new))
        for index in range(size.sequences)
    ]
    return crowded(together(rig.socket, asks), size.new, PROMPT_TOKENS).rate


def take(tiny: bool) -> Take:
    size = Size(1, 2, 4, 4) if tiny else Size(3, SEQUENCES, GENERATIONS, NEW_TOKENS)
    rates = list[tuple[float, float]]()
    with tuned() as (rig, client):
        for repeat in range(size.repeats):
            with mounted(client, slots=size.sequences):
                usual = rate(rig, Writer.of(client), repeat, size)
            with mounted(client, slots=size.sequences, **EXACT):
                rates.append((rate(rig, Writer.of(client), repeat, size), usual))
        seen = compared(rig, client, size)
        said = facts(client)
    identical = [same(answers) for answers in seen]
    said |= {
        "identical": identical,
        "probabilities_compared": sum(len(answers[0].logprobs) for answers in seen),
        "deterministic_and_default_rate": [[round(one, 2) for one in pair] for pair in rates],
    }
    values = {
        "exact.batch_invariant": [round(sum(identical) / len(identical), 4)],
        "exact.cost": [round(1 - one / usual, 4) for one, usual in rates],
    }
    return Take(values, said, settings={"deterministic": EXACT, "default": {}})


SUITE = Suite("exact", BARS, take)
