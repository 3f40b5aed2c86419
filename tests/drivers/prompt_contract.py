"""What every engine promises of the prompts that it keeps. contract.py has all other promises."""

from collections.abc import Sequence

import anyio
import anyio.lowlevel
import pytest

from llmasos.kernel.abi.errors import DeviceFault
from llmasos.kernel.abi.values import Message, Role
from llmasos.kernel.driver import Beginning, Keep, Prompt
from tests.drivers.rig import PLENTY, Rig, check_end

TALK = [
    Message(Role.SYSTEM, "You are brief."),
    Message(Role.USER, "One fox."),
    Message(Role.ASSISTANT, "Two foxes 🦊!"),
    Message(Role.USER, " and a cat? "),
]


async def kept(rig: Rig, history: int, messages: Sequence[Message] = TALK) -> Prompt:
    """A prompt that the engine keeps; the test ends here for an engine that keeps none."""
    keep = rig.keep(history)
    prompt = await rig.engine.compose(messages, raw=False, fresh=0, keep=keep)
    if not prompt.kept:
        nothing = await rig.engine.extend(Beginning(keep.number, 1), TALK, fresh=0, keep=keep)
        assert nothing is None
        pytest.skip(f"{history}: this engine keeps no prompt, and composes whole conversations")
    assert prompt.kept == keep.number
    assert not prompt.tokens
    return prompt


async def same_as_whole(rig: Rig, prompt: Prompt | None, messages: Sequence[Message]) -> None:
    whole = await rig.engine.compose(messages, raw=False, fresh=0)
    assert prompt is not None
    assert (prompt.size, prompt.identity) == (whole.size, whole.identity)


async def a_kept_prompt_is_computed_like_its_tokens(rig: Rig) -> None:
    prompt = await kept(rig, 1_000_100)
    await same_as_whole(rig, prompt, TALK)
    whole = await rig.engine.compose(TALK, raw=False, fresh=0)
    first = await rig.run(prompt, history=1_000_100)
    check_end(first)
    assert first.fed == whole.size
    assert first.text == (await rig.run(whole)).text


async def a_prompt_is_extended_by_new_messages(rig: Rig) -> None:
    more = [Message(Role.ASSISTANT, "Yes."), Message(Role.USER, "x " * 600), Message(Role.USER, "")]
    for count in range(1, len(TALK) + 1):
        before = await kept(rig, 1_000_101)
        keep = rig.keep(1_000_101)
        beginning = Beginning(before.kept, count)
        after = await rig.engine.extend(beginning, more, fresh=2, keep=keep)
        await same_as_whole(rig, after, [*TALK[:count], *more])
        whole = await rig.engine.compose([*TALK[:count], *more], raw=False, fresh=2)
        assert after is not None
        assert [list(cuts) for cuts in after.cuts] == [list(cuts) for cuts in whole.cuts]
        assert after.kept == keep.number


async def the_engine_has_the_answer_of_a_kept_prompt(rig: Rig) -> None:
    new = Message(Role.USER, "And then?")
    conversation, prompt = list(TALK), await kept(rig, 1_000_102)
    for _ in range(3):
        outcome = await rig.run(prompt, history=1_000_102, max_tokens=5, ignore_eos=True)
        conversation += [Message(Role.ASSISTANT, outcome.text), new]
        beginning = Beginning(prompt.kept, len(conversation) - 2, answered=True)
        extended = await rig.engine.extend(beginning, [new], fresh=1, keep=rig.keep(1_000_102))
        await same_as_whole(rig, extended, conversation)
        assert extended is not None
        prompt = extended


async def a_prompt_that_is_cancelled_has_the_answer_so_far(rig: Rig) -> None:
    prompt = await kept(rig, 1_000_103)
    number = rig.admit(prompt, history=1_000_103, max_tokens=100, ignore_eos=True)
    rig.engine.grant(number, prompt.size + 3)
    await rig.say(number, 3)
    rig.engine.cancel(number)
    answer = (await rig.end(number)).text
    beginning = Beginning(prompt.kept, len(TALK), answered=True)
    after = await rig.engine.extend(beginning, TALK, fresh=0, keep=rig.keep(1_000_103))
    await same_as_whole(rig, after, [*TALK, Message(Role.ASSISTANT, answer), *TALK])


async def a_raw_prompt_is_extended_by_texts(rig: Rig) -> None:
    await kept(rig, 1_000_104)
    texts = [Message(Role.USER, text) for text in ("The quick", " brown", " fox", "")]
    keep = rig.keep(1_000_104)
    await rig.engine.compose(texts[:2], raw=True, fresh=0, keep=keep)
    after = await rig.engine.extend(
        Beginning(keep.number, 2), texts[2:], fresh=0, keep=rig.keep(1_000_104)
    )
    whole = await rig.engine.compose(texts, raw=True, fresh=0)
    assert after is not None
    assert (after.size, after.identity) == (whole.size, whole.identity)


