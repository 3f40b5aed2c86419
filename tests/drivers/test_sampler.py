"""Choices: greedy and drawn, under grammars, with bias and with their probabilities."""

import json
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from llmasos.drivers.llama import mount as llama
from llmasos.drivers.local.answers import Answers
from llmasos.drivers.local.picking import SamplingPicker
from llmasos.drivers.local.sampler import Bounds, Floats, sampler
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.abi.values import Finish, Logprob, Sampling, pack_bias
from llmasos.kernel.driver import Admission, Prompt, Step
from tests.drivers import cut_model
from tests.drivers.rig import PLENTY, Ear, Outcome, Rig, check_end
from tests.drivers.vocabulary import grammars, model, tokens

PERSON = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "maximum": 150, "minimum": 0},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    }
)
ASK = "Describe a person named Alice in JSON: name, age and tags."


class Scores:
    """A context whose model computed these scores."""

    def __init__(self, *best: int) -> None:
        size = model().vocab.size
        self.rows = np.random.default_rng(1).normal(0, 1, size).astype(np.float32)
        for rank, token in enumerate(best):
            self.rows[token] = 30 - rank

    def logits(self, index: int) -> Floats:
        assert index == 0
        return self.rows


def bounds() -> Bounds:
    return Bounds(model().vocab, grammars())


def choose(scores: Scores, **fields: Any) -> int:
    values: dict[str, Any] = {"temperature": 0.0, "seed": 1, **fields}
    made = sampler(Sampling(**values), bounds())
    return made.choose(scores, 0)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# --- one choice -------------------------------------------------------------------------------
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_best_that_the_grammar_allows_is_chosen(temperature: float) -> None:
    [x], [b], [a] = tokens("x"), tokens("b"), tokens("a")
    way: dict[str, Any] = {"temperature": temperature, "top_k": 1}
    assert choose(Scores(x, b, a), **way) == x
    assert choose(Scores(x, b, a), grammar="root ::= [ab]", **way) == b
    assert choose(Scores(a, b, x), grammar="root ::= [ab]", **way) == a


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_an_end_is_refused_until_the_grammar_may_end(temperature: float) -> None:
    end, [a] = min(model().vocab.ends), tokens("a")
    way: dict[str, Any] = {"temperature": temperature, "top_k": 1}
    assert choose(Scores(end, a), grammar='root ::= "a"', **way) == a
    assert choose(Scores(end, a), grammar='root ::= "a"?', **way) == end


def test_a_refused_token_is_never_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    accepted: list[int] = []
    accept = SamplingPicker.accept

    def listen(self: SamplingPicker, token: int) -> None:
        accepted.append(token)
        accept(self, token)

    monkeypatch.setattr(SamplingPicker, "accept", listen)
    [x], [a] = tokens("x"), tokens("a")
    assert choose(Scores(x, a), temperature=0.7, top_k=1, grammar='root ::= "a"') == a
    assert accepted == [a]


def test_ignoring_the_end_chooses_one_when_nothing_else_is_left() -> None:
    end, [a] = min(model().vocab.ends), tokens("a")
    assert choose(Scores(end, a), ignore_eos=True) == a
    assert choose(Scores(end, a), ignore_eos=True, grammar='root ::= ""') == end


def test_penalties_without_a_temperature_are_greedy() -> None:
    [a] = tokens("a")
    assert choose(Scores(a), repeat_penalty=1.3) == a


def test_bias_moves_a_choice_and_may_ban_it() -> None:
    [a], [b], [c] = tokens("a"), tokens("b"), tokens("c")
    assert choose(Scores(a, b), bias=pack_bias({a: -100})) == b
    assert choose(Scores(a, b), bias=pack_bias({c: 100})) == c
    assert choose(Scores(a, b), bias=pack_bias({b: 0.5})) == a
    assert choose(Scores(a, b), bias=pack_bias({b: 1.5})) == b
    assert choose(Scores(a, b), bias=pack_bias({b: 100}), grammar='root ::= "a"') == a


