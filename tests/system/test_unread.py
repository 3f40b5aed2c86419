"""A client that asks for much and reads nothing: the kernel's memory, the others, and its end."""

import socket
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno
from llmasos.kernel.abi.wire import CALL, ERROR, pack
from tests.conftest import Machine
from tests.system.raw import Raw, hung_up_on, raw

MIB = 1 << 20
GROWTH_BYTES = 128 * MIB  # twice USER_REPLY_BYTES, and as much again while replies are made
SOON_S = 20.0  # nobody waits for the flood to end, which it never does
FIRST = 1_000  # id of the first call of a flood


@contextmanager
def reader(path: Path) -> Generator[Raw]:
    """A connection that reads only when it is told to."""
    with raw(path, "operator") as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        yield client


def flood(client: Raw, calls: int, name: str, **fields: Any) -> None:
    """Send calls until all are sent or the kernel no longer reads."""
    client.socket.settimeout(0.05)
    try:
        for number in range(FIRST, FIRST + calls):
            client.socket.sendall(pack([CALL, number, name, fields]))
    except TimeoutError:
        return


@pytest.fixture
def pid(machine: Machine) -> int:
    """A process with much to read: half a megabyte a reply."""
    machine.start("--mount", "false")
    with raw(machine.paths.socket, "operator") as client:
        pid: int = client.call("spawn", model="echo")["pid"]
        client.call("write_mem", pid=pid, text="word " * 150_000)
    return pid


@pytest.mark.parametrize(("clients", "calls"), [(1, 2_000), (40, 32)])
def test_replies_that_nobody_reads_are_not_made(
    machine: Machine, pid: int, clients: int, calls: int
) -> None:
    """It was 1 MB for each call of each connection."""
    path = machine.paths.socket
    kernel = psutil.Process(machine.pid)
    before = kernel.memory_info().rss
    with ExitStack() as stack:
        for _ in range(clients):
            flood(stack.enter_context(reader(path)), calls, "read_mem", pid=pid)
        most = before
        with raw(path, "operator") as other:
            for _ in range(30):
                begun = time.monotonic()
                other.call("ps")
                other.call("read_mem", pid=pid, count=1)
                assert time.monotonic() - begun < SOON_S
                most = max(most, kernel.memory_info().rss)
    print(f"{clients} clients: the kernel grew by {(most - before) // MIB} MiB")
    assert most - before < GROWTH_BYTES


@pytest.fixture
def soon(machine: Machine) -> None:
    """Who does not read is disconnected after a second."""
    machine.limits(KICK_S=1.0)


@pytest.mark.usefixtures("soon")
def test_who_stops_reading_is_disconnected(machine: Machine, pid: int) -> None:
    with reader(machine.paths.socket) as client:
        flood(client, 200, "read_mem", pid=pid)
        client.socket.settimeout(limits.KICK_S * 3)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while True:  # it waits until the kernel reads on, which is never
                client.socket.sendall(pack([CALL, 7, "stat", {}]))
    assert any("did not read its replies for" in note for note in hung_up_on(machine.paths.socket))


def test_requests_of_one_user_are_bounded_and_the_next_is_refused_by_its_id(
    machine: Machine, pid: int
) -> None:
    """Calls that wait for an engine hold their requests, on whichever connection."""
    path = machine.paths.socket
    text = "\u6f22" * 999_999
    held = limits.USER_REQUEST_BYTES // len(text.encode())
    with raw(path, "operator") as one, raw(path, "operator") as another:
        one.call("unmount", image="echo")
        one.send("mount", image="echo", options={"load_s": 600.0})
        for number in range(held):
            client = one if number % 2 else another
            client.send("tokenize", model="echo", text=text)
            client.call("ps", pid=pid)  # what was sent before it has been taken
        for _ in range(limits.BAD_FRAMES + 1):
            number = one.send("tokenize", model="echo", text=text)
            kind, answered, error = one.answer(number)
            assert (kind, answered, error["errno"]) == (ERROR, number, Errno.EAGAIN)
            assert str(limits.USER_REQUEST_BYTES) in error["message"]
        another.socket.close()  # its calls end, and what they held is free
        deadline = time.monotonic() + SOON_S
        while not _taken(one, pid, text):
            assert time.monotonic() < deadline


def _taken(client: Raw, pid: int, text: str) -> bool:
    """Send a call, and whether it was not refused before the next one was answered."""
    number = client.send("tokenize", model="echo", text=text)
    probe = client.send("ps", pid=pid)
    first = client.receive()[1]
    if first == number:
        client.answer(probe)
    return bool(first == probe)
