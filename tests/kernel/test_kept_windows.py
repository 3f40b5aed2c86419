"""What the engine keeps of a conversation is neither read nor sent again, and never out of date."""

import random
from collections.abc import AsyncIterator, Sequence
from itertools import count
from pathlib import Path
from typing import cast

import anyio
import anyio.lowlevel
import pytest

from llmasos.drivers import echo
from llmasos.drivers.echo import EchoEngine
from llmasos.kernel.abi.values import Generate, Message, Role, Sampling
from llmasos.kernel.driver import Prompt
from llmasos.kernel.memory import changing, layout
from llmasos.kernel.memory.composing import CallWindow, Composer, Outdated
from llmasos.kernel.memory.forgetting import forget
from llmasos.kernel.memory.paging import Pager, PagingPlan
from llmasos.kernel.memory.recall_device import RecallDevice
from llmasos.kernel.memory.vector_index import VectorIndex
from llmasos.kernel.process.table import Process
from llmasos.kernel.storage.store import Store
from llmasos.kernel.supervisor import Supervisor
from tests.drivers.rig import Rig
from tests.kernel.opened_memory import OWNER, opened
from tests.kernel.test_memory import page, process

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Talks:
    """Processes of one owner that talk with an echo engine of a small window."""

    def __init__(self, store: Store, rig: Rig) -> None:
        self.memory, self.rig = opened(store), rig
        # It has no device, so it starts no job.
        device = RecallDevice(None, Supervisor(anyio.create_task_group()))
        self.vectors = VectorIndex(self.memory, device)
        self.pager = Pager(self.memory, self.vectors)
        self.calls = count(1)

    async def plan(self, one: Process, *texts: str, raw: bool = False) -> PagingPlan:
        messages = [Message(Role.USER, text) for text in texts]
        request = Generate(one.pid, messages, sampling=Sampling(max_tokens=8), raw=raw)
        return await self.pager.prepare(one, request, self.rig.engine, self.rig.facts)

    async def turn(self, one: Process, *texts: str, raw: bool = False) -> PagingPlan:
        plan = await self.plan(one, *texts, raw=raw)
        outcome = await self.rig.run(plan.prompt, history=one.pid, domain=one.domain, max_tokens=8)
        assert outcome.last.error is None
        record = plan.turn(one, next(self.calls), outcome.last.cuts, OWNER)
        numbers = await self.memory.commit(one, record)
        self.pager.written(one, plan, record, numbers)
        return plan

    async def whole(self, one: Process, plan: PagingPlan, *, raw: bool = False) -> Prompt:
        """The prompt of a plan, composed from the pages in the database."""
        table = await self.memory.opened(one)
        numbers = [number for piece in plan.window for number in piece.numbers()]
        stored = await self.memory.stored(table, numbers)
        new = layout.trimmed(plan.fresh, plan.cuts, plan.kept)
        block = layout.recalled([hit.page for hit in plan.recalled])
        if block:
            new[0] = Message(new[0].role, f"{block}\n{new[0].content}")
        messages = [*layout.messages(plan.window, stored), *new]
        return await self.rig.engine.compose(messages, raw=raw, fresh=0)

    async def forget(self, one: Process, numbers: Sequence[int]) -> None:
        table = await self.memory.opened(one)
        purge = self.rig.engine.purge
        await forget(self.memory, self.vectors, table, numbers, lambda _, __: purge(OWNER))

    async def change_texts(self) -> None:
        """Change every page on disk, which the kernel never does: it shows who reads them."""
        sql = "UPDATE pages SET text = 'from the disk'"
        await self.memory.store.write(self.memory.database, [(sql, ())])

    def kept(self) -> str:
        """All texts that the engine keeps."""
        prompts = cast("EchoEngine", self.rig.engine).prompts
        found = [prompts.get(number, OWNER) for number in range(1, 3000)]
        messages = [m for one in found if one is not None for m in one.prompt.messages]
        return " ".join(message.content for message in messages)


@pytest.fixture
async def talks(tmp_path: Path) -> AsyncIterator[Talks]:
    store = Store(tmp_path)
    async with Rig(echo, tmp_path, tmp_path / "log", slots=2, window=512) as rig:
        yield Talks(store, rig)
    store.close()


