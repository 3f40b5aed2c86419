"""The blocking client: calls, streams, and every way in which a connection can fail."""

import os
import signal
import socket
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llmasos import LLMasOS
from llmasos.kernel.abi import limits, paths, wire
from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.paths import CONNECTION_FD_VARIABLE
from llmasos.userland import start
from llmasos.userland.client import BlockingClient, check_directory, inherited_connection
from tests.conftest import Machine


@pytest.fixture
def line(shared: Machine) -> Iterator[BlockingClient]:
    with BlockingClient(shared.paths.socket) as line:
        yield line


def spawn(line: BlockingClient) -> int:
    return line.call("spawn", v.Spawn("echo", app="test", keep=False), v.Spawned).pid


def generate(pid: int, text: str) -> v.Generate:
    return v.Generate(pid, [v.Message(v.Role.USER, text)], sampling=v.Sampling(temperature=0))


def test_hello_is_said_by_connecting(line: BlockingClient) -> None:
    assert line.welcome.profile is v.Profile.OPERATOR
    assert line.welcome.notices == []


def test_a_call_has_its_reply_as_a_value_of_the_table(line: BlockingClient) -> None:
    pid = spawn(line)
    (info,) = line.call("ps", v.Ps(pid), v.Processes).processes
    assert (info.pid, info.state, info.app) == (pid, v.State.READY, "test")


def test_a_stream_has_its_items_and_then_its_reply(line: BlockingClient) -> None:
    pid = spawn(line)
    stream = line.stream("generate", generate(pid, "one two"), v.Delta, v.Generated)
    assert stream.reply is None
    assert "".join(delta.text for delta in stream) == "one two"
    assert stream.reply is not None
    assert stream.reply.finish is v.Finish.STOP
    assert list(stream) == []


def test_calls_and_streams_mix_on_one_line(line: BlockingClient) -> None:
    one, two = spawn(line), spawn(line)
    first = line.stream("generate", generate(one, "first"), v.Delta, v.Generated)
    second = line.stream("generate", generate(two, "second"), v.Delta, v.Generated)
    assert line.call("ps", v.Ps(one), v.Processes).processes[0].pid == one
    assert "".join(delta.text for delta in second) == "second"
    assert "".join(delta.text for delta in first) == "first"


def test_more_calls_than_the_kernel_accepts_wait_for_each_other(line: BlockingClient) -> None:
    texts = ["abc" * count for count in range(2 * limits.CALLS_IN_FLIGHT)]
    asked = [
        line.stream("tokenize", v.Tokenize("echo", text), v.Nothing, v.Tokens) for text in texts
    ]
    for count, stream in reversed([*enumerate(asked)]):
        assert list(stream) == []
        assert stream.reply is not None
        assert len(stream.reply.tokens) == count


def test_a_cancelled_stream_ends_with_ecanceled(line: BlockingClient) -> None:
    stream = line.stream("attach", v.Attach(spawn(line)), v.Output, v.Exit)
    stream.cancel()
    with pytest.raises(SyscallError) as caught:
        list(stream)
    assert caught.value.errno is Errno.ECANCELED


def test_an_error_carries_errno_hint_and_the_syscall(line: BlockingClient) -> None:
    with pytest.raises(SyscallError) as caught:
        line.call("spawn", v.Spawn("nothing"), v.Spawned)
    error = caught.value
    assert error.errno is Errno.ENOENT
    assert "echo" in error.message
    assert "models alias nothing" in error.hint
    assert error.call == "spawn"


def test_nobody_at_the_socket_is_econnrefused_with_the_command_that_helps(tmp_path: Path) -> None:
    with pytest.raises(SyscallError) as caught:
        BlockingClient(tmp_path / "kernel.sock")
    assert caught.value.errno is Errno.ECONNREFUSED
    assert "daemon start" in caught.value.hint


def test_a_path_that_is_too_long_says_which_variable_to_set() -> None:
    with pytest.raises(SyscallError, match="LLMASOS_RUNTIME_DIR"):
        BlockingClient(Path("/tmp") / ("x" * 200))


def test_a_key_is_refused_because_there_are_none(shared: Machine) -> None:
    with pytest.raises(SyscallError) as caught:
        BlockingClient(shared.paths.socket, key="sk-123")
    assert caught.value.errno is Errno.EACCES


def test_the_placeholder_key_counts_as_none(shared: Machine) -> None:
    with BlockingClient(shared.paths.socket, key="YOUR_API_KEY") as line:
        assert len(line.welcome.notices) == 1


def test_a_call_over_a_frame_is_e2big_and_the_line_goes_on(shared: Machine) -> None:
    with BlockingClient(shared.paths.socket) as line:
        with pytest.raises(SyscallError, match="mem map PID FILE") as caught:
            line.call("send", v.Send(1, "x" * limits.REQUEST_BYTES), v.Sent)
        assert caught.value.errno is Errno.E2BIG
        assert line.call("stat", v.Nothing(), v.Stat).os_pid


