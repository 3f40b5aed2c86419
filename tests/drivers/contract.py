"""What every engine promises, as test functions over a mounted engine.

The tests of each driver run all of `PROMISES` against their engine, those of `SMALL_PROMISES`
against one of four slots, two of them in a step, and a window of 256 tokens, and those of
`SENSE_PROMISES` against one whose model's answers make sense. A promise that needs
what an engine does not claim to be able to is skipped, with the reason.
"""

import functools
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.abi.values import Finish, Message, Role
from llmasos.kernel.driver import CAPABILITIES, Option
from tests.drivers import prompt_contract
from tests.drivers.rig import PLENTY, STORY, Outcome, Rig, check_end

SMALL: dict[str, Option] = {"slots": 4, "width": 2, "window": 256}
Promise = Callable[[Rig], Awaitable[None]]


def needs(*capabilities: str) -> Callable[[Promise], Promise]:
    """A promise of engines that can all of these."""
    assert set(capabilities) <= set(CAPABILITIES)

    def mark(promise: Promise) -> Promise:
        @functools.wraps(promise)
        async def kept(rig: Rig) -> None:
            missing = sorted(set(capabilities) - rig.facts.capabilities)
            if missing:
                pytest.skip(f"{name(promise)}: this engine does not claim {', '.join(missing)}")
            await promise(rig)

        return kept

    return mark


async def a_call_says_its_text_in_order_and_ends_once(rig: Rig) -> None:
    prompt = await rig.ask()
    outcome = await rig.run(prompt, max_tokens=40)
    assert outcome.text
    check_end(outcome)
    assert outcome.fed + outcome.steps[0].cached == prompt.size
    assert [step.cached for step in outcome.steps[1:]] == [0] * (len(outcome.steps) - 1)


async def nothing_is_computed_without_a_grant(rig: Rig) -> None:
    number = rig.admit(await rig.ask(), max_tokens=40)
    await rig.run(await rig.ask("Hello!"), slot=1)
    assert spent(rig, number) == 0
    rig.engine.grant(number, 5)
    await rig.ear.until(lambda: spent(rig, number) >= 5)
    await rig.run(await rig.ask("Hello again!"), slot=1)
    assert spent(rig, number) == 5
    rig.engine.cancel(number)
    assert (await rig.end(number)).last.finish is Finish.CANCELLED


def spent(rig: Rig, number: int) -> int:
    return sum(step.fed + step.tokens for step in rig.ear.steps(number))


async def any_grant_lets_a_call_go_on(rig: Rig) -> None:
    number = rig.admit(await rig.ask("One, two"), max_tokens=6, ignore_eos=True)
    for granted in itertools.count(1):
        rig.engine.grant(number, 1)
        await rig.ear.until(lambda: spent(rig, number) > granted - 1)  # noqa: B023
        assert spent(rig, number) == granted
        if rig.ear.steps(number)[-1].finish:
            break
    outcome = await rig.end(number)
    assert outcome.last.finish is Finish.LENGTH
    assert outcome.tokens == 6
    check_end(outcome)


async def a_cancelled_call_ends_at_the_next_step(rig: Rig) -> None:
    prompt = await rig.ask()
    number = rig.admit(prompt, max_tokens=1000, ignore_eos=True)
    rig.engine.grant(number, PLENTY)
    await rig.say(number, 3)
    before = len(rig.ear.steps(number))
    rig.engine.cancel(number)
    outcome = await rig.end(number)
    assert outcome.last.finish is Finish.CANCELLED
    # One step may have been on its way, one was being computed.
    assert len(outcome.steps) <= before + 3
    check_end(outcome)
    rig.engine.cancel(number)
    check_end(await rig.run(prompt, slot=0))
    assert len(rig.ear.steps(number)) == len(outcome.steps)