# --- probabilities ----------------------------------------------------------------------------
def told(scores: Scores, **fields: Any) -> Logprob:
    values: dict[str, Any] = {"temperature": 0.0, "seed": 1, **fields}
    made = sampler(Sampling(**values), bounds())
    made.choose(scores, 0)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert made.logprob is not None
    return made.logprob


def test_probabilities_are_those_of_the_model_before_anything_was_changed() -> None:
    [a], [b], [c] = tokens("a"), tokens("b"), tokens("c")
    scores = Scores(a, b, c)
    raw = scores.rows.astype(np.float64)
    expected = raw - np.log(np.exp(raw).sum())
    changed: dict[str, Any] = {
        "bias": pack_bias({a: -100}),
        "grammar": "root ::= [bc]",
        "temperature": 5.0,
        "top_k": 1,
    }
    one = told(scores, logprobs=3, **changed)
    assert (one.token, one.text) == (b, "b")
    assert one.logprob == pytest.approx(expected[b], abs=1e-4)
    assert [likely.token for likely in one.top] == [a, b, c]
    assert [likely.text for likely in one.top] == ["a", "b", "c"]
    best = [expected[token] for token in (a, b, c)]
    assert [likely.logprob for likely in one.top] == pytest.approx(best, abs=1e-4)


def test_no_alternatives_are_told_when_none_are_asked_for() -> None:
    [a] = tokens("a")
    assert told(Scores(a), logprobs=0).top == []
    assert choose(Scores(a)) == a


def test_a_part_of_a_character_is_told_with_a_replacement() -> None:
    [fox] = [token for token in tokens("🦊") if b"\xf0" in model().vocab.piece(token)][:1]
    assert "\ufffd" in told(Scores(fox), logprobs=1).text


# --- whole answers ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    log = tmp_path_factory.mktemp("sampler") / "log"
    async with Rig(llama, cut_model.path(), log, slots=8, window=512) as rig:
        yield rig


WAYS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8, "seed": 3},
    {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "seed": 4, "repeat_penalty": 1.2},
    {"ignore_eos": True},
]


@pytest.mark.anyio
@pytest.mark.parametrize("way", WAYS)
async def test_an_answer_under_a_schema_is_valid_json(way: dict[str, Any], rig: Rig) -> None:
    outcome = await rig.run(await rig.prompt(ASK), max_tokens=300, schema=PERSON, **way)
    assert outcome.last.finish is Finish.STOP
    person = json.loads(outcome.text)
    assert person.keys() == {"name", "age", "tags"}
    assert isinstance(person["age"], int)


@pytest.mark.anyio
async def test_answers_under_grammars_at_once_do_not_mix(rig: Rig) -> None:
    prompt = await rig.prompt("Say something.")
    words = ["red", "green", "blue", "black"]
    numbers = [
        rig.admit(prompt, slot, grammar=f'root ::= "{word}!"') for slot, word in enumerate(words)
    ]
    for number in numbers:
        rig.engine.grant(number, PLENTY)
    assert [(await rig.end(number)).text for number in numbers] == [f"{word}!" for word in words]


@pytest.mark.anyio
async def test_a_grammar_that_is_complete_ends_the_answer(rig: Rig) -> None:
    outcome = await rig.run(await rig.prompt(), grammar='root ::= "yes" | "no"', max_tokens=50)
    assert outcome.text in ("yes", "no")
    assert outcome.last.finish is Finish.STOP


@pytest.mark.anyio
async def test_an_empty_answer_may_be_all_that_a_grammar_allows(rig: Rig) -> None:
    for ignore_eos in (False, True):
        outcome = await rig.run(await rig.prompt(), grammar='root ::= ""', ignore_eos=ignore_eos)
        assert (outcome.text, outcome.tokens, outcome.last.finish) == ("", 0, Finish.STOP)


@pytest.mark.anyio
async def test_an_answer_may_be_cut_in_the_middle_of_its_grammar(rig: Rig) -> None:
    outcome = await rig.run(await rig.prompt(ASK), max_tokens=4, schema=PERSON)
    assert outcome.last.finish is Finish.LENGTH
    assert outcome.tokens == 4


ONLY_A = {"pattern": "^a$", "type": "string"}
UNIQUE = {"type": "array", "uniqueItems": True}


