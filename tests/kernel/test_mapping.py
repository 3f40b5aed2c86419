"""Documents as pages: mapped again, changed on disk, written to, let go in part."""

import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.values import Role, SkippedFile
from llmasos.kernel.driver import Cut
from llmasos.kernel.memory import changing, documents, mapping
from llmasos.kernel.memory.erasing import drop
from llmasos.kernel.memory.memory import Memory
from llmasos.kernel.memory.rows import TurnRecord
from llmasos.kernel.memory.table import PageTable
from llmasos.kernel.storage.filesystem import Access
from llmasos.kernel.storage.store import Store
from tests.kernel.opened_memory import opened
from tests.kernel.test_memory import full, page, process, say, texts_of, whole

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(tmp_path / "state")
    yield store
    store.close()


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """Three pages: a line is one."""
    path = tmp_path / "book.md"
    path.write_text("one\ntwo\nthree\n")
    return path


async def cut(text: str) -> Sequence[Cut]:
    return [Cut(line, len(line.split())) for line in text.splitlines(keepends=True)]


async def mapped(
    memory: Memory, table: PageTable, path: Path, *, writable: bool = True
) -> tuple[tuple[int, int], mapping.Released]:
    """First page and count, and what is gone."""
    asked = mapping.MapRequest(f"/files{path}", writable, "m", cut)
    found, _, gone = await mapping.document(memory, table, asked)
    return (found.first, found.count), gone


async def count(memory: Memory, what: str = "pages") -> object:
    return (await memory.read(f"SELECT count(*) FROM {what}"))[0][0]


async def test_a_document_that_is_mapped_already_is_not_doubled(store: Store, book: Path) -> None:
    memory, one = opened(store), process(1)
    await say(memory, one, "hello")
    table = await memory.opened(one)
    first, _ = await mapped(memory, table, book)
    again, gone = await mapped(memory, table, book)
    assert first == again == (2, 3)
    assert (gone.spaces, gone.pages, table.next, await count(memory)) == ([], [], 5, 5)
    assert memory.tokens(1) == opened(store).tokens(1) == 2 + 2 + 1 + 3 - 1 - 1


async def test_a_document_that_changed_takes_the_place_of_what_it_was(
    store: Store, book: Path
) -> None:
    memory, one = opened(store), process(1)
    table = await memory.opened(one)
    await mapped(memory, table, book)
    await changing.replace(memory, table, 1, [page("my own words")])
    await changing.pin(memory, table, [2], True)
    asked = [page("what is three?"), page("a number", kind=Role.ASSISTANT, message=1)]
    roles = [Role.USER, Role.ASSISTANT]
    await memory.commit(one, TurnRecord(1, asked, [[0]], roles, [], {2: {"words": 1.0}}, (), ""))
    assert table.resident() == {2, 3, 4}
    (space,) = {found.space for found in table.ranges if found.source}
    own = table.page(1)
    book.write_text("four\nfive\n")
    place, gone = await mapped(memory, table, book)
    assert place == (5, 2)
    assert (gone.spaces, gone.pages) == ([space], [own])
    assert table.resident() == {3, 4}
    now = {3: "what is three?", 4: "a number", 5: "four\n", 6: "five\n"}
    for each in (memory, opened(store)):
        assert await texts_of(each, one) == now
        assert each.tokens(1) == sum(len(text.split()) for text in now.values())
    assert await count(memory, "marks") == 0
    await whole(memory)


async def test_who_did_not_map_it_again_keeps_the_text_as_it_was(store: Store, book: Path) -> None:
    memory, one, other = opened(store), process(1), process(2)
    table = await memory.opened(one)
    await mapped(memory, table, book)
    await memory.copy(one, [other])
    book.write_text("four\n")
    _, gone = await mapped(memory, table, book)
    assert (gone.spaces, gone.pages) == ([], [])
    assert await texts_of(memory, other) == {0: "one\n", 1: "two\n", 2: "three\n"}
    assert await texts_of(memory, one) == {3: "four\n"}


