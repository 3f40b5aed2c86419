"""What a search gives back: each text once, and pages of before a change of the index, too."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import anyio
import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.memory import loading
from llmasos.kernel.memory.memory import Memory
from llmasos.kernel.memory.recall import RecallResult, Wanted, find
from llmasos.kernel.memory.recall_device import RecallDevice
from llmasos.kernel.memory.schema import REBUILD_TEXT_INDEXES, SCHEMA
from llmasos.kernel.memory.sweeping import Sweeper
from llmasos.kernel.memory.vector_index import VectorIndex
from llmasos.kernel.storage.database import Schema
from llmasos.kernel.storage.store import Store
from llmasos.kernel.supervisor import Supervisor
from tests.kernel.opened_memory import opened
from tests.kernel.test_memory import page, process, whole

pytestmark = pytest.mark.anyio


async def searched(memory: Memory, question: str, *, tokens: int = 0) -> RecallResult:
    table = await memory.opened(process(1))
    vectors = VectorIndex(
        memory, RecallDevice(None, Supervisor(anyio.create_task_group()))
    )  # it starts nothing
    return await find(memory, vectors, table, Wanted(question, 10, tokens))


async def written(memory: Memory, texts: Sequence[str]) -> None:
    await memory.write(process(1), [page(text) for text in texts])


@pytest.fixture
async def memory(tmp_path: Path) -> AsyncIterator[Memory]:
    store = Store(tmp_path)
    yield opened(store)
    store.close()


async def test_pages_of_one_text_are_one_hit_that_names_the_others(memory: Memory) -> None:
    await written(memory, ["bread again", "bread is baked", "bread again", "bread again"])
    hits = (await searched(memory, "bread")).hits
    found = {hit.page.text: sorted([hit.page.number, *hit.same]) for hit in hits}
    assert len(hits) == 2
    assert found == {"bread again": [0, 2, 3], "bread is baked": [1]}


async def test_copies_do_not_use_up_a_budget_of_tokens(memory: Memory) -> None:
    await written(memory, ["bread again"] * 5 + ["bread is here"])
    hits = (await searched(memory, "bread", tokens=6)).hits
    assert {hit.page.text for hit in hits} == {"bread again", "bread is here"}


async def test_more_copies_than_candidates_do_not_hide_another_page(memory: Memory) -> None:
    rest = "and many other words that make it a worse answer than the short ones are"
    await written(memory, [f"bread {rest}", *["bread bread"] * (limits.MATCHES + 50)])
    hits = (await searched(memory, "bread")).hits
    found = {hit.page.text: len(hit.same) for hit in hits}
    assert found == {"bread bread": limits.SAME_PAGES, f"bread {rest}": 0}


async def test_pages_of_before_are_found_by_the_new_words_after_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = SCHEMA.steps[: SCHEMA.steps.index(REBUILD_TEXT_INDEXES)]
    before = Schema("pages", steps, functions={**SCHEMA.functions, "indexed": str})
    with monkeypatch.context() as patch:
        patch.setattr(loading, "SCHEMA", before)
        store = Store(tmp_path)
        await written(opened(store), ["the compiler is in C++", "a letter c", "other words"] * 200)
        store.close()
    store = Store(tmp_path)
    memory = opened(store)
    async with anyio.create_task_group() as tasks:
        supervisor = Supervisor(tasks)
        sweeper = Sweeper(memory, VectorIndex(memory, RecallDevice(None, supervisor)), supervisor)
        assert "being rebuilt" in (await searched(memory, "C++")).note
        sweeper.resume()
        await sweeper.sweep_now()
        assert not memory.rebuilding
        tasks.cancel_scope.cancel()
    found = await searched(memory, "C++")
    assert "rebuilt" not in found.note
    assert found.hits[0].page.text == "the compiler is in C++"
    await whole(memory)
    store.close()


async def test_without_a_recall_process_the_vectors_are_off(memory: Memory) -> None:
    await written(memory, ["bread again"])
    vectors = VectorIndex(memory, RecallDevice(None, Supervisor(anyio.create_task_group())))
    assert vectors.state() == ("off", "")
    assert await vectors.stored(1) == -1
    await vectors.renew()


async def test_a_process_without_pages_finds_none(memory: Memory) -> None:
    assert (await searched(memory, "bread")).hits == []
