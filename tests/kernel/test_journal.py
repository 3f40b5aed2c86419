"""The journal: what was begun is known after a crash, the oldest goes first, nobody is held up."""

from pathlib import Path

import anyio
import pytest

from llmasos.kernel.journal import COUNTERS, Entry, Journal
from llmasos.kernel.store import Store
from llmasos.kernel.values import Event
from llmasos.kernel.watch import Follower, Followers, gap

pytestmark = pytest.mark.anyio


async def test_a_call_without_an_end_is_found_after_a_restart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    journal = Journal(store, lambda _: None)
    first = await journal.written(Entry("begin", 3, "alice", syscall="generate"))
    second = await journal.written(Entry("begin", 4, "alice", syscall="generate"))
    await journal.written(Entry("end", 3, "alice", first, "generate"))
    store.close()
    store = Store(tmp_path)
    again = Journal(store, lambda _: None)
    assert [event.seq for event in again.unfinished()] == [second]
    assert again.cursor == 3
    store.close()


async def test_old_segments_go_and_unfinished_calls_are_carried_forward(tmp_path: Path) -> None:
    store = Store(tmp_path)
    journal = Journal(store, lambda _: None, segment_bytes=100_000, total_bytes=500_000)
    begun = await journal.written(Entry("begin", 1, "alice", syscall="generate", note="first"))
    for _ in range(40):
        async with anyio.create_task_group() as tasks:
            for _ in range(256):
                tasks.start_soon(journal.written, Entry("call", 2, "alice", note="x" * 100))
    segments = sorted((tmp_path / "journal").glob("*.db"))
    assert segments[0].name != "00000001.db"
    assert journal.bytes < 1_000_000
    oldest = journal.history(0, 10)
    assert oldest[0].seq == begun  # carried, with its number
    assert oldest[1].seq > begun + 1  # its neighbours are gone
    store.close()
    store = Store(tmp_path)
    assert [event.note for event in Journal(store, lambda _: None).unfinished()] == ["first"]
    store.close()


async def test_history_goes_on_where_the_cursor_says(tmp_path: Path) -> None:
    store = Store(tmp_path)
    journal = Journal(store, lambda _: None)
    for n in range(25):
        await journal.written(Entry("call", note=str(n)))
    seen: list[str] = []
    cursor = 0
    while events := journal.history(cursor, 10):
        seen += [event.note for event in events]
        cursor = events[-1].seq
    assert seen == [str(n) for n in range(25)]
    store.close()


async def test_followers_hear_an_event_after_it_is_written(tmp_path: Path) -> None:
    store = Store(tmp_path)
    heard: list[tuple[int, bool]] = []

    def tell(event: Event) -> None:
        found = journal.history(event.seq - 1, 1)
        heard.append((event.seq, bool(found) and found[0].seq == event.seq))

    journal = Journal(store, tell)
    for _ in range(5):
        await journal.written(Entry("call"))
    assert heard == [(n, True) for n in range(1, 6)]
    store.close()


async def test_a_slow_follower_finds_a_gap_and_slows_nobody() -> None:
    followers: Followers[int] = Followers()
    slow: Follower[int] = Follower(lambda _: True, most=10)
    followers.add(slow)
    for n in range(25):
        followers.tell(n)
    assert await slow.batch(100) == list(range(15, 25))
    assert slow.missed == 15
    assert gap(15, 7).note == "15 events were not shown here; read them with since=7"
    slow.close()
    assert await slow.batch(100) == []


async def test_class_c_calls_are_counted_not_listed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    journal = Journal(store, lambda _: None)
    for _ in range(1000):
        journal.count("r:careful", "ps", "/proc", "default.csv:1")
    journal.flush()
    await journal.written(Entry("call"))
    store.close()
    store = Store(tmp_path)
    again = Journal(store, lambda _: None)
    assert len(again.history(0, 100)) == 1
    counters = store.open("counters.db", COUNTERS)
    assert store.read(counters, "SELECT sum(calls) FROM counters") == [(1000,)]
    store.close()
