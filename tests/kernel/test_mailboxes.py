"""What no client can time: processes that go, readers that are cancelled, writes that fail."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint
from anyio.to_thread import run_sync as in_thread

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.values import Exit, Mail, Recv, Send
from llmasos.kernel.process import mailboxes
from llmasos.kernel.process.mailboxes import Mailboxes
from llmasos.kernel.process.table import Process
from llmasos.kernel.storage.store import Store
from tests.waiting import until

pytestmark = pytest.mark.anyio
GUARD_S = 20


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


@pytest.fixture
def process() -> Process:
    return Process(1, 0, "ann", "app", "echo", 0.0, True, ())


async def readers(boxes: Mailboxes, process: Process) -> list[asyncio.Task[Mail]]:
    """Two that wait for a message, after another connection was given the only one."""
    await boxes.send(process, Send(1, "hello"), "ann")
    assert (await boxes.receive(process, Recv(1), 1)).body == "hello"
    waiting = [asyncio.create_task(boxes.receive(process, Recv(1), n)) for n in (2, 3)]
    await anyio.wait_all_tasks_blocked()
    return waiting


async def test_mail_to_a_process_that_goes_meanwhile_goes_with_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    boxes = Mailboxes(store, "ann", None)
    process = Process(1, 0, "ann", "app", "echo", 0.0, True, ())
    await boxes.send(process, Send(1, "one"), "ann")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(boxes.send, process, Send(1, "hello"), "ann")
        await checkpoint()  # it is queued, and nobody has heard that it is written
        await boxes.drop(process)
    assert boxes.messages == 0
    assert store.peek("owners/ann/mail.db", "SELECT count(*) FROM mail") == [(0,)]
    store.close()
    store = Store(tmp_path)
    assert mailboxes.load(store, "ann").waiting == []
    store.close()


async def test_a_process_that_goes_while_its_first_message_is_numbered_gets_none(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    boxes = Mailboxes(store, "ann", None)
    process = Process(1, 0, "ann", "app", "echo", 0.0, True, ())

    async def send() -> None:
        with pytest.raises(SyscallError, match="was removed") as caught:
            await boxes.send(process, Send(1, "hello"), "ann")
        assert caught.value.errno is Errno.ESRCH

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        await checkpoint()
        process.reaped = True
        await boxes.drop(process)
    assert boxes.messages == 0
    assert store.peek("owners/ann/mail.db", "SELECT count(*) FROM mail") == [(0,)]
    store.close()


@pytest.mark.parametrize("cancelled_first", [False, True])
async def test_a_message_goes_to_the_next_reader_when_the_first_is_cancelled(
    store: Store, process: Process, cancelled_first: bool
) -> None:
    boxes = Mailboxes(store, "ann", None)
    first, second = await readers(boxes, process)
    if cancelled_first:
        first.cancel()
    boxes.requeue(1)  # its connection closes: the message waits again, and a reader is woken
    first.cancel()
    with anyio.fail_after(GUARD_S):
        assert (await second).body == "hello"
        with pytest.raises(asyncio.CancelledError):
            await first
    boxes.close()


async def test_a_reader_that_is_woken_without_a_message_can_be_cancelled(
    store: Store, process: Process
) -> None:
    boxes = Mailboxes(store, "ann", None)
    both = await readers(boxes, process)
    boxes.interrupt(process)
    for one in both:
        one.cancel()
    with anyio.fail_after(GUARD_S):
        ends = await asyncio.gather(*both, return_exceptions=True)
    assert [type(end) for end in ends] == [asyncio.CancelledError] * 2
    boxes.requeue(1)
    assert (await boxes.receive(process, Recv(1), 4)).body == "hello"
    boxes.close()


async def test_readers_of_a_removed_process_learn_that_it_has_ended(
    store: Store, process: Process
) -> None:
    boxes = Mailboxes(store, "ann", None)
    both = await readers(boxes, process)
    process.ending = Exit(1, 0, "TERM")
    await boxes.drop(process)
    with anyio.fail_after(GUARD_S):
        ends = await asyncio.gather(*both, return_exceptions=True)
    assert [end.errno for end in ends if isinstance(end, SyscallError)] == [Errno.ESRCH] * 2
    boxes.close()


async def test_a_mailbox_without_messages_leaves_no_file(store: Store, process: Process) -> None:
    boxes = Mailboxes(store, "ann", None)
    with pytest.raises(SyscallError, match="no message waits"):
        await boxes.receive(process, Recv(1, timeout_s=0), 1)
    await boxes.drop(process)
    boxes.close()
    assert not (store.directory / mailboxes.name("ann")).exists()


async def test_a_message_that_cannot_be_written_does_not_count(
    store: Store, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = Mailboxes(store, "ann", None)
    await boxes.send(process, Send(1, "x" * 100), "ann")
    monkeypatch.setattr(limits, "MAIL", 2)
    with monkeypatch.context() as full:
        full.setattr("llmasos.kernel.points._fails", "store.commit")
        full.setattr("llmasos.kernel.points._failures_left", 1)
        with pytest.raises(SyscallError):
            await boxes.send(process, Send(1, "lost"), "ann")
    await boxes.send(process, Send(1, "second"), "ann")  # two are allowed
    assert boxes.messages == 2
    boxes.close()


async def test_erasing_is_tried_again_when_another_program_reads_the_messages(
    store: Store, process: Process, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(limits, "MAIL_WIPE_S", 0.01)
    boxes = Mailboxes(store, "ann", None)
    await boxes.send(process, Send(1, "a secret"), "ann")
    path = store.directory / mailboxes.name("ann")
    with closing(sqlite3.connect(path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM mail").fetchall()
        await boxes.receive(process, Recv(1), 1)
        await boxes.receive(process, Recv(1, done=1, take=False), 1)
        await in_thread(until, lambda: "stay in its WAL file" in caplog.text)
    # Not the database: to open and close it here would take its locks away.
    log = path.with_name(f"{path.name}-wal")
    await in_thread(until, lambda: b"a secret" not in log.read_bytes())
    boxes.close()