async def a_call_is_cancelled_before_its_first_grant(rig: Rig) -> None:
    number = rig.admit(await rig.ask())
    rig.engine.cancel(number)
    outcome = await rig.end(number)
    assert [step.finish for step in outcome.steps if step.finish] == [Finish.CANCELLED]
    assert (outcome.text, outcome.tokens, outcome.fed) == ("", 0, 0)
    check_end(outcome)


async def max_tokens_are_not_exceeded(rig: Rig) -> None:
    outcome = await rig.run(await rig.ask(), max_tokens=3, ignore_eos=True)
    assert outcome.last.finish is Finish.LENGTH
    assert outcome.tokens == 3


async def an_answer_ends_by_itself(rig: Rig) -> None:
    for most in (300, None):
        outcome = await rig.run(await rig.ask(), max_tokens=most)
        assert outcome.last.finish is Finish.STOP
        assert "<|" not in outcome.text
        check_end(outcome)


@needs("stop")
async def a_stop_string_ends_the_text_before_itself(rig: Rig) -> None:
    prompt = await rig.ask()
    whole = await rig.run(prompt, max_tokens=12, ignore_eos=True)
    for begin, size in ((1, 1), (3, 4), (6, 11)):
        stop = whole.text[begin : begin + size]
        outcome = await rig.run(prompt, max_tokens=12, ignore_eos=True, stop=[stop, "\0never"])
        assert outcome.text == whole.text[: whole.text.index(stop)]
        assert outcome.last.finish is Finish.STOP
        assert outcome.tokens <= whole.tokens
        check_end(outcome)


@needs("stop")
async def text_held_back_for_a_stop_string_is_told_at_the_end(rig: Rig) -> None:
    prompt = await rig.ask()
    whole = await rig.run(prompt, max_tokens=8, ignore_eos=True)
    stop = whole.text[-5:] + "\0never"
    outcome = await rig.run(prompt, max_tokens=8, ignore_eos=True, stop=[stop])
    assert outcome.text == whole.text
    assert outcome.last.finish is Finish.LENGTH
    check_end(outcome)


@needs("seed")
async def the_same_seed_gives_the_same_text(rig: Rig) -> None:
    prompt = await rig.ask("Tell me a long story about a fox.")
    wild: dict[str, Any] = {
        "temperature": 1.5,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "max_tokens": 16,
    }
    first, second, other = [
        (await rig.run(prompt, ignore_eos=True, seed=seed, **wild)).text for seed in (7, 7, 8)
    ]
    assert first == second
    assert first != other


async def greedy_text_is_the_same_each_time(rig: Rig) -> None:
    prompt = await rig.ask()
    assert len({(await rig.run(prompt, seed=seed)).text for seed in (1, 2, 3)}) == 1


async def every_way_of_sampling_is_accepted(rig: Rig) -> None:
    prompt = await rig.ask()
    ways: list[dict[str, Any]] = [
        {"temperature": 0.7, "top_k": 1},
        {"temperature": 1e-9, "repeat_penalty": 1.3},
        {"temperature": 0.0, "frequency_penalty": 2.0, "presence_penalty": -2.0},
        {"temperature": 100.0, "top_k": 2**31 - 1, "top_p": 0.0},
        {"temperature": 1.0, "min_p": 1.0, "seed": 2**32 - 2},
        {"temperature": 0.5, "repeat_penalty": 0.01, "ignore_eos": True},
    ]
    for way in ways:
        outcome = await rig.run(prompt, max_tokens=4, **way)
        assert outcome.last.error is None
        check_end(outcome)


async def calls_at_once_do_not_mix(rig: Rig) -> None:
    words = ["fox", "cat", "dog", "owl", "bee", "ant", "cow", "hen"]
    prompts = [await rig.ask(f"The {word} said: {word}!") for word in words]
    alone = [(await rig.run(prompt, max_tokens=6)).text for prompt in prompts]
    numbers = [rig.admit(prompt, slot, max_tokens=6) for slot, prompt in enumerate(prompts)]
    for number in numbers:
        rig.engine.grant(number, PLENTY)
    outcomes = [await rig.end(number) for number in numbers]
    for outcome in outcomes:
        check_end(outcome)
    # A batch of another shape may turn a near tie of a real model; mixed calls turn them all.
    same = sum(outcome.text == text for outcome, text in zip(outcomes, alone, strict=True))
    assert same >= len(words) - 2


