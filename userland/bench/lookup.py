"""The speed of one stream with prompt lookup over its speed without.

One answer quotes a text of about 600 tokens, whose sentences have nothing in common; the other one
is drawn at random, so that it repeats little. Both sides make the same number of tokens and are
timed from the first token to the end.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from llmasos.userland.client import BlockingClient
from llmasos.userland.sdk.prompt import Options

from .answers import TimedAnswer
from .figures import Bar, Suite, Take
from .planted import FACTS
from .rig import Rig, RigError, facts, mounted, tuned
from .streams import greedy, in_turn, raw, together
from .texts import tokens

TEXT_TOKENS, NEW_TOKENS = 600, 300
TOPIC = "A long letter about the year that I spent on the island:\n\nDear friend,"
BARS = (
    Bar("lookup.speedup", f"one stream that quotes a text of {TEXT_TOKENS} tokens: speed with "
        "prompt lookup over that without", "x", "higher", 1.8),
    Bar("lookup.harm", "the same of a text without repetition, with lookup where it is measured "
        "to be faster (the default)", "x", "higher", 0.97),
    Bar("lookup.speedup_default", "the quotation with the default", "x", "higher"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LookupSize:
    repeats: int
    text: int
    new: int


def quotation(client: BlockingClient, seed: int, size: int) -> str:
    """A prompt that has a text of about `size` tokens and its first words again."""
    dice = random.Random(seed)
    sentences = [fact for fact, _ in FACTS]
    dice.shuffle(sentences)
    text = sentences.pop()
    while sentences and len(tokens(client, text)) < size:
        text = f"{text} {sentences.pop()}"
    return f"{text}\n\n{' '.join(text.split()[:6])}"


def speed(rig: Rig, prompt: str, options: Options) -> tuple[float, TimedAnswer]:
    """Tokens a second after the first one. RigError unless the answer has all its tokens."""
    [answer] = together(rig.socket, [raw(prompt, options)])
    if not answer.whole:
        raise RigError(f"an answer ended early, after {answer.tokens} tokens")
    return (answer.tokens - 1) / (answer.ended - answer.first_at), answer


def ratios(
    rig: Rig, prompts: Sequence[str], options: Sequence[Options], sides: Sequence[bool | None]
) -> tuple[dict[bool | None, list[float]], list[object]]:
    """The speed of each side over that without lookup, and what was drafted."""
    found: dict[bool | None, list[float]] = {side: [] for side in sides}
    seen: list[object] = []
    for repeat, (prompt, asked) in enumerate(zip(prompts, options, strict=True)):
        speeds: dict[bool | None, float] = {}
        for side in in_turn(repeat, [False, *sides]):
            speeds[side], answer = speed(rig, prompt, {**asked, "lookup": side})
            seen.append([side, answer.drafted_tokens, answer.accepted_tokens, answer.digest])
        for side in sides:
            found[side].append(round(speeds[side] / speeds[False], 4))
    return found, seen


def take(tiny: bool) -> Take:
    size = LookupSize(1, 60, 16) if tiny else LookupSize(5, TEXT_TOKENS, NEW_TOKENS)
    numbers = range(size.repeats)
    copied: list[Options] = [greedy(size.text) for _ in numbers]
    drawn: list[Options] = [
        {"temperature": 1.0, "top_k": 0, "seed": seed, "ignore_eos": True, "max_tokens": size.new}
        for seed in numbers
    ]
    with tuned() as (rig, client), mounted(client, slots=1):
        texts = [quotation(client, seed, size.text) for seed in numbers]
        quoted, quotations = ratios(rig, texts, copied, (True, None))
        varied, letters = ratios(rig, [TOPIC] * size.repeats, drawn, (None, True))
        measured = facts(client)
    values = {
        "lookup.speedup": quoted[True],
        "lookup.harm": varied[None],
        "lookup.speedup_default": quoted[None],
    }
    # [lookup, drafted, accepted, digest of the text]
    measured |= {
        "quotations": quotations, "letters": letters, "requested_harm": varied[True],
    }  # fmt: skip
    return Take(values, measured)


SUITE = Suite("lookup", BARS, take)
