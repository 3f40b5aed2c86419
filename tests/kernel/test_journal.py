"""The journal: what was begun is known after a crash, the oldest goes first, nobody is held up."""

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.values import Event
from llmasos.kernel.storage.journal import Entry, Journal
from llmasos.kernel.storage.store import Store
from llmasos.kernel.storage.tallies import SCHEMA as COUNTERS
from llmasos.kernel.watch import Follower, Followers, gap

pytestmark = pytest.mark.anyio


async def test_a_call_without_an_end_is_found_after_a_restart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    journal = Journal(store, lambda _: None)
    first = await journal.append_and_wait(Entry("begin", 3, "alice", syscall="generate"))
    second = await journal.append_and_wait(Entry("begin", 4, "alice", syscall="generate"))
    await journal.append_and_wait(Entry("end", 3, "alice", first, "generate"))
    store.close()
    store = Store(tmp_path)
    again = Journal(store, lambda _: None)
    assert [event.seq for event in again.unfinished()] == [second]
    assert again.cursor == 3
    store.close()


async def test_old_segments_go_and_unfinished_calls_are_carried_forward(tmp_path: Path) -> None:
    store = Store(tmp_path)
    journal = Journal(store, lambda _: None, owner="alice", total_bytes=500_000)
    begun = await journal.append_and_wait(
        Entry("begin", 1, "alice", syscall="generate", note="first")
    )
    for _ in range(40):
        async with anyio.create_task_group() as tasks:
            for _ in range(256):
                tasks.start_soon(journal.append_and_wait, Entry("call", 2, "alice", note="x" * 100))
    segments = sorted((tmp_path / "journal").glob("*.db"))
    assert segments[0].name != "00000001.db"
    assert journal.bytes < 500_000
    oldest = journal.history(0, 10)
    assert oldest[0].seq == begun  # carried, with its number
    assert oldest[1].seq > begun + 1  # its neighbours are gone
    store.close()
    store = Store(tmp_path)
    assert [event.note for event in Journal(store, lambda _: None).unfinished()] == ["first"]
    store.close()


