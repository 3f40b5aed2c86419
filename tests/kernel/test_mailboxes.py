"""What no client can time: a process that goes while a message to it is being written."""

from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint

from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.values import Send
from llmasos.kernel.process import mailboxes
from llmasos.kernel.process.mailboxes import Mailboxes
from llmasos.kernel.process.table import Process
from llmasos.kernel.storage.store import Store

pytestmark = pytest.mark.anyio


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