@needs("park")
async def a_context_is_reused_by_its_own_history_only(rig: Rig) -> None:
    tokens = list(await rig.prompt())
    first = await rig.run(tokens, history=1_000_001)
    again = await rig.run(tokens, history=1_000_001)
    foreign = await rig.run(tokens, history=1_000_002)
    shorter = await rig.run([*tokens[:5], *tokens[6:]], history=1_000_002)
    cached = [outcome.steps[0].cached for outcome in (first, again, foreign, shorter)]
    assert cached == [0, len(tokens) - 1, 0, 5]
    assert again.fed == 1
    assert first.text == foreign.text


@needs("park")
async def what_was_cached_counts_against_the_grant(rig: Rig) -> None:
    tokens = await rig.prompt("Tell me a story about a fox.")
    await rig.run(tokens, slot=0, history=1_000_005)
    number = rig.admit(tokens, slot=0, history=1_000_005, max_tokens=4, ignore_eos=True)
    rig.engine.grant(number, 3)
    await rig.ear.until(lambda: bool(rig.ear.steps(number)))
    (told,) = rig.ear.steps(number)
    assert (told.cached, told.fed, told.tokens) == (len(tokens) - 1, 0, 0)
    rig.engine.grant(number, told.cached - 3 + 1 + 4)
    outcome = await rig.end(number)
    assert sum(step.fed for step in outcome.steps) == 1
    check_end(outcome)


@needs("park")
async def a_parked_call_goes_on_as_if_nothing_had_been(rig: Rig) -> None:
    tokens = await rig.prompt("Tell me a story about a fox.")
    whole = await rig.run(tokens, max_tokens=12, ignore_eos=True, temperature=0.8, seed=3)
    number = rig.admit(tokens, max_tokens=12, ignore_eos=True, temperature=0.8, seed=3)
    rig.engine.grant(number, len(tokens) + 4)
    await rig.say(number, 4)
    rig.engine.park(number, keep=True)
    rig.engine.grant(number, PLENTY)
    await rig.run(await rig.prompt("Hello!"), slot=0)
    assert len(Outcome(rig.ear.steps(number)).text) < len(whole.text)
    rig.engine.unpark(number, 2)
    outcome = await rig.end(number)
    assert outcome.text == whole.text
    check_end(outcome)


@needs("park")
async def a_call_whose_context_was_not_saved_is_computed_again(rig: Rig) -> None:
    """To be parked never ends a call."""
    tokens = await rig.prompt("Tell me a story about a fox.")
    whole = await rig.run(tokens, max_tokens=12, ignore_eos=True, temperature=0.8, seed=3)
    number = rig.admit(tokens, max_tokens=12, ignore_eos=True, temperature=0.8, seed=3)
    rig.engine.grant(number, len(tokens) + 4)
    await rig.say(number, 4)
    rig.engine.park(number, keep=False)
    rig.engine.grant(number, PLENTY)
    await rig.run(await rig.prompt("Hello!"), slot=0)
    before = Outcome(rig.ear.steps(number)).text
    assert whole.text.startswith(before)
    rig.engine.unpark(number, 2)
    outcome = await rig.end(number)
    assert (outcome.last.error, outcome.last.finish) == (None, Finish.LENGTH)
    assert outcome.text.startswith(before)
    assert outcome.tokens == 12
    # The fourth token of the answer was told, and not yet in the slot.
    assert outcome.recomputed == len(tokens) + 3
    assert outcome.fed == 2 * len(tokens) + 3
    check_end(outcome)
    # What is computed in one batch may turn a near tie of a real model.
    assert outcome.text == whole.text or not rig.facts.deterministic