async def test_a_change_that_cannot_be_written_leaves_the_old_text(
    store: Store, book: Path
) -> None:
    memory, one, other = opened(store), process(1), process(2)
    table = await memory.opened(one)
    await mapped(memory, table, book)
    before, tokens = await texts_of(memory, one), memory.tokens(1)
    book.write_text("four\n")
    await mapped(memory, await memory.opened(other), book)  # the new text is stored already
    full(store, True)
    with pytest.raises(SyscallError) as caught:
        await mapped(memory, table, book)
    assert caught.value.errno is Errno.ENOSPC
    assert (await texts_of(memory, one), memory.tokens(1)) == (before, tokens)
    full(store, False)
    assert await texts_of(opened(store), one) == before
    await mapped(memory, table, book)
    assert await texts_of(memory, one) == {3: "four\n"}
    await whole(memory)


async def test_a_page_of_a_document_is_changed_for_one_alone(store: Store, book: Path) -> None:
    memory, one, other = opened(store), process(1), process(2)
    table, theirs = await memory.opened(one), await memory.opened(other)
    await mapped(memory, table, book)
    await mapped(memory, theirs, book)
    await changing.replace(memory, table, 1, [page("mine")])
    assert await texts_of(memory, one) == {0: "one\n", 1: "mine", 2: "three\n"}
    assert await texts_of(memory, other) == {0: "one\n", 1: "two\n", 2: "three\n"}
    assert book.read_text() == "one\ntwo\nthree\n"
    place, gone = await mapped(memory, table, book)  # as the file is: without what was written
    assert (place, len(gone.pages)) == ((3, 3), 1)
    assert list((await texts_of(memory, one)).values()) == ["one\n", "two\n", "three\n"]
    await whole(memory)


async def test_a_document_is_mapped_read_only_and_writable_again(store: Store, book: Path) -> None:
    memory, one = opened(store), process(1)
    table = await memory.opened(one)
    first, _ = await mapped(memory, table, book, writable=False)
    with pytest.raises(SyscallError, match="mapped read-only from /files/") as caught:
        await changing.replace(memory, table, 0, [page("mine")])
    assert caught.value.errno is Errno.EACCES
    assert (await mapped(memory, table, book))[0] == first
    again = opened(store)
    await changing.replace(again, await again.opened(one), 0, [page("mine")])


@pytest.mark.parametrize("whose", ["replaced", "unmapped", "reaped"])
async def test_a_document_some_pages_of_which_are_gone_is_mapped_whole_again(
    store: Store, book: Path, whose: str
) -> None:
    memory, one, other, third = opened(store), process(1), process(2), process(3)
    table = await memory.opened(one)
    await mapped(memory, table, book)
    if whose == "replaced":
        await changing.replace(memory, table, 1, [page("mine")])
    else:
        await mapping.process(
            memory, await memory.opened(other), table, range(1, 2), writable=False
        )
    if whose == "unmapped":
        gone = await mapping.unmap(memory, table, 0)
        assert (gone.spaces, len(gone.pages)) == ([], 2)
    elif whose == "reaped":
        await drop(memory, one)
    await mapped(memory, await memory.opened(third), book)
    assert await texts_of(memory, third) == {0: "one\n", 1: "two\n", 2: "three\n"}
    await whole(memory)


async def test_a_key_that_is_a_files_name_leaves_the_document(store: Store, book: Path) -> None:
    memory, one = opened(store), process(1)
    table = await memory.opened(one)
    await mapped(memory, table, book)
    for text in ("blue", "green"):
        await changing.put(memory, table, "book.md", [page(text, key="book.md")])
    assert list((await texts_of(memory, one)).values()) == ["one\n", "two\n", "three\n", "green"]


def test_links_and_what_is_hidden_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    for name in ("one.md", ".secret", "deep/two.md", ".git/config"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("a text")
    (folder / "empty.md").write_text("")
    os.symlink(folder / "one.md", folder / "deep" / "link.md")
    os.symlink(tmp_path, folder / "up")
    listing = documents.list_files(Access(), folder)
    found = documents.read(Access(), listing)
    assert [one.name for one in found] == ["one.md", "deep/two.md"]
    assert (listing.links, listing.hidden) == (2, 2)
    assert listing.skipped == [SkippedFile("empty.md", "is empty")]
