"""What engines with prompt lookup promise: the same answers, sooner."""

import itertools
import json
from collections.abc import Awaitable, Callable
from typing import Any

from llmasos.kernel.abi.values import Finish
from tests.drivers.rig import PLENTY, Outcome, Rig, check_end

Promise = Callable[[Rig], Awaitable[None]]
REPEATED = "The red fox saw the old owl and the grey wolf. " * 4
VARIED = "Water boils at a hundred degrees; glass melts far above that. Why?"
TEXTS = (REPEATED, VARIED)
LONG: dict[str, Any] = {"max_tokens": 48, "ignore_eos": True}
# Any model repeats itself then.
REPEATING: dict[str, Any] = {**LONG, "grammar": 'root ::= ("the red fox saw the owl; ")+'}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"logprobs": 2},
    {"temperature": 0.3, "seed": 6, "repeat_penalty": 1.02, "top_k": 0},
    {"frequency_penalty": 0.1, "logprobs": 0},
)


async def both(rig: Rig, text: str, **sampling: Any) -> tuple[Outcome, Outcome]:
    """Without and with lookup."""
    prompt = await rig.prompt(text, raw=True)
    plain = await rig.run(prompt, **{**LONG, **sampling}, lookup=False)
    return plain, await rig.run(prompt, **{**LONG, **sampling}, lookup=True)


def drafted(outcome: Outcome) -> tuple[int, int]:
    """Drafted and accepted tokens."""
    steps = outcome.steps
    return sum(step.drafted for step in steps), sum(step.accepted for step in steps)


def check_same(plain: Outcome, quick: Outcome) -> None:
    """The steps of a call show no difference."""
    assert (quick.text, quick.tokens) == (plain.text, plain.tokens)
    assert (quick.last.finish, quick.last.cuts) == (plain.last.finish, plain.last.cuts)
    scores = [
        [one for step in outcome.steps for one in step.logprobs] for outcome in (plain, quick)
    ]
    assert scores[0] == scores[1]
    check_end(quick)


async def lookup_changes_no_token(rig: Rig) -> None:
    for text, way in zip(itertools.cycle(TEXTS), WAYS, strict=False):
        check_same(*await both(rig, text, **{"max_tokens": 32, **way}))
    check_same(*await both(rig, VARIED, **REPEATING, temperature=0.8, seed=5))


async def a_repetition_needs_fewer_steps(rig: Rig) -> None:
    plain, quick = await both(rig, VARIED, **REPEATING)
    check_same(plain, quick)
    asked, right = drafted(quick)
    assert asked >= right > quick.tokens / 2
    assert len(quick.steps) < len(plain.steps) / 2
    assert quick.fed == plain.fed
    assert drafted(plain) == (0, 0)


async def automatic_lookup_changes_no_token(rig: Rig) -> None:
    """Whether it drafts depends on measured times."""
    for text in TEXTS:
        prompt = await rig.prompt(text, raw=True)
        plain = await rig.run(prompt, **LONG, lookup=False)
        check_same(plain, await rig.run(prompt, **LONG))


async def a_draft_stays_within_any_grant(rig: Rig) -> None:
    prompt = await rig.prompt(REPEATED, raw=True)
    plain = await rig.run(prompt, **REPEATING, lookup=False)
    for grant in (1, 2, 5, 16):
        number = rig.admit(prompt, **REPEATING, lookup=True)
        granted = len(prompt)
        rig.engine.grant(number, granted)
        while rig.ear.steps(number)[-1:] == [] or not rig.ear.steps(number)[-1].finish:
            await rig.ear.until(lambda: spent(rig, number) == granted or ended(rig, number))  # noqa: B023
            assert spent(rig, number) <= granted
            rig.engine.grant(number, grant)
            granted += grant
        check_same(plain, await rig.end(number))


def spent(rig: Rig, number: int) -> int:
    return sum(step.fed + step.tokens for step in rig.ear.steps(number))


def ended(rig: Rig, number: int) -> bool:
    return any(step.finish for step in rig.ear.steps(number))


async def an_answer_ends_within_a_draft(rig: Rig) -> None:
    for most in range(36, 46, 3):
        check_same(*await both(rig, VARIED, **{**REPEATING, "max_tokens": most}))
    for stop in ("owl; the red fox saw the owl; t", "fox"):
        plain, quick = await both(rig, VARIED, **REPEATING, stop=[stop])
        check_same(plain, quick)
        assert quick.last.finish is Finish.STOP
        assert not quick.text.count(stop)
    text = 'root ::= "' + "the red fox saw the owl; " * 4 + '"'
    plain, quick = await both(rig, VARIED, grammar=text, ignore_eos=False)
    check_same(plain, quick)
    assert quick.last.finish is Finish.STOP
    assert drafted(quick)[1] > 0