@needs("park")
async def a_prompt_whose_context_was_not_saved_is_computed_again(rig: Rig) -> None:
    tokens = await rig.prompt("Tell me a story about a fox.")
    whole = await rig.run(tokens, max_tokens=6, ignore_eos=True)
    number = rig.admit(tokens, max_tokens=6, ignore_eos=True)
    rig.engine.grant(number, 5)
    await rig.ear.until(lambda: spent(rig, number) >= 5)
    for slot in (2, 3):
        rig.engine.park(number, keep=False)
        rig.engine.unpark(number, slot)
    rig.engine.grant(number, PLENTY)
    outcome = await rig.end(number)
    assert outcome.recomputed == 2 * len(tokens)
    assert outcome.fed == 5 + len(tokens)
    assert outcome.tokens == whole.tokens
    check_end(outcome)


async def a_context_without_room_is_computed_again(rig: Rig) -> None:
    """Not of PROMISES: for an engine that was mounted with room for one short context."""
    tokens = await rig.prompt("Tell me a story about a fox.")
    room = rig.facts.context_bytes + rig.facts.token_bytes * (len(tokens) + 8)
    assert room <= rig.facts.parked_bytes < 2 * room
    numbers = [rig.admit(tokens, slot, max_tokens=12, ignore_eos=True) for slot in range(4)]
    for number in numbers:
        rig.engine.grant(number, len(tokens) + 4)
        await rig.say(number, 4)
        rig.engine.park(number, keep=True)
    for number, slot in zip(numbers, (3, 2, 1, 0), strict=True):
        rig.engine.unpark(number, slot)
        rig.engine.grant(number, PLENTY)
    outcomes = [await rig.end(number) for number in numbers]
    for outcome in outcomes:
        assert (outcome.last.error, outcome.tokens) == (None, 12)
        check_end(outcome)
    assert [outcome.fed > len(tokens) for outcome in outcomes] == [False, True, True, True]
    assert [outcome.recomputed > 0 for outcome in outcomes] == [False, True, True, True]


@needs("park")
async def a_call_parked_before_its_first_grant_runs_later(rig: Rig) -> None:
    number = rig.admit(await rig.prompt())
    rig.engine.park(number, keep=True)
    await rig.run(await rig.prompt("Hello!"), slot=0)
    rig.engine.unpark(number, 1)
    rig.engine.grant(number, PLENTY)
    check_end(await rig.end(number))


@needs("park")
async def a_parked_call_can_be_cancelled(rig: Rig) -> None:
    number = rig.admit(await rig.prompt(), max_tokens=100, ignore_eos=True)
    rig.engine.grant(number, PLENTY)
    await rig.say(number, 2)
    rig.engine.park(number, keep=True)
    rig.engine.cancel(number)
    outcome = await rig.end(number)
    assert outcome.last.finish is Finish.CANCELLED
    check_end(outcome)


async def a_bad_slot_is_a_fault_of_that_call_only(rig: Rig) -> None:
    prompt = await rig.ask()
    busy = rig.admit(prompt, 0, max_tokens=50, ignore_eos=True)
    bad = [
        rig.admit(prompt, slot=0),
        rig.admit(prompt, slot=-1),
        rig.admit(prompt, slot=rig.facts.slots),
        rig.admit([], slot=1),
    ]
    await faults(rig, bad)
    rig.engine.grant(busy, PLENTY)
    assert (await rig.end(busy)).tokens == 50


async def faults(rig: Rig, calls: Sequence[int]) -> None:
    for number in calls:
        outcome = await rig.end(number)
        assert isinstance(outcome.last.error, DeviceFault)
        check_end(outcome)


@needs("park")
async def a_bad_token_is_a_fault_of_that_call_only(rig: Rig) -> None:
    tokens = list(await rig.prompt())
    bad = [
        rig.admit([*tokens, 2**31 - 1], slot=1),
        rig.admit([-1], slot=1),
        rig.admit([tokens[0]] * rig.facts.window, slot=1),
    ]
    await faults(rig, bad)
    assert (await rig.run(tokens, slot=1)).last.error is None