# --- kernels that misbehave -------------------------------------------------------------------
@contextmanager
def kernel(path: Path, *answers: bytes) -> Generator[None]:
    """Someone at the socket who answers each frame with the next of these, then hangs up."""
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(path))
        door.listen()

        def serve() -> None:
            connection, _address = door.accept()
            with connection:
                for answer in answers:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(10)


WELCOME = wire.pack([wire.REPLY, 1, v.Welcome(1, "x", "me", v.Profile.OPERATOR, [])])


def test_a_kernel_that_hangs_up_is_epipe(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with kernel(path, WELCOME), BlockingClient(path) as line:
        with pytest.raises(SyscallError) as caught:
            line.call("stat", v.Nothing(), v.Stat)
        assert caught.value.errno is Errno.EPIPE
        assert "daemon logs" in caught.value.hint


def test_a_refusal_before_hello_is_what_is_raised(tmp_path: Path) -> None:
    fields = {"errno": 11, "message": "1024 clients are connected", "hint": "later"}
    path = tmp_path / "s"
    with kernel(path, wire.pack([wire.ERROR, 0, fields])), pytest.raises(SyscallError) as caught:
        BlockingClient(path)
    assert caught.value.errno is Errno.EAGAIN


def test_an_errno_of_a_newer_kernel_is_eio(tmp_path: Path) -> None:
    path = tmp_path / "s"
    error = wire.pack([wire.ERROR, 2, {"errno": 4242, "message": "new", "hint": ""}])
    fails = pytest.raises(SyscallError, match="EIO: new")
    with kernel(path, WELCOME, error), BlockingClient(path) as line, fails:
        line.call("stat", v.Nothing(), v.Stat)


def test_a_frame_that_makes_no_sense_is_eproto(tmp_path: Path) -> None:
    path = tmp_path / "s"
    fails = pytest.raises(wire.ProtocolError)
    with kernel(path, WELCOME, b"\x00\x00\x00\x01\xc1"), BlockingClient(path) as line, fails:
        line.call("stat", v.Nothing(), v.Stat)


@pytest.mark.parametrize(
    ("answers", "errno"),
    [
        ([wire.pack([wire.ERROR, 0, {"errno": 11, "message": "full"}])], Errno.EAGAIN),
        ([WELCOME], Errno.EPIPE),
        ([WELCOME, b"\x00\x00\x00\x01\xc1"], Errno.EPROTO),
        ([WELCOME, wire.pack([wire.REPLY, 2, {}])], Errno.EPROTO),  # not the reply of `stat`
    ],
    ids=["refused", "closed", "malformed", "incomplete"],
)
@pytest.mark.parametrize("blocking", [True, False])
def test_both_clients_fail_alike(
    tmp_path: Path, answers: list[bytes], errno: Errno, blocking: bool
) -> None:
    path = tmp_path / "s"
    with kernel(path, *answers), pytest.raises(SyscallError) as caught:
        if blocking:
            with BlockingClient(path) as line:
                line.call("stat", v.Nothing(), v.Stat)
        else:
            with LLMasOS(socket=path) as client:
                client.stat()
    assert caught.value.errno is errno


def test_what_a_signal_handler_sends_follows_the_frame_that_it_interrupted() -> None:
    ours, theirs = socket.socketpair()
    body, main, sent = "x" * 4_000_000, threading.get_ident(), threading.Event()
    received = list[list[Any]]()

    def serve() -> None:
        frames = wire.Frames()
        theirs.sendall(WELCOME)
        hello = next(iter(frames.feed(theirs.recv(65536))))
        received.append(wire.unpack(hello))
        first = theirs.recv(1000)  # the main thread is in the midst of a frame now
        signal.pthread_kill(main, signal.SIGUSR1)
        sent.wait(10)
        received.extend(map(wire.unpack, frames.feed(first)))
        while len(received) < 3:
            received.extend(map(wire.unpack, frames.feed(theirs.recv(1 << 20))))
        theirs.sendall(wire.pack([wire.REPLY, 2, {}]))

    def interrupt(*_: object) -> None:
        client.send("kill", v.Kill(7))
        sent.set()

    thread, before = threading.Thread(target=serve), signal.signal(signal.SIGUSR1, interrupt)
    with ours, theirs:
        thread.start()
        try:
            with BlockingClient(ours) as client:
                client.call("send", v.Send(1, body), v.Nothing)
        finally:
            signal.signal(signal.SIGUSR1, before)
            thread.join(10)
    assert [frame[:3] for frame in received[1:]] == [[wire.CALL, 2, "send"], [wire.CALL, 3, "kill"]]
    assert received[1][3]["body"] == body


def test_ctrl_c_within_a_frame_cancels_the_call_and_the_next_one_works() -> None:
    ours, theirs = socket.socketpair()
    main, interrupted = threading.get_ident(), threading.Event()
    received = list[list[Any]]()

    def serve() -> None:
        frames = wire.Frames()
        theirs.settimeout(10)
        with theirs:
            theirs.sendall(WELCOME)
            received.extend(map(wire.unpack, frames.feed(theirs.recv(65536))))
            first = theirs.recv(1000)  # the main thread is in the midst of a frame now
            signal.pthread_kill(main, signal.SIGINT)
            interrupted.wait(10)
            received.extend(map(wire.unpack, frames.feed(first)))
            while len(received) < 4:
                received.extend(map(wire.unpack, frames.feed(theirs.recv(1 << 20))))
            theirs.sendall(wire.pack([wire.REPLY, 3, {}]))

    thread, before = threading.Thread(target=serve), signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with ours:
        thread.start()
        try:
            with BlockingClient(ours) as client:
                with pytest.raises(KeyboardInterrupt):
                    client.call("send", v.Send(1, "x" * 4_000_000), v.Nothing)
                interrupted.set()
                client.call("kill", v.Kill(7), v.Nothing)
        finally:
            signal.signal(signal.SIGINT, before)
            thread.join(10)
    sent = [[wire.CALL, 2, "send"], [wire.CANCEL, 2], [wire.CALL, 3, "kill"]]
    assert [frame[:3] for frame in received[1:]] == sent


# --- inherited connections, and places that somebody else made ------------------------------------
@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that has taken nothing yet: numbers of descriptors come again."""
    monkeypatch.setattr("llmasos.userland.client._claimed", {})


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("stale", ["", "no", "²", "-1", "99999", "9" * 40, "file"])
def test_a_stale_descriptor_is_no_connection_and_starts_no_daemon(
    shared: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stale: str
) -> None:
    with (tmp_path / "file").open("w") as file:
        monkeypatch.setenv(CONNECTION_FD_VARIABLE, str(file.fileno()) if stale == "file" else stale)
        monkeypatch.setenv("LLMASOS_RUNTIME_DIR", str(shared.paths.runtime))
        assert inherited_connection() is None
        assert not start.allowed()
        with BlockingClient() as line:  # by the path, then
            assert line.welcome.owner
        file.write("still open")


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("kind", [(socket.AF_INET, socket.SOCK_STREAM),
                                  (socket.AF_UNIX, socket.SOCK_DGRAM)])  # fmt: skip
def test_a_socket_of_another_kind_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, kind: tuple[socket.AddressFamily, socket.SocketKind]
) -> None:
    with socket.socket(*kind) as other:
        monkeypatch.setenv(CONNECTION_FD_VARIABLE, str(other.fileno()))
        assert inherited_connection() is None
        assert other.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == kind[1]  # and open


@pytest.mark.usefixtures("fresh")
def test_of_many_threads_one_takes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    number = theirs.detach()
    monkeypatch.setenv(CONNECTION_FD_VARIABLE, str(number))
    found = list[socket.socket | None]()
    together = threading.Barrier(16)

    def take() -> None:
        together.wait(10)
        found.append(inherited_connection())

    threads = [threading.Thread(target=take) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    [given] = [one for one in found if one is not None]
    with ours, given:
        assert given.fileno() == number
        assert not given.get_inheritable()


@pytest.mark.usefixtures("fresh")
def test_a_connection_is_taken_once_and_not_by_a_look(
    shared: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setenv(CONNECTION_FD_VARIABLE, str(theirs.fileno()))
        assert start.answers(shared.paths)  # by the path
        with BlockingClient(shared.paths.socket) as line:  # the given socket, not the inherited one
            assert line.welcome.owner
        given = inherited_connection()
        assert given is not None
        with given:
            assert given.fileno() == theirs.detach()
            assert inherited_connection() is None
            assert not start.allowed()


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The socket of a user who has named no place for it, and has no daemon."""
    for name in ("LLMASOS_RUNTIME_DIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("LLMASOS_STATE_DIR", str(tmp_path / "state"))
    return paths.find().socket


def test_a_place_that_somebody_else_made_gets_neither_key_nor_prompt(
    place: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    place.parent.symlink_to(elsewhere)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(place))
        stranger.listen()
        with pytest.raises(SyscallError, match="belongs to another user") as caught:
            BlockingClient(place)
        assert caught.value.errno is Errno.EACCES
        for autostart in (False, True):
            with pytest.raises(SyscallError, match="belongs to another user"):
                LLMasOS("key", autostart=autostart)
        place.unlink()
        with pytest.raises(SyscallError, match="belongs to another user"):
            start.ensure(paths.find())
    assert list(elsewhere.iterdir()) == []  # nor anything else of ours


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_place_that_belongs_to_somebody_else_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(SyscallError) as caught:
        check_directory(place)  # nobody has made it, and nobody is spoken to who makes it now
    assert caught.value.errno is Errno.ECONNREFUSED
    place.parent.mkdir()
    check_directory(place)
    os.chown(place.parent, 65534, -1)
    with pytest.raises(SyscallError, match="belongs to another user") as caught:
        BlockingClient()
    assert caught.value.errno is Errno.EACCES
    assert "LLMASOS_RUNTIME_DIR" in caught.value.hint


def test_an_address_that_is_none_is_einval() -> None:
    for address in ("tls://h:99999", "tls://h", "tls://:1", "tls://h:x", "tls://[::1",
                    "tls://\u00e4" + 70 * "a" + ":1"):  # fmt: skip
        with pytest.raises(SyscallError, match="is not HOST:PORT"):
            LLMasOS("key", socket=address)
