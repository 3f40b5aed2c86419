"""One client's socket: slow readers, readers that have stopped, and what is left of a client."""

import asyncio
import gc
import socket
import weakref
from collections.abc import AsyncIterator

import anyio
import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import SyscallError
from llmasos.kernel.backpressure import Received, UserLoad
from llmasos.kernel.connection.connection import Connection

pytestmark = pytest.mark.anyio
KICK_S = 0.3
GUARD_S = 20
REPLY = b"x" * 64 * limits.PROGRESS_BYTES


class Recorder:
    """What a connection tells of itself."""

    def __init__(self) -> None:
        self.errors: list[SyscallError] = []
        self.gone = asyncio.Event()

    def opened(self, connection: Connection) -> None:
        self.connection = connection
        connection.cancel_hello_timeout()

    def frame(self, received: Received) -> None:
        raise AssertionError(received)

    def refused(self, error: SyscallError) -> None:
        self.errors.append(error)

    def closed(self) -> None:
        self.gone.set()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def ends(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Recorder, socket.socket]]:
    """A connection, and the socket of its client."""
    monkeypatch.setattr(limits, "KICK_S", KICK_S)
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    recorder = Recorder()
    loop = asyncio.get_running_loop()
    with anyio.fail_after(GUARD_S), theirs:
        await loop.connect_accepted_socket(lambda: Connection(recorder), ours)
        yield recorder, theirs
        if not recorder.gone.is_set():
            recorder.connection.transport.abort()
            await recorder.gone.wait()


async def test_who_reads_slowly_is_not_disconnected(ends: tuple[Recorder, socket.socket]) -> None:
    """The whole reply takes many times KICK_S."""
    recorder, client = ends
    loop = asyncio.get_running_loop()
    begun = loop.time()
    recorder.connection.send(REPLY)
    left = len(REPLY)
    while left:
        tick = asyncio.Event()
        loop.call_later(KICK_S / 12, tick.set)
        await tick.wait()
        left -= len(await loop.sock_recv(client, 2 * limits.PROGRESS_BYTES))
    assert recorder.errors == []
    assert loop.time() - begun > 2 * KICK_S


async def test_who_has_stopped_reading_is_disconnected(
    ends: tuple[Recorder, socket.socket],
) -> None:
    recorder, _ = ends
    recorder.connection.send(REPLY)
    await recorder.gone.wait()
    assert "did not read its replies for 0.3 s" in recorder.errors[0].message


async def test_unread_bytes_are_counted_until_they_are_read(
    ends: tuple[Recorder, socket.socket],
) -> None:
    recorder, client = ends
    load, loop = UserLoad("ann"), asyncio.get_running_loop()
    recorder.connection.set_load(load)
    recorder.connection.send(REPLY)
    await asyncio.sleep(0)  # it is written at the end of a turn of the loop
    await asyncio.sleep(0)
    assert len(REPLY) // 2 < load.unread < len(REPLY)
    resumed = asyncio.Event()
    load.when_read(resumed.set)
    left = len(REPLY)
    while left:
        left -= len(await loop.sock_recv(client, left))
    await resumed.wait()
    assert load.unread == 0
    assert recorder.connection.has_read_all


async def test_a_client_that_has_gone_leaves_nothing_for_the_collector() -> None:
    """A full pass of the collector is rare: thousands of connections could wait for it."""
    gc.collect()
    gc.disable()
    try:
        gone = await _come_and_gone()
        for _ in range(3):  # the loop itself lets go of it
            await asyncio.sleep(0)
        assert gone() is None
    finally:
        gc.enable()


async def _come_and_gone() -> weakref.ref[Recorder]:
    """One that a connection refers to and that refers to it, as the kernel's do."""
    ours, theirs = socket.socketpair()
    recorder = Recorder()
    with anyio.fail_after(GUARD_S):
        await asyncio.get_running_loop().connect_accepted_socket(lambda: Connection(recorder), ours)
        theirs.close()
        await recorder.gone.wait()
    return weakref.ref(recorder)
