"""One client's socket: slow readers, readers that have stopped, and what is left of a client."""

import asyncio
import gc
import socket
import weakref
from collections.abc import AsyncIterator

import anyio
import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.wire import pack_error
from llmasos.kernel.backpressure import Received, UserLoad
from llmasos.kernel.connection.connection import Connection

pytestmark = pytest.mark.anyio
KICK_S = 0.3
GUARD_S = 20
REPLY = b"x" * 64 * limits.PROGRESS_BYTES


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


class Recorder:
    """What a connection tells of itself."""

    def __init__(self) -> None:
        self.errors: list[SyscallError] = []
        self.bodies: list[bytes] = []
        self.reply = b""  # to each frame
        self.gone = asyncio.Event()
        self.came = asyncio.Event()  # set by each frame

    def opened(self, connection: Connection) -> None:
        self.connection = connection
        connection.cancel_hello_timeout()

    def frame(self, received: Received) -> None:
        self.bodies.append(received.body)
        self.came.set()
        if self.reply:
            self.connection.send(self.reply)

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


async def read(client: socket.socket, size: int) -> None:
    while size:
        size -= len(await asyncio.get_running_loop().sock_recv(client, size))


async def test_nothing_is_read_or_refused_after_a_refusal(
    ends: tuple[Recorder, socket.socket],
) -> None:
    """Nor does a reply that is not read keep the connection open."""
    recorder, _ = ends
    connection = recorder.connection
    connection.send(REPLY)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for message in ("the first", "the second"):
        connection.refuse(SyscallError(Errno.EPROTO, message))
    connection.data_received(frame(b"late"))
    await recorder.gone.wait()
    assert [error.message for error in recorder.errors] == ["the first"]
    assert recorder.bodies == []


async def test_who_reads_after_a_refusal_gets_all_of_it(
    ends: tuple[Recorder, socket.socket],
) -> None:
    recorder, client = ends
    recorder.connection.send(REPLY)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    error = SyscallError(Errno.EPROTO, "no more")
    recorder.connection.refuse(error)
    await read(client, len(REPLY) + len(pack_error(0, error)))
    await recorder.gone.wait()
    assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
    assert recorder.errors == [error]


async def test_a_call_waits_until_its_user_has_read_enough(
    ends: tuple[Recorder, socket.socket],
) -> None:
    recorder, _ = ends
    load, unread = UserLoad("ann"), 2 * limits.USER_REPLY_BYTES
    recorder.connection.set_load(load)
    load.change_unread(unread)  # on another connection
    recorder.connection.data_received(frame(b"call"))
    assert recorder.bodies == []
    load.change_unread(-unread)
    await recorder.came.wait()
    assert recorder.bodies == [b"call"]


async def test_the_next_call_waits_until_the_reply_is_read(
    ends: tuple[Recorder, socket.socket],
) -> None:
    recorder, client = ends
    recorder.reply = REPLY
    recorder.connection.set_load(UserLoad("ann"))
    await asyncio.get_running_loop().sock_sendall(client, frame(b"one") + frame(b"two"))
    await recorder.came.wait()
    assert recorder.bodies == [b"one"]
    await read(client, 2 * len(REPLY))
    assert recorder.bodies == [b"one", b"two"]


async def test_calls_wait_for_the_end_of_the_first_pause(
    ends: tuple[Recorder, socket.socket],
) -> None:
    recorder, _ = ends
    recorder.connection.set_load(UserLoad("ann"))
    recorder.connection.pause(0.0)
    recorder.connection.pause(GUARD_S)
    for body in (b"one", b"two"):
        recorder.connection.data_received(frame(body))
    assert recorder.bodies == []
    await recorder.came.wait()
    assert recorder.bodies == [b"one", b"two"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ((limits.HELLO_BYTES + 1).to_bytes(4, "big"), "before hello"),
        ((limits.SKIP_BYTES + 1).to_bytes(4, "big"), "at most"),
    ],
)
async def test_a_frame_that_is_too_long_ends_the_connection(
    ends: tuple[Recorder, socket.socket], data: bytes, words: str
) -> None:
    recorder, client = ends
    if words == "at most":
        recorder.connection.set_load(UserLoad("ann"))
    await asyncio.get_running_loop().sock_sendall(client, data)
    await recorder.gone.wait()
    assert words in recorder.errors[0].message


async def test_a_long_frame_whose_id_cannot_be_read_ends_the_connection(
    ends: tuple[Recorder, socket.socket],
) -> None:
    recorder, client = ends
    recorder.connection.set_load(UserLoad("ann"))
    head = (limits.REQUEST_BYTES + 1).to_bytes(4, "big")
    await asyncio.get_running_loop().sock_sendall(client, head + bytes(100))
    await recorder.gone.wait()
    assert "its id cannot be read" in recorder.errors[0].message


def test_a_user_has_a_limited_number_of_calls_in_flight() -> None:
    load = UserLoad("ann")
    load.calls = limits.USER_CALLS - 1
    load.check_calls()
    load.calls += 1
    with pytest.raises(SyscallError, match="calls of ann are in flight") as caught:
        load.check_calls()
    assert caught.value.errno is Errno.EAGAIN


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
