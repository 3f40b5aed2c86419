"""The cost of a JSON schema per step of sixteen streams, compared with prompts without one.

The schema requires more than fits into the answer, so both sides make the same number of tokens. A
step is timed while all streams generate.
"""

from collections.abc import Sequence

from llmasos.userland.sdk.prompt import Options

from .answers import TimedAnswer, step_s
from .figures import Bar, Suite, Take
from .rig import Rig, RigError, facts, mounted, tuned
from .streams import Ask, together
from .texts import Writer

STREAMS, PROMPT_TOKENS, NEW_TOKENS = 16, 40, 96
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 40},
        "year": {"type": "integer"},
        "rating": {"type": "number"},
        "open": {"type": "boolean"},
        "kind": {"enum": ["novel", "play", "poem"]},
        "people": {
            "type": "array",
            "minItems": 12,
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "maxLength": 30},
                    "age": {"type": "integer"},
                },
                "required": ["name", "age"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["title", "year", "rating", "open", "kind", "people"],
    "additionalProperties": False,
}
BARS = (
    Bar("grammar.step_share", f"{STREAMS} streams under a JSON schema: added time per step, "
        "relative to a step without", "", "lower", 0.15),
)  # fmt: skip


def generated(rig: Rig, texts: Sequence[str], options: Options) -> list[TimedAnswer]:
    """The answers. RigError unless each has all its tokens."""
    answers = together(rig.socket, [Ask(text, options) for text in texts])
    short = [one.tokens for one in answers if not one.whole]
    if short:
        raise RigError(f"answers ended early, after {short} tokens")
    return answers


def take(tiny: bool) -> Take:
    repeats, streams, new = (1, 2, 12) if tiny else (5, STREAMS, NEW_TOKENS)
    steps, examples = list[tuple[float, float]](), list[str]()
    with tuned() as (rig, client), mounted(client, slots=streams):
        writer = Writer.of(client)
        for repeat in range(repeats):
            texts = [writer.private(repeat, index, PROMPT_TOKENS) for index in range(streams)]
            plain: Options = {"temperature": 0, "max_tokens": new}
            unconstrained = generated(rig, texts, {**plain, "ignore_eos": True})
            constrained = generated(rig, texts, {**plain, "schema": SCHEMA})
            steps.append((step_s(constrained), step_s(unconstrained)))
            if not all(one.text.lstrip().startswith("{") for one in constrained):
                raise RigError(f"an answer does not match the schema: {constrained[0].text}")
            examples.append(constrained[0].text)
        measured = facts(client)
    measured |= {
        "bound_and_free_ms": [[round(1000 * one, 2) for one in pair] for pair in steps],
        "examples": examples,
    }
    return Take({"grammar.step_share": [round(a / b - 1, 4) for a, b in steps]}, measured)


SUITE = Suite("grammar", BARS, take)