@pytest.mark.anyio
async def test_items_that_have_to_differ_are_looked_at_when_the_answer_is_complete(
    rig: Rig,
) -> None:
    """No grammar says that texts differ; these leave the model no choice."""
    prompt = await rig.prompt(ASK)
    twice = {**UNIQUE, "items": ONLY_A, "minItems": 2, "maxItems": 2}
    either = {"anyOf": [twice, {**twice, "uniqueItems": False}]}
    pair = {**UNIQUE, "prefixItems": [ONLY_A, {"const": "b"}], "items": False, "minItems": 2}
    outcome = await rig.run(prompt, schema=json.dumps(twice))
    assert json.loads(outcome.text) == ["a", "a"]
    assert outcome.last.finish is None
    assert isinstance(outcome.last.error, DeviceFault)
    assert outcome.last.error.message.endswith("the schema: / has the same item twice")
    check_end(outcome)
    for schema in (either, pair):
        outcome = await rig.run(prompt, schema=json.dumps(schema))
        assert outcome.last.finish is Finish.STOP
        check_end(outcome)
    outcome = await rig.run(prompt, max_tokens=2, schema=json.dumps(twice))
    assert outcome.last.finish is Finish.LENGTH


@pytest.mark.anyio
async def test_a_call_whose_answer_is_looked_at_can_be_cancelled_and_ends_once() -> None:
    schema = json.dumps(UNIQUE)
    for lost in (False, True):
        ear = Ear()
        answers = Answers(ear)
        answers.admit(Admission(1, 0, 1, "", Prompt([], ()), Sampling(schema=schema)))
        first, last, other = Step(1, "[1, "), Step(1, "1]", finish=Finish.STOP), Step(2, "other")
        assert answers.released([first]) == [first]
        assert answers.released([other, last]) == [other]
        if lost:
            answers.disconnected()
        else:
            answers.cancel(1)
        answers.admit(Admission(3, 0, 3, "", Prompt([], ()), Sampling(schema=schema)))
        assert answers.released([Step(3, "[1]", finish=Finish.STOP)]) == []
        await ear.until(partial(ear.steps, 3))
        assert ear.steps(3) == [Step(3, "[1]", finish=Finish.STOP)]
        cancelled = Step(1, "1]", finish=Finish.CANCELLED)
        assert ear.steps(1) == ([] if lost else [cancelled])


@pytest.mark.anyio
async def test_a_grammar_survives_parking(rig: Rig) -> None:
    prompt = await rig.prompt(ASK)
    whole = await rig.run(prompt, 1, max_tokens=60, schema=PERSON)
    number = rig.admit(prompt, 1, max_tokens=60, schema=PERSON)
    rig.engine.grant(number, len(prompt) + 7)
    await rig.say(number, 5)
    rig.engine.park(number, keep=True)
    rig.engine.unpark(number, 2)
    rig.engine.grant(number, PLENTY)
    assert (await rig.end(number)).text == whole.text


@pytest.mark.anyio
async def test_a_grammar_that_cannot_go_on_ends_its_call_only(rig: Rig) -> None:
    busy = rig.admit(await rig.prompt(), 1, max_tokens=30, ignore_eos=True)
    rig.engine.grant(busy, PLENTY)
    dead = r'root ::= "a" [^\x00-\U0010FFFF]'
    error = (await rig.run(await rig.prompt(), grammar=dead)).last.error
    assert error is not None
    assert "grammar" in error.message
    refused = (await rig.run(await rig.prompt(), grammar="root ::= foo")).last.error
    assert refused is not None
    assert "'foo' is not defined" in refused.message
    assert (await rig.end(busy)).tokens == 30


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"grammar": "root ::= ("}, "line 1, column 11"),
        ({"schema": '{"items": {"type": "foo"}}'}, "at /items"),
        ({"schema": "{"}, "line 1 column 2"),
        ({"grammar": 'root ::= "a"', "schema": "{}"}, "a grammar and a schema"),
        ({"bias": pack_bias({49152: 1.0})}, "bias of token 49152: 0 to 49151 exist"),
    ],
)
async def test_what_is_wrong_is_told_before_there_is_a_slot(
    fields: dict[str, Any], words: str, rig: Rig
) -> None:
    with pytest.raises(SyscallError) as error:
        await rig.engine.check(Sampling(**fields))
    assert error.value.errno is Errno.EINVAL
    assert words in error.value.message
    await rig.engine.check(Sampling(grammar='root ::= "a"', bias=pack_bias({49151: -100})))
    await rig.engine.check(Sampling())


