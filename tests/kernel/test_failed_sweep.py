"""A sweep that fails, as while another program reads the pages, leaves its work pending."""

import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from anyio.to_thread import run_sync as in_thread

from llmasos.kernel.abi import limits
from llmasos.kernel.memory.erasing import drop
from llmasos.kernel.memory.recall_device import RecallDevice
from llmasos.kernel.memory.sweeping import Sweeper
from llmasos.kernel.memory.vector_index import VectorIndex
from llmasos.kernel.storage.store import Store
from llmasos.kernel.supervisor import Supervisor
from tests.kernel.opened_memory import opened
from tests.kernel.test_mapping import count
from tests.kernel.test_memory import page, process
from tests.waiting import until

pytestmark = pytest.mark.anyio


async def test_a_sweep_that_fails_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "SWEEP_S", 0.01)
    store = Store(tmp_path)
    memory = opened(store)
    await memory.write(process(1), [page(text) for text in ("one", "two", "three")])
    await drop(memory, process(1))
    with closing(sqlite3.connect(memory.database.path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM pages").fetchall()
        async with anyio.create_task_group() as tasks:
            jobs = Supervisor(tasks)
            sweeper = Sweeper(memory, VectorIndex(memory, RecallDevice(None, jobs)), jobs)
            sweeper.dirty()
            await in_thread(until, lambda: "still hold erased pages" in caplog.text)
            assert sweeper.busy
            reader.rollback()
    assert await count(memory, "derived") == 0
    store.close()