@needs("tokenize")
async def messages_are_cut_into_exact_pages(rig: Rig) -> None:
    texts = ["", "Hello, world.", "naïve 🦊 " * 300, "x" * 3000, "\n\n  a\tb " * 500, "字" * 900]
    messages = [Message(Role.USER, text) for text in ["old", *texts]]
    prompt = await rig.engine.compose(messages, raw=False, fresh=len(texts))
    assert ["".join(cut.text for cut in cuts) for cuts in prompt.cuts] == texts
    for cut in itertools.chain.from_iterable(prompt.cuts):
        assert 0 < cut.tokens <= limits.PAGE_TOKENS
        assert len(await rig.engine.tokenize(cut.text)) == cut.tokens


async def a_text_is_cut_like_a_message(rig: Rig) -> None:
    for text in ("", "Hello, world.", "naïve 🦊 " * 300, "x" * 3000):
        prompt = await rig.engine.compose([Message(Role.USER, text)], raw=True, fresh=1)
        assert list(await rig.engine.cut(text)) == list(prompt.cuts[0])


async def only_messages_that_exist_are_cut(rig: Rig) -> None:
    for fresh in (-1, 2):
        with pytest.raises(SyscallError) as error:
            await rig.engine.compose([Message(Role.USER, "hi")], raw=False, fresh=fresh)
        assert error.value.errno == Errno.EINVAL


@needs("tokenize")
async def a_raw_prompt_is_the_texts_joined(rig: Rig) -> None:
    messages = [Message(Role.USER, "The quick "), Message(Role.USER, "brown fox")]
    prompt = await rig.engine.compose(messages, raw=True, fresh=0)
    tokens = list(await rig.engine.tokenize("The quick brown fox"))
    assert list(prompt.tokens) in (tokens, [])
    assert prompt.size == len(tokens)
    assert prompt.cuts == []


async def the_facts_are_told(rig: Rig) -> None:
    facts = rig.facts
    assert 1 <= facts.width <= facts.slots
    assert facts.cells >= facts.window
    assert facts.block_tokens or facts.cells == facts.slots * facts.window
    assert facts.placement
    assert facts.capabilities <= set(CAPABILITIES)


async def a_full_window_ends_the_answer(rig: Rig) -> None:
    outcome = await rig.run(prompt := await rig.ask(), max_tokens=5000, ignore_eos=True)
    assert outcome.last.finish is Finish.LENGTH
    assert prompt.size + outcome.tokens == rig.facts.window == 256
    check_end(outcome)


@needs("park")
async def no_step_is_wider_than_the_width(rig: Rig) -> None:
    begin = len(rig.ear.frames)
    numbers = [rig.admit(await rig.prompt(f"Count to {slot}."), slot) for slot in range(4)]
    for number in numbers:
        rig.engine.grant(number, PLENTY)
    for number in numbers:
        check_end(await rig.end(number))
    frames = rig.ear.frames[begin:]
    widths = [len({step.call for step in frame if step.fed or step.tokens}) for frame in frames]
    assert max(widths) == 2


@needs("share")
async def a_beginning_is_computed_once_for_a_domain(rig: Rig) -> None:
    domain = f"alice {next(rig.numbers)}"
    prompts = [
        await rig.prompt(f"{STORY}{name}?", raw=True) for name in ("Ann", "Bob", "Eve", "Zoe")
    ]
    numbers = [rig.admit(tokens, slot, domain=domain) for slot, tokens in enumerate(prompts)]
    for number in numbers:
        rig.engine.grant(number, PLENTY)
    outcomes = [await rig.end(number) for number in numbers]
    for outcome in outcomes:
        check_end(outcome)
    fed = [outcome.fed for outcome in outcomes]
    assert fed[0] == len(prompts[0])
    # Where a step holds a part of a prompt only, a call does not wait for a short last part.
    same = next(at for at, tokens in enumerate(zip(*prompts, strict=False)) if len(set(tokens)) > 1)
    own = max(len(prompt) - same for prompt in prompts)
    assert max(fed[1:]) < limits.SHARE_TOKENS + own < len(prompts[0]) // 2


