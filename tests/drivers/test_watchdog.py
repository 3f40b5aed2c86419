"""A child that waits for a processor is slow; a busy loop or a deadlock is a hang."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llmasos.drivers.watchdog import Watchdog

pytestmark = pytest.mark.anyio
DEADLINE_S = 60.0  # a guard against hangs
LIMIT_S = 0.5
BUSY = "while True: pass"
COMPUTES = f"""
import time
end = time.process_time() + {LIMIT_S} * 0.3
while time.process_time() < end: pass
print("done", flush=True)
"""
DEADLOCK = """
import threading
lock = threading.Lock()
lock.acquire()
lock.acquire()
"""
START = """
import os
os.nice({})
print("ready", flush=True)
"""
SIXTH, QUARTER = START.format(8), START.format(5)  # of a processor, beside a busy process


@asynccontextmanager
async def child(code: str) -> AsyncGenerator[asyncio.subprocess.Process]:
    """A Python process on the first of our processors."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, preexec_fn=one_processor
    )
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


def one_processor() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


async def line(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None
    return await process.stdout.readline()


def computed_s(process: asyncio.subprocess.Process) -> float:
    return int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[0]) / 1e9


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="no delays of threads")
async def test_a_child_that_waits_for_a_processor_is_not_killed() -> None:
    expired = asyncio.Event()
    async with asyncio.timeout(DEADLINE_S), child(BUSY), child(SIXTH + COMPUTES) as slow:
        await line(slow)
        watchdog = Watchdog(slow.pid, LIMIT_S, expired.set)
        watchdog.arm()
        assert await line(slow) == b"done\n"
        watchdog.reset(work=False)
        assert not expired.is_set()


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="no delays of threads")
async def test_a_busy_loop_is_killed_after_its_share_of_a_processor() -> None:
    expired = asyncio.Event()
    async with asyncio.timeout(DEADLINE_S), child(BUSY), child(QUARTER + BUSY) as loop:
        await line(loop)
        before = computed_s(loop)
        Watchdog(loop.pid, LIMIT_S, expired.set).arm()
        await expired.wait()
        assert computed_s(loop) - before > LIMIT_S / 2


async def test_a_deadlock_is_killed_on_a_busy_processor() -> None:
    expired = asyncio.Event()
    async with asyncio.timeout(DEADLINE_S), child(BUSY), child(QUARTER + DEADLOCK) as dead:
        await line(dead)
        before = computed_s(dead)
        Watchdog(dead.pid, LIMIT_S, expired.set).arm()
        await expired.wait()
        assert computed_s(dead) - before < LIMIT_S / 2