async def a_full_window_ends_a_draft(rig: Rig) -> None:
    plain, quick = await both(rig, REPEATED * 10, **{**REPEATING, "max_tokens": 5000})
    check_same(plain, quick)
    assert quick.last.finish is Finish.LENGTH
    assert drafted(quick)[1] > 0


async def a_schema_is_kept_with_lookup(rig: Rig) -> None:
    text = f"{json.dumps({'name': 'Ann Lee', 'age': 31})}\n" * 5
    plain, quick = await both(rig, text, schema=json.dumps(PERSON), ignore_eos=False)
    check_same(plain, quick)


async def a_call_is_cancelled_between_drafts(rig: Rig) -> None:
    prompt = await rig.prompt(REPEATED, raw=True)
    long: dict[str, Any] = {**REPEATING, "max_tokens": 400}
    number = rig.admit(prompt, history=2_000_001, **long, lookup=True)
    rig.engine.grant(number, PLENTY)
    await rig.ear.until(lambda: any(step.accepted for step in rig.ear.steps(number)))
    rig.engine.cancel(number)
    outcome = await rig.end(number)
    assert outcome.last.finish is Finish.CANCELLED
    check_end(outcome)
    plain = await rig.run(prompt, **REPEATING, lookup=False)
    again = await rig.run(prompt, history=2_000_001, **REPEATING, lookup=True)
    assert again.text == plain.text


async def a_context_has_no_wrong_drafts(rig: Rig) -> None:
    """The next turn reuses as much as without lookup, and computes the same from it."""
    prompt = list(await rig.prompt(REPEATED, raw=True))
    turns: list[Outcome] = []
    for history, lookup in ((2_000_002, False), (2_000_003, True)):
        first = await rig.run(prompt, history=history, **REPEATING, lookup=lookup)
        whole = [*prompt, *await rig.engine.tokenize(first.text + VARIED)]
        turns.append(await rig.run(whole, history=history, **LONG, lookup=False))
    plain, quick = turns
    check_same(plain, quick)
    assert quick.steps[0].cached == plain.steps[0].cached


async def a_parked_call_goes_on_with_its_drafts(rig: Rig) -> None:
    prompt = await rig.prompt(REPEATED, raw=True)
    plain = await rig.run(prompt, **REPEATING, lookup=False)
    for keep in (True, False):
        number = rig.admit(prompt, **REPEATING, lookup=True)
        rig.engine.grant(number, len(prompt) + 40)
        await rig.ear.until(lambda: spent(rig, number) == len(prompt) + 40)  # noqa: B023
        rig.engine.park(number, keep=keep)
        rig.engine.unpark(number, 3)
        rig.engine.grant(number, PLENTY)
        outcome = await rig.end(number)
        assert outcome.text == plain.text
        assert drafted(outcome)[1] > 0


async def a_step_of_many_answers_or_a_prompt_has_no_drafts(rig: Rig) -> None:
    prompts = [await rig.prompt(f"{name}. {REPEATED}", raw=True) for name in "ABCDEF"]
    numbers = [rig.admit(one, slot, **REPEATING, lookup=True) for slot, one in enumerate(prompts)]
    for number in numbers:
        rig.engine.grant(number, PLENTY)
    for number in numbers:
        check_end(await rig.end(number))
    frames = [[step for step in frame if step.call in numbers] for frame in rig.ear.frames]
    crowded = [frame for frame in frames if sum(step.tokens > 0 for step in frame) > 4]
    feeding = [frame for frame in frames if any(step.fed for step in frame)]
    assert crowded
    assert feeding
    assert not any(step.drafted for frame in [*crowded, *feeding] for step in frame)


PROMISES: list[Promise] = [
    lookup_changes_no_token,
    a_repetition_needs_fewer_steps,
    automatic_lookup_changes_no_token,
    a_draft_stays_within_any_grant,
    an_answer_ends_within_a_draft,
    a_full_window_ends_a_draft,
    a_schema_is_kept_with_lookup,
    a_call_is_cancelled_between_drafts,
    a_context_has_no_wrong_drafts,
    a_parked_call_goes_on_with_its_drafts,
    a_step_of_many_answers_or_a_prompt_has_no_drafts,
]
