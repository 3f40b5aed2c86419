"""What a JSON schema costs a step of sixteen streams, beside the same prompts without one.

The schema asks for more than fits the answer, so both sides make the same number of tokens; a step
is timed while all of them speak.
"""

from collections.abc import Sequence

from llmasos.userland.sdk.prompt import Options

from .answers import Answer, step_s
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
    Bar("grammar.step_share", f"{STREAMS} streams under a JSON schema: added time per step, as a "
        "part of the step without", "", "lower", 0.15),
)  # fmt: skip


def spoken(rig: Rig, texts: Sequence[str], options: Options) -> list[Answer]:
    """RigError unless each made all its tokens."""
    answers = together(rig.socket, [Ask(text, options) for text in texts])
    short = [one.tokens for one in answers if not one.whole]
    if short:
        raise RigError(f"answers ended by themselves after {short} tokens")
    return answers


def take(tiny: bool) -> Take:
    repeats, streams, new = (1, 2, 12) if tiny else (5, STREAMS, NEW_TOKENS)
    steps, examples = list[tuple[float, float]](), list[str]()
    with tuned() as (rig, client), mounted(client, slots=streams):
        writer = Writer.of(client)
        for repeat in range(repeats):
            texts = [writer.private(repeat, index, PROMPT_TOKENS) for index in range(streams)]
            plain: Options = {"temperature": 0, "max_tokens": new}
            free = spoken(rig, texts, {**plain, "ignore_eos": True})
            bound = spoken(rig, texts, {**plain, "schema": SCHEMA})
            steps.append((step_s(bound), step_s(free)))
            if not all(one.text.lstrip().startswith("{") for one in bound):
                raise RigError(f"the schema was not obeyed: {bound[0].text}")
            examples.append(bound[0].text)
        said = facts(client)
    said |= {
        "bound_and_free_ms": [[round(1000 * one, 2) for one in pair] for pair in steps],
        "examples": examples,
    }
    return Take({"grammar.step_share": [round(a / b - 1, 4) for a, b in steps]}, said)


SUITE = Suite("grammar", BARS, take)