@needs("share")
async def nothing_is_shared_across_domains(rig: Rig) -> None:
    tokens = await rig.prompt(f"{STORY}Ann?", raw=True)
    await rig.run(tokens, slot=0, domain="alice")
    foreign = await rig.run(tokens, slot=1, domain="mallory")
    assert foreign.fed == len(tokens)
    own = await rig.run(tokens, slot=2, domain="alice")
    assert own.fed == 1


@needs("share")
async def a_context_survives_the_loss_of_its_slot(rig: Rig) -> None:
    """P-04: it comes back by a copy."""
    tokens = await rig.prompt(f"{STORY}Who are you?", raw=True)
    await rig.run(tokens, slot=0, history=1_000_010, domain="carol")
    texts: set[str] = set()
    for other in (1_000_011, 1_000_012):
        await rig.run(await rig.prompt(f"{other} {STORY}"), slot=0, history=other, domain="dave")
        again = await rig.run(tokens, slot=0, history=1_000_010, domain="carol")
        assert again.fed == 1
        texts.add(again.text)
    # The first time its last token was computed in a larger batch: that may turn a near tie.
    assert len(texts) == 1


@needs("park")
async def a_context_is_saved_and_dropped_as_ordered(rig: Rig) -> None:
    if not rig.facts.kept_bytes:
        pytest.skip("this engine saves no contexts of idle processes")
    common: dict[str, Any] = {"slot": 0, "share": 0, "max_tokens": 1, "ignore_eos": True}
    ann: dict[str, Any] = {"history": 1_000_060, "domain": "ann", **common}
    bob: dict[str, Any] = {"history": 1_000_061, "domain": "bob", **common}
    anns = await rig.prompt(f"Ann. {STORY}", raw=True)
    bobs = await rig.prompt(f"Bob. {STORY}", raw=True)
    await rig.run(anns, **ann)
    await rig.run(bobs, save=0, **bob)
    one, two, three = (next(rig.numbers) for _ in range(3))
    again = await rig.run(anns, save=one, **ann)
    assert again.fed == len(anns)  # it was not saved
    assert again.saved[one].bytes >= rig.facts.token_bytes * len(bobs)
    back = await rig.run(bobs, save=two, **bob)
    assert (back.fed, back.steps[0].source) == (1, one)
    await rig.run([*bobs, *bobs[:40]], save=0, **bob)  # more than a block of any engine
    rig.engine.drop(two)
    again = await rig.run(anns, save=three, **ann)
    assert (again.fed, again.steps[0].source) == (len(anns), 0)
    assert again.saved[three].beginnings == [one]
    assert again.saved[three].bytes > back.saved[two].bytes


@needs("park")
async def what_cannot_be_saved_is_reported(rig: Rig) -> None:
    if not rig.facts.kept_bytes:
        pytest.skip("this engine saves no contexts of idle processes")
    tokens = await rig.prompt(f"{STORY}Nothing.", raw=True)
    await rig.run(tokens, slot=0, history=1_000_062)
    rig.engine.forget(1_000_062)
    number = next(rig.numbers)
    outcome = await rig.run(await rig.prompt("Hello!"), slot=0, save=number)
    assert [(saved.number, saved.bytes) for saved in outcome.saved.values()] == [(number, 0)]