@pytest.mark.anyio
async def test_a_grammar_that_compiles_for_long_holds_up_no_text(rig: Rig) -> None:
    wide = json.dumps({"properties": {f"p{number}": {} for number in range(1000)}})
    told: list[str] = []

    async def check() -> None:
        await rig.engine.check(Sampling(schema=wide))
        told.append("checked")

    async with anyio.create_task_group() as group:
        group.start_soon(check)
        await anyio.lowlevel.checkpoint()
        await rig.prompt()
        told.append("composed")
    assert told == ["composed", "checked"]


@pytest.mark.anyio
async def test_a_grammar_that_compiles_for_too_long_is_given_up(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "GRAMMAR_S", 0)
    with pytest.raises(SyscallError, match="not compiled within 0 s") as error:
        await rig.engine.check(Sampling(grammar='root ::= "late"'))
    assert error.value.errno is Errno.ETIMEDOUT


def logprobs(outcome: Outcome) -> Sequence[Logprob]:
    return [one for step in outcome.steps for one in step.logprobs]


@pytest.mark.anyio
async def test_every_token_is_told_once_with_its_probability(rig: Rig) -> None:
    prompt = await rig.prompt()
    plain = await rig.run(prompt, max_tokens=12)
    outcome = await rig.run(prompt, max_tokens=12, logprobs=4)
    assert outcome.text == plain.text
    assert logprobs(plain) == []
    told = logprobs(outcome)
    assert len(told) == outcome.tokens
    assert "".join(one.text for one in told) == outcome.text
    for one in told:
        assert one.logprob <= 0
        assert len(one.top) == 4
        assert one.top[0].token == one.token  # it was greedy
        assert sorted(one.top, key=lambda likely: -likely.logprob) == one.top
    assert [len(step.logprobs) for step in outcome.steps] == [step.tokens for step in outcome.steps]


@pytest.mark.anyio
async def test_logprobs_spell_the_text_that_was_shown(rig: Rig) -> None:
    """A character of several tokens comes with its last byte; a stop string cuts both."""
    prompt = await rig.prompt()
    grammar = 'root ::= "a 🦊 字 END b"'
    outcome = await rig.run(prompt, max_tokens=40, logprobs=1, grammar=grammar, stop=["END"])
    told = logprobs(outcome)
    assert outcome.text == "a 🦊 字 "
    assert b"".join(bytes(one.bytes) or one.text.encode() for one in told).decode() == outcome.text
    assert any(one.bytes for one in told)


@pytest.mark.anyio
async def test_a_token_that_was_held_back_is_told_when_it_is_said(rig: Rig) -> None:
    prompt = await rig.prompt()
    whole = await rig.run(prompt, max_tokens=5, ignore_eos=True, logprobs=1)
    number = rig.admit(prompt, max_tokens=5, ignore_eos=True, logprobs=1)
    rig.engine.grant(number, len(prompt))
    for _ in range(5):
        rig.engine.grant(number, 1)
    outcome = await rig.end(number)
    assert [one.token for one in logprobs(outcome)] == [one.token for one in logprobs(whole)]
    assert [len(step.logprobs) for step in outcome.steps] == [step.tokens for step in outcome.steps]


@pytest.mark.anyio
async def test_bias_changes_an_answer(rig: Rig) -> None:
    prompt = await rig.prompt()
    first = (await rig.engine.tokenize((await rig.run(prompt, max_tokens=1)).text))[0]
    other = await rig.run(prompt, max_tokens=8, bias=pack_bias({first: -100.0}), logprobs=0)
    assert first not in [one.token for one in logprobs(other)]
    loop = await rig.run(prompt, max_tokens=3, bias=pack_bias({first: 100.0}), logprobs=0)
    assert [one.token for one in logprobs(loop)] == [first] * 3