async def a_beginning_that_is_not_kept_is_no_error(rig: Rig) -> None:
    before = await kept(rig, 1_000_105)
    keep = rig.keep(1_000_105)
    unknown = [
        (Beginning(10**9, 1), keep),
        (Beginning(before.kept, len(TALK) + 1), keep),
        (Beginning(before.kept, len(TALK), answered=True), keep),  # there is no answer yet
        (Beginning(before.kept, 1), Keep(keep.number, keep.history, "mallory")),
    ]
    for beginning, own in unknown:
        assert await rig.engine.extend(beginning, TALK, fresh=1, keep=own) is None
    after = await rig.engine.extend(Beginning(before.kept, 1), TALK, fresh=0, keep=keep)
    await same_as_whole(rig, after, [TALK[0], *TALK])


async def a_fork_begins_with_the_prompt_of_its_parent(rig: Rig) -> None:
    before = await kept(rig, 1_000_106)
    domain = "history 1000106"
    await rig.run(before, history=1_000_106, max_tokens=3, ignore_eos=True)
    for child in (1_000_107, 1_000_108):  # the parent goes on between them
        beginning = Beginning(before.kept, len(TALK))
        after = await rig.engine.extend(beginning, TALK[1:], fresh=0, keep=rig.keep(child, domain))
        await same_as_whole(rig, after, [*TALK, *TALK[1:]])
        assert after is not None
        check_end(await rig.run(after, history=child, domain=domain))
        await rig.engine.extend(beginning, TALK, fresh=0, keep=rig.keep(1_000_106))


async def lost(rig: Rig, prompt: Prompt, history: int) -> bool:
    """Whether a call is told that its prompt is gone, and nothing else happens."""
    outcome = await rig.run(prompt, history=history)
    if not outcome.last.lost:
        return False
    assert isinstance(outcome.last.error, DeviceFault)
    assert len(outcome.steps) == 1
    assert (outcome.fed, outcome.tokens, outcome.text) == (0, 0, "")
    whole = await rig.engine.compose(TALK, raw=False, fresh=0)
    check_end(await rig.run(whole, history=history))  # its slot is free
    return True


async def the_prompts_of_a_gone_process_are_dropped(rig: Rig) -> None:
    gone, other = await kept(rig, 1_000_109), await kept(rig, 1_000_110)
    rig.engine.forget(1_000_109)
    keep = rig.keep(1_000_109)
    assert await rig.engine.extend(Beginning(gone.kept, 1), TALK, fresh=0, keep=keep) is None
    assert await lost(rig, gone, 1_000_109)
    assert not await lost(rig, other, 1_000_110)


async def the_prompts_of_a_purged_domain_are_dropped(rig: Rig) -> None:
    other = await kept(rig, 1_000_112)
    prompt = await kept(rig, 1_000_111)
    keep = rig.keep(1_000_111)
    extending = rig.engine.extend(Beginning(prompt.kept, 1), TALK, fresh=0, keep=keep)
    late: list[Prompt | None] = []

    async def compose() -> None:
        late.append(await extending)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(compose)
        await anyio.lowlevel.checkpoint()  # the request is on its way
        rig.engine.purge("history 1000111")
    again = await rig.engine.extend(Beginning(keep.number, 1), TALK, fresh=0, keep=keep)
    assert again is None
    for one in filter(None, [prompt, *late]):
        assert await lost(rig, one, 1_000_111)
    assert not await lost(rig, other, 1_000_112)


async def a_call_keeps_its_prompt_until_it_ends(rig: Rig) -> None:
    prompt = await kept(rig, 1_000_113)
    whole = await rig.run(prompt, history=1_000_113, max_tokens=8, ignore_eos=True)
    number = rig.admit(prompt, history=1_000_113, max_tokens=8, ignore_eos=True)
    rig.engine.purge("history 1000113")
    rig.engine.forget(1_000_113)
    if "park" in rig.facts.capabilities:
        rig.engine.park(number, keep=False)
        rig.engine.unpark(number, 1)
    rig.engine.grant(number, PLENTY)
    outcome = await rig.end(number)
    assert outcome.tokens == whole.tokens
    check_end(outcome)


async def the_prompts_of_an_engine_that_died_are_lost(rig: Rig) -> None:
    """Not of PROMISES: it restarts the engine."""
    prompt = await kept(rig, 1_000_114)
    ups = rig.ear.ups
    await rig.engine.restart()
    await rig.ear.until(lambda: rig.ear.ups > ups)
    keep = rig.keep(1_000_114)
    assert await rig.engine.extend(Beginning(prompt.kept, 1), TALK, fresh=0, keep=keep) is None
    assert await lost(rig, prompt, 1_000_114)


PROMISES = [
    a_kept_prompt_is_computed_like_its_tokens,
    a_prompt_is_extended_by_new_messages,
    the_engine_has_the_answer_of_a_kept_prompt,
    a_prompt_that_is_cancelled_has_the_answer_so_far,
    a_raw_prompt_is_extended_by_texts,
    a_beginning_that_is_not_kept_is_no_error,
    a_fork_begins_with_the_prompt_of_its_parent,
    the_prompts_of_a_gone_process_are_dropped,
    the_prompts_of_a_purged_domain_are_dropped,
    a_call_keeps_its_prompt_until_it_ends,
]