async def prompts_are_fed_as_ordered(rig: Rig) -> None:
    """Not of PROMISES: an engine that was given an order has one until it is restarted."""
    talker = rig.admit(await rig.prompt(), 0, max_tokens=200, ignore_eos=True)
    rig.engine.grant(talker, PLENTY)
    await rig.say(talker, 1)
    first, second = [
        rig.admit(await rig.prompt(f"{name}. {STORY}", raw=True), slot, max_tokens=4)
        for slot, name in ((1, "Ann"), (2, "Bob"))
    ]
    rig.engine.order([second], 0)
    rig.engine.grant(first, PLENTY)
    rig.engine.grant(second, PLENTY)
    assert (await rig.end(second)).last.error is None
    assert spent(rig, first) == 0
    rig.engine.cancel(first)
    await rig.end(first)
    # A call that is fed once has to be ordered again. Answers go on.
    tokens = await rig.prompt(f"Eve. {STORY}", raw=True)
    once = rig.admit(tokens, 3, max_tokens=4, ignore_eos=True)
    rig.engine.order([once], once)
    rig.engine.grant(once, 10)
    await rig.ear.until(lambda: spent(rig, once) == 10)
    rig.engine.grant(once, PLENTY)
    await rig.say(talker, Outcome(rig.ear.steps(talker)).tokens + 5)
    assert spent(rig, once) == 10
    rig.engine.order([once], 0)
    assert (await rig.end(once)).fed == len(tokens)
    rig.engine.cancel(talker)
    await rig.end(talker)
    # Alone, and not ordered: the engine waits for an order.
    alone = rig.admit(tokens, 0, max_tokens=4, ignore_eos=True)
    rig.engine.order([], 0)
    rig.engine.grant(alone, PLENTY)
    await rig.ear.until(lambda: rig.ear.steps(alone))
    assert spent(rig, alone) == 0
    rig.engine.order([alone], 0)
    check_end(await rig.end(alone))


@needs("share")
async def what_a_gone_process_had_saved_is_forgotten(rig: Rig) -> None:
    tokens = await rig.prompt(f"{STORY}Forget me.", raw=True)
    await rig.run(tokens, slot=0, history=1_000_020, domain="erin")
    await rig.run(await rig.prompt(f"Another. {STORY}"), slot=0, domain="frank")
    rig.engine.forget(1_000_020)
    again = await rig.run(tokens, slot=0, domain="erin")
    assert again.fed == len(tokens)


@needs("share")
async def nothing_of_a_purged_domain_is_gone_on_from(rig: Rig) -> None:
    tokens = await rig.prompt(f"{STORY}Purge me.", raw=True)
    await rig.run(tokens, slot=0, history=1_000_030, domain="heidi")
    await rig.run(await rig.prompt(f"Other. {STORY}"), slot=0, domain="ivan")  # saves the first
    await rig.run(tokens, slot=1, history=1_000_031, domain="heidi")
    rig.engine.purge("heidi")
    again = await rig.run(tokens, slot=1, history=1_000_031, domain="heidi")
    assert again.fed == len(tokens)
    other = await rig.run(await rig.prompt(f"Other. {STORY}"), slot=0, domain="ivan")
    assert other.fed == 1


@needs("park")
async def a_purge_leaves_the_slots_of_other_domains(rig: Rig) -> None:
    tokens = await rig.prompt(f"{STORY}Keep me.", raw=True)
    await rig.run(tokens, slot=0, history=1_000_060, domain="ivan")
    rig.engine.purge("heidi")
    again = await rig.run(tokens, slot=0, history=1_000_060, domain="ivan")
    assert again.fed == 1


async def begun(rig: Rig, text: str, slot: int, history: int) -> tuple[int, Sequence[int]]:
    """A call of judy's that has read its prompt and goes on when it is granted more."""
    tokens = await rig.prompt(f"{text} {STORY}", raw=True)
    number = rig.admit(tokens, slot, history, domain="judy", max_tokens=100, ignore_eos=True)
    rig.engine.grant(number, len(tokens) + 2)
    await rig.say(number, 1)
    return number, tokens