async def test_a_turn_reads_no_text_of_the_turns_before(talks: Talks) -> None:
    """Only when the engine lost it."""
    one = process(1)
    await talks.turn(one, "the first")
    before = await talks.whole(one, await talks.turn(one, "the second"))
    await talks.change_texts()
    plan = await talks.plan(one, "the third")
    texts = ("the first", "the first", "the second", "the second", "the third")
    roles = (Role.USER, Role.ASSISTANT)
    messages = [Message(roles[at % 2], text) for at, text in enumerate(texts)]
    said = await talks.rig.engine.compose(messages, raw=False, fresh=0)
    assert before.size < plan.prompt.size == said.size
    assert plan.prompt.identity == said.identity
    assert not plan.prompt.tokens
    await talks.rig.engine.restart()
    again = await talks.plan(one, "the third")
    assert again.prompt.identity == (await talks.whole(one, again)).identity != said.identity


async def test_a_fork_reads_no_text_of_its_parent(talks: Talks) -> None:
    one, child = process(1), process(2)
    await talks.turn(one, "the first")
    expected = (await talks.plan(one, "and now?")).prompt.identity
    await talks.memory.copy(one, [child])
    await talks.change_texts()
    assert (await talks.plan(child, "and now?")).prompt.identity == expected
    assert (await talks.plan(one, "and now?")).prompt.identity == expected


async def test_a_recalled_page_is_not_read_again(talks: Talks) -> None:
    one = process(1)
    await talks.memory.write(one, [page("The word is xyzzy.")])
    await changing.pin(talks.memory, await talks.memory.opened(one), [0], True)
    plan = await talks.turn(one, "What is the word?")
    assert [hit.page.number for hit in plan.recalled] == [0]
    table = await talks.memory.opened(one)
    stored = await talks.memory.stored(table, table.resident())
    said = [*layout.messages(table.window, stored), Message(Role.USER, "and now?")]
    await talks.change_texts()
    plan = await talks.plan(one, "and now?")
    whole = await talks.rig.engine.compose(said, raw=False, fresh=0)
    assert plan.prompt.identity == whole.identity


async def test_a_request_that_recalls_nothing_is_composed_once(talks: Talks) -> None:
    """Though there are pages outside the window. Prompts are numbered as they are composed."""
    one = process(1)
    await talks.memory.write(one, [page("The word is xyzzy.")])
    plans = [await talks.turn(one, text) for text in ("hello", "good morning", "well then")]
    assert [list(plan.recalled) for plan in plans] == [[], [], []]
    kept = [plan.prompt.kept for plan in plans]
    assert kept == list(range(kept[0], kept[0] + 3))
    assert (await talks.turn(one, "What is the word?")).recalled


async def test_messages_that_are_empty_are_in_no_later_prompt(talks: Talks) -> None:
    one = process(1)
    for texts in (("", "hello"), ("one", "", "two"), ("",), ("three",), ("four",)):
        plan = await talks.turn(one, *texts)
        whole = await talks.whole(one, plan)
        assert plan.prompt.identity == whole.identity, texts
        table = await talks.memory.opened(one)
        await changing.evict(talks.memory, table, table.window[-1].pages)  # the answer


async def test_a_window_is_not_composed_once_a_page_was_forgotten(talks: Talks) -> None:
    """Its texts may have been read before."""
    one, other = process(1), process(2)
    await talks.turn(one, "The word is xyzzy.")
    await talks.turn(other, "hello")
    composer, engine = Composer(talks.memory), talks.rig.engine
    table = await talks.memory.opened(one)
    views = [CallWindow(one, table, talks.memory.forgets, raw=False) for _ in range(2)]
    table.kept = None
    await composer.compose(views[0], [], engine, fresh=0)  # reads the texts
    assert "xyzzy" in talks.kept()
    await talks.forget(one, [0])
    for view in views:
        with pytest.raises(Outdated):
            await composer.compose(view, [], engine, fresh=0)
        with pytest.raises(Outdated):
            await composer.compose_once(view, [], engine, fresh=0)
    assert "xyzzy" not in talks.kept()


async def test_a_window_is_not_composed_once_a_page_was_replaced(talks: Talks) -> None:
    one = process(1)
    await talks.turn(one, "hello")
    table = await talks.memory.opened(one)
    view = CallWindow(one, table, talks.memory.forgets, raw=False)
    table.kept = None
    await changing.replace(talks.memory, table, 0, [page("goodbye")])
    with pytest.raises(Outdated):
        await Composer(talks.memory).compose(view, [], talks.rig.engine, fresh=0)