async def flood(journal: Journal, owner: str, rows: int) -> None:
    """Many calls of a user, a connection's worth at once."""
    for _ in range(rows // 256):
        async with anyio.create_task_group() as tasks:
            for _ in range(256):
                tasks.start_soon(journal.append_and_wait, Entry("call", 2, owner, note="x" * 100))


async def test_a_user_who_floods_the_journal_evicts_nobody_else(tmp_path: Path) -> None:
    store = Store(tmp_path)
    journal = Journal(store, lambda _: None, owner="ann", total_bytes=1_000_000)
    for owner in ("", "ann", "bob"):
        await journal.append_and_wait(Entry("call", owner=owner, note="kept"))
    journal.rejected("", SyscallError(Errno.EACCES, "kept"))
    await journal.append_and_wait(Entry("device", note="kept"))
    await flood(journal, "eve", 8_192)
    await journal.drain()
    for owner in ("", "ann", "bob"):
        assert [one.owner for one in journal.history(0, 100_000) if one.note == "kept"].count(
            owner
        ) == (3 if owner == "" else 1)
    hers = [event for event in journal.history(0, 100_000, owner="eve") if event.owner == "eve"]
    assert 0 < len(hers) < 2_000  # her own, the newest
    assert journal.bytes < 1_000_000
    assert {event.owner for event in journal.history(0, 100_000, owner="bob")} == {"", "ann", "bob"}
    store.close()


async def test_the_journal_stays_within_its_room_when_users_come(tmp_path: Path) -> None:
    store = Store(tmp_path)
    journal = Journal(store, lambda _: None, owner="ann", total_bytes=4_000_000)
    for number in range(10):
        await flood(journal, f"user{number}", 3_072 if number < 2 else 512)
    await journal.drain()
    assert journal.bytes < 4_500_000
    events = Counter(event.owner for event in journal.history(0, 100_000))
    assert all(events[f"user{number}"] >= 128 for number in range(2, 10))
    assert all(0 < events[f"user{number}"] < 3_072 for number in range(2)), events
    store.close()


async def test_refusals_in_a_loop_are_counted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    journal = Journal(store, lambda _: None)
    await journal.start()
    subject = "u:eve r:careful"
    same = Entry("refused", 0, "eve", syscall="nice", object="/proc/1", subject=subject)
    assert {journal.refuse(same) for _ in range(10_000)} == {1}
    numbers = [journal.refuse(same._replace(object=f"/proc/{n + 2}")) for n in range(100_000)]
    await journal.drain()
    events = journal.history(0, 200_000)
    listed = [event for event in events if event.object.startswith("/proc/")]
    assert len(listed) <= 1 + limits.USER_REFUSAL_ROWS
    assert [n for n in numbers if n] == [event.seq for event in listed[1:]]
    [counted] = [event for event in events if event.note.startswith("and ")]
    assert counted.note == f"and {110_000 - len(listed)} more of {subject}"
    assert counted.owner == "eve"
    store.close()


@pytest.mark.parametrize("owner", ["ann", "eve"])
async def test_a_damaged_segment_is_set_aside_and_the_others_are_read(
    tmp_path: Path, owner: str
) -> None:
    store = Store(tmp_path)
    journal = Journal(store, lambda _: None, owner="ann", total_bytes=4_000_000)
    while len(segments := sorted((tmp_path / "journal").rglob("0*.db"))) < 3:
        await flood(journal, owner, 256)
    store.close()
    before = {event.seq for event in Journal(Store(tmp_path), lambda _: None).history(0, 100_000)}
    for path in (segments[0], segments[-1]):  # an old one and the newest
        path.write_bytes(b"no database" * 1000)
    store = Store(tmp_path)
    journal = Journal(store, lambda _: None, owner="ann", total_bytes=4_000_000)
    assert len(store.damages.all) == 2
    assert all(one.file.endswith(".damaged") for one in store.damages.all)
    number = await journal.append_and_wait(Entry("call", owner=owner))
    assert number > max(before)
    after = {event.seq for event in journal.history(0, 100_000)}
    assert number in after
    assert 0 < len(after) < len(before)
    store.close()


async def test_a_segment_that_breaks_while_it_is_used_is_left_for_a_new_one(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    journal = Journal(store, lambda _: None, owner="ann")
    await journal.append_and_wait(Entry("call", owner="ann", note="before"))
    path = tmp_path / "journal" / "00000001.db"
    with closing(sqlite3.connect(path)) as other:  # its log goes into the file
        assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    with path.open("r+b") as file:
        file.write(b"x" * path.stat().st_size)
    numbers = [await journal.append_and_wait(Entry("call", owner="ann")) for _ in range(3)]
    assert [event.seq for event in journal.history(0, 10)] == numbers
    store.close()


async def test_followers_get_events_of_all_users_in_their_order(tmp_path: Path) -> None:
    store = Store(tmp_path)
    told: list[int] = []
    journal = Journal(store, lambda event: told.append(event.seq), owner="ann")
    async with anyio.create_task_group() as tasks:
        for number in range(600):
            owner = ("ann", "bob", "eve")[number % 3]
            tasks.start_soon(journal.append_and_wait, Entry("call", owner=owner))
    assert told == list(range(1, 601))
    store.close()


async def test_counters_of_one_user_have_a_bound(tmp_path: Path) -> None:
    store = Store(tmp_path)
    journal = Journal(store, lambda _: None)
    for number in range(3 * limits.COUNTER_ROWS):
        journal.count(f"u:eve app:{number}", "read_mem", "/proc/0/mem", "default.csv:1")
    journal.count("u:bob r:careful", "ps", "/proc", "default.csv:1")
    await journal.drain()
    counters = store.open("counters.db", COUNTERS)
    rows = store.read(counters, "SELECT count(*), sum(calls) FROM counters")
    assert rows == [(limits.COUNTER_ROWS + 2, 3 * limits.COUNTER_ROWS + 1)]
    assert store.read(counters, "SELECT calls FROM counters WHERE syscall = 'ps'") == [(1,)]
    store.close()


async def test_history_goes_on_where_the_cursor_says(tmp_path: Path) -> None:
    store = Store(tmp_path)
    journal = Journal(store, lambda _: None)
    for n in range(25):
        await journal.append_and_wait(Entry("call", note=str(n)))
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
        await journal.append_and_wait(Entry("call"))
    assert heard == [(n, True) for n in range(1, 6)]
    store.close()


async def test_a_slow_follower_finds_a_gap_and_slows_nobody() -> None:
    followers: Followers[int] = Followers()
    slow: Follower[int] = Follower(lambda _: True, most=10)
    followers.add(slow)
    for n in range(25):
        followers.publish(n)
    assert await slow.batch(100) == list(range(15, 25))
    assert slow.missed == 15
    assert gap(15, 7).note == "15 events are missing here; read them with since=7"
    slow.close()
    assert await slow.batch(100) == []


async def test_class_c_calls_are_counted_not_listed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    journal = Journal(store, lambda _: None)
    for _ in range(1000):
        journal.count("r:careful", "ps", "/proc", "default.csv:1")
    journal.flush()
    await journal.append_and_wait(Entry("call"))
    store.close()
    store = Store(tmp_path)
    again = Journal(store, lambda _: None)
    assert len(again.history(0, 100)) == 1
    counters = store.open("counters.db", COUNTERS)
    assert store.read(counters, "SELECT sum(calls) FROM counters") == [(1000,)]
    store.close()


async def test_an_event_without_a_reserved_number_is_not_written(tmp_path: Path) -> None:
    store = Store(tmp_path)
    journal = Journal(store, lambda _: None)
    told: list[SyscallError | None] = []
    assert journal.append(Entry("boot", note="nobody waits")) == 0
    assert journal.append(Entry("boot", note="one waits"), told.append) == 0
    await journal.start()
    (error,) = told
    assert error is not None
    assert error.errno is Errno.EIO
    number = await journal.append_and_wait(Entry("boot", note="written"))
    assert [(event.seq, event.note) for event in journal.history(0, 10)] == [(number, "written")]
    store.close()


async def test_a_smaller_limit_takes_the_oldest_segments_of_the_largest_stream(
    tmp_path: Path,
) -> None:
    """Streams have grown when there were fewer of them, or the limit was larger."""
    store = Store(tmp_path)
    journal = Journal(store, lambda _: None, owner="alice", segment_bytes=100_000)
    await flood(journal, "alice", 6_000)
    await flood(journal, "bob", 1_000)
    before = len(list((tmp_path / "journal").glob("*.db")))
    store.close()
    store = Store(tmp_path)
    limit = 700_000
    journal = Journal(
        store, lambda _: None, owner="alice", segment_bytes=100_000, total_bytes=limit
    )
    assert journal.bytes > limit
    await flood(journal, "bob", 1_000)
    assert journal.bytes < limit + 100_000  # the segments that are being written
    assert len(list((tmp_path / "journal").glob("*.db"))) < before
    store.close()