@needs("park")
async def what_calls_of_a_purged_domain_leave_is_gone_on_from_by_nobody(rig: Rig) -> None:
    running, read = await begun(rig, "Running.", 0, 1_000_040)
    parked, also_read = await begun(rig, "Parked.", 1, 1_000_041)
    rig.engine.park(parked, keep=True)
    rig.engine.purge("judy")
    rig.engine.unpark(parked, 1)
    for number in (running, parked):
        rig.engine.cancel(number)
        await rig.end(number)
    for slot, history, tokens in ((0, 1_000_040, read), (1, 1_000_041, also_read)):
        again = await rig.run(tokens, slot, history, domain="judy")
        assert again.fed == len(tokens)


@needs("share")
async def a_call_of_a_purged_domain_shares_nothing_while_it_runs(rig: Rig) -> None:
    running, read = await begun(rig, "Shared.", 0, 1_000_050)
    rig.engine.purge("judy")
    beside = await rig.run(read, 1, 1_000_051, domain="judy")
    assert beside.fed == len(read)
    rig.engine.cancel(running)
    await rig.end(running)


@needs("share")
async def who_waits_for_a_beginning_does_not_wait_for_a_stopped_call(rig: Rig) -> None:
    tokens = await rig.prompt(f"{STORY}Wait.", raw=True)
    first = rig.admit(tokens, 0, domain="grace")
    second = rig.admit(tokens, 1, domain="grace")
    rig.engine.grant(second, PLENTY)
    outcome = await rig.end(second)
    assert outcome.fed == len(tokens)
    rig.engine.grant(first, PLENTY)
    assert (await rig.end(first)).last.error is None


PROMISES: list[Promise] = [
    a_call_says_its_text_in_order_and_ends_once,
    nothing_is_computed_without_a_grant,
    any_grant_lets_a_call_go_on,
    a_cancelled_call_ends_at_the_next_step,
    a_call_is_cancelled_before_its_first_grant,
    max_tokens_are_not_exceeded,
    a_stop_string_ends_the_text_before_itself,
    text_held_back_for_a_stop_string_is_told_at_the_end,
    the_same_seed_gives_the_same_text,
    greedy_text_is_the_same_each_time,
    every_way_of_sampling_is_accepted,
    calls_at_once_do_not_mix,
    a_context_is_reused_by_its_own_history_only,
    what_was_cached_counts_against_the_grant,
    a_parked_call_goes_on_as_if_nothing_had_been,
    a_call_whose_context_was_not_saved_is_computed_again,
    a_prompt_whose_context_was_not_saved_is_computed_again,
    a_call_parked_before_its_first_grant_runs_later,
    a_parked_call_can_be_cancelled,
    a_bad_slot_is_a_fault_of_that_call_only,
    a_bad_token_is_a_fault_of_that_call_only,
    messages_are_cut_into_exact_pages,
    a_text_is_cut_like_a_message,
    only_messages_that_exist_are_cut,
    a_raw_prompt_is_the_texts_joined,
    the_facts_are_told,
    a_beginning_is_computed_once_for_a_domain,
    nothing_is_shared_across_domains,
    a_context_survives_the_loss_of_its_slot,
    a_context_is_saved_and_dropped_as_ordered,
    what_cannot_be_saved_is_reported,
    what_a_gone_process_had_saved_is_forgotten,
    nothing_of_a_purged_domain_is_gone_on_from,
    a_purge_leaves_the_slots_of_other_domains,
    what_calls_of_a_purged_domain_leave_is_gone_on_from_by_nobody,
    a_call_of_a_purged_domain_shares_nothing_while_it_runs,
    who_waits_for_a_beginning_does_not_wait_for_a_stopped_call,
    *prompt_contract.PROMISES,
]
SENSE_PROMISES: list[Promise] = [an_answer_ends_by_itself]
SMALL_PROMISES: list[Promise] = [a_full_window_ends_the_answer, no_step_is_wider_than_the_width]


def name(promise: Promise) -> str:
    return getattr(promise, "__name__", "")