async def test_raw_prompts_continue_raw_prompts(talks: Talks) -> None:
    one = process(1)
    for text, raw in (("a", True), ("b", True), ("c", False), ("d", True), ("e", False)):
        plan = await talks.turn(one, text, raw=raw)
        assert plan.prompt.identity == (await talks.whole(one, plan, raw=raw)).identity


async def test_a_prompt_that_was_lost_goes_to_the_engine_as_tokens_once(talks: Talks) -> None:
    one = process(1)
    await talks.turn(one, "hello")
    kept = await talks.plan(one, "and now?")
    talks.pager.lost(one)
    plan = await talks.turn(one, "and now?")
    assert len(plan.prompt.tokens) == kept.prompt.size
    assert plan.prompt.identity == kept.prompt.identity
    after = await talks.turn(one, "again")
    assert after.prompt.identity == (await talks.whole(one, after)).identity
    assert after.prompt.kept


async def changed(talks: Talks, one: Process, dice: random.Random, text: str) -> None:
    """One random change of a random page in the window."""
    table = await talks.memory.opened(one)
    resident = sorted(table.resident())
    if not resident:
        return
    number = dice.choice(resident)
    match dice.randrange(4):
        case 0:
            await changing.replace(talks.memory, table, number, [page(text)])
        case 1 if not table.pinned(number):
            await changing.evict(talks.memory, table, [number])
        case 2:
            await talks.forget(one, [number])
        case _:
            await changing.pin(talks.memory, table, [number], dice.random() < 0.2)


async def test_random_changes_never_leave_a_kept_prompt_out_of_date(talks: Talks) -> None:
    dice = random.Random(11)
    alive = [process(1)]
    words = ["fox", "bread", "river", "stone", "window", "letter"]
    evicted = recalled = 0
    for step in range(400):
        one = dice.choice(alive)
        match dice.randrange(12):
            case 0 | 1 | 2 | 3:
                await changed(talks, one, dice, f"changed {step}")
            case 4 if len(alive) < 6:
                alive.append(process(len(alive) + 1))
                await talks.memory.copy(one, alive[-1:])
            case 5 if dice.random() < 0.3:
                await talks.rig.engine.restart()
            case 6:
                await talks.plan(one, f"cancelled {step}")
            case _:
                texts = [" ".join(dice.choices(words, k=dice.randint(1, 30))) + "?"]
                texts += ["", f"number {step}"][: dice.choice([0, 0, 0, 1, 2])]
                plan = await talks.turn(one, *texts)
                evicted, recalled = evicted + len(plan.evicted), recalled + len(plan.recalled)
                assert plan.prompt.identity == (await talks.whole(one, plan)).identity
    assert evicted > 20
    assert recalled > 5


@pytest.mark.parametrize("late", range(8))
async def test_the_engine_keeps_no_page_that_was_forgotten_meanwhile(
    talks: Talks, late: int
) -> None:
    """Both at once: the forget begins so many steps of the event loop after the plan."""
    one = process(1)
    await talks.turn(one, "The word is xyzzy.")
    table = await talks.memory.opened(one)
    await talks.rig.engine.restart()  # the texts are read again

    async def forget_it() -> None:
        for _ in range(late):
            await anyio.lowlevel.checkpoint()
        await talks.forget(one, sorted(table.resident()))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(talks.plan, one, "What is the word?")
        tasks.start_soon(forget_it)
    plan = await talks.turn(one, "What is the word?")
    assert plan.window == []
    assert "xyzzy" not in talks.kept()


async def test_the_window_of_an_older_version_is_all_of_the_pages(tmp_path: Path) -> None:
    """Such a version stored no window."""
    store = Store(tmp_path)
    memory = opened(store)
    for text in ("first", "second"):
        await memory.write(process(1), [page(text)])
    await store.write(memory.database, [("UPDATE tables SET window = NULL", ())])
    store.close()
    store = Store(tmp_path)
    table = await opened(store).opened(process(1))
    assert [number for piece in table.window for number in piece.numbers()] == [0, 1]
    store.close()
