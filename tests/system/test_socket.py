"""Clients that are slow, rude, gone or not who they should be: the others do not notice."""

import os
import resource
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno
from llmasos.kernel.abi.wire import CALL, CANCEL, ERROR, ITEM, pack
from llmasos.kernel.connection.authentication import shares
from tests.system.daemon import Machine
from tests.system.raw import Raw, hung_up_on, raw

SOON_S = 20.0  # of an answer beside a flood that does not end by itself
USER = [{"role": "user", "content": "words " * 20}]


def endless(client: Raw) -> tuple[int, int]:
    """A generation that never ends by itself: its pid and the call's id."""
    pid = client.call("spawn", model="echo")["pid"]
    sampling = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 1900}
    number = client.send("generate", pid=pid, messages=USER, sampling=sampling)
    assert client.receive()[0] == ITEM
    return pid, number


@pytest.fixture
def slow_echo(machine: Machine) -> Machine:
    """An echo device of 50 tokens a second."""
    machine.start("--mount", "false")
    with raw(machine.paths.socket, "operator") as client:
        client.call("mount", image="echo", options={"rate": 50})
    return machine


def test_the_socket_is_its_owners_alone(machine: Machine) -> None:
    machine.start("--mount", "false")
    assert machine.paths.socket.stat().st_mode & 0o777 == 0o600
    assert machine.paths.runtime.stat().st_mode & 0o777 == 0o700
    assert machine.paths.state.stat().st_mode & 0o777 == 0o700
    for file in machine.paths.state.rglob("*.db*"):
        assert file.stat().st_mode & 0o077 == 0, file


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_another_user_is_told_whose_machine_it_is(machine: Machine) -> None:
    machine.start("--mount", "false")
    for path in (machine.paths.runtime, *machine.paths.runtime.parents):
        path.chmod(path.stat().st_mode | 0o111)  # let the socket be reached: the kernel must refuse
    machine.paths.socket.chmod(0o666)
    code = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX);"
        "s.connect(sys.argv[1]); print(s.recv(1000))"
    )
    line = [sys.executable, "-c", code, str(machine.paths.socket)]
    said = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert "this machine belongs to root, and you are nobody" in said


def test_hello_comes_first_and_once(machine: Machine) -> None:
    machine.start("--mount", "false")
    with raw(machine.paths.socket, None) as client:
        assert client.refused("ps")["errno"] == Errno.EPROTO
        error = client.refused("hello", version=99)
        assert error["errno"] == Errno.EPROTO
        assert f"version {limits.PROTOCOL_VERSION}, not 99" in error["message"]
        client.call("hello", version=limits.PROTOCOL_VERSION)
        assert client.refused("hello", version=limits.PROTOCOL_VERSION)["errno"] == Errno.EPROTO


def test_the_placeholder_of_the_examples_counts_as_no_key(machine: Machine) -> None:
    machine.start("--mount", "false")
    with raw(machine.paths.socket, None) as client:
        reply = client.call("hello", version=limits.PROTOCOL_VERSION, key="YOUR_API_KEY")
        assert "placeholder" in reply["notices"][0]


def test_who_never_says_hello_is_dropped(machine: Machine) -> None:
    machine.start("--mount", "false")
    with raw(machine.paths.socket, None) as client:
        kind, number, error = client.receive()
        assert (kind, number, error["errno"]) == (ERROR, 0, Errno.ETIMEDOUT)
        with pytest.raises(EOFError):
            client.receive()
    assert hung_up_on(machine.paths.socket) == [error["message"]]


def test_half_a_frame_is_dropped_and_the_others_are_served(machine: Machine) -> None:
    machine.limits(BODY_S=1.0)
    machine.start("--mount", "false")
    with raw(machine.paths.socket) as half, raw(machine.paths.socket) as good:
        half.socket.sendall(b"\x00\x00\x01\x00only the beginning")
        assert good.call("ps")["processes"] == []
        kind, _, error = half.receive()
        assert kind == ERROR
        assert "the rest of a frame" in error["message"]
        assert good.call("ps")["processes"] == []
    assert hung_up_on(machine.paths.socket) == [error["message"]]


def test_a_length_that_no_frame_has_ends_the_connection_with_the_numbers(machine: Machine) -> None:
    machine.start("--mount", "false")
    with raw(machine.paths.socket) as client:
        client.socket.sendall((limits.SKIP_BYTES + 1).to_bytes(4, "big"))
        _, number, error = client.receive()
        assert number == 0
        assert str(limits.SKIP_BYTES + 1) in error["message"]
        with pytest.raises(EOFError):
            client.receive()


def test_more_calls_in_flight_than_allowed_are_refused_one_by_one(slow_echo: Machine) -> None:
    with raw(slow_echo.paths.socket) as client:
        pid, _ = endless(client)
        waits = [client.send("wait", pid=pid) for _ in range(limits.CALLS_IN_FLIGHT + 3)]
        assert client.answer(waits[-1])[2]["errno"] == Errno.EAGAIN
        assert client.call("stat")["running"] == 1


def test_a_cancelled_call_ends_and_keeps_what_was_said(slow_echo: Machine) -> None:
    with raw(slow_echo.paths.socket) as client:
        pid, number = endless(client)
        client.socket.sendall(pack([CANCEL, number]))
        kind, _, error = client.answer(number)
        assert (kind, error["errno"]) == (ERROR, Errno.ECANCELED)
        pages = client.call("read_mem", pid=pid)["pages"]
        assert [page["kind"] for page in pages] == ["user", "assistant"]
        assert pages[1]["text"].startswith("wor")
        assert client.call("ps", pid=pid)["processes"][0]["state"] == "ready"


def test_a_vanished_client_frees_its_slot_and_its_process(slow_echo: Machine) -> None:
    with raw(slow_echo.paths.socket) as watcher:
        with raw(slow_echo.paths.socket) as client:
            kept, _ = endless(client)
            bound = client.call("spawn", model="echo", keep=False)["pid"]
            follower = watcher.send("attach", pid=bound)
        assert watcher.answer(follower)[2]["code"] == 129
        watcher.send("watch", since=0, pid=kept, kinds=["end"])
        assert watcher.receive()[2]["events"][0]["errno"] == Errno.ECANCELED
        assert watcher.call("devices")["devices"][0]["busy"] == 0
        assert watcher.call("ps", pid=kept)["processes"][0]["state"] == "ready"
        watcher.answer(watcher.send("wait", pid=bound))  # it may still be on its way out
        assert watcher.refused("ps", pid=bound)["errno"] == Errno.ESRCH


def test_a_reader_who_does_not_read_is_dropped_and_memory_stays_bounded(
    machine: Machine,
) -> None:
    machine.limits(KICK_S=2.0)
    machine.start("--mount", "false")
    kernel = psutil.Process(machine.pid)
    with raw(machine.paths.socket) as rude, raw(machine.paths.socket) as good:
        before = kernel.memory_info().rss
        frame = pack([CALL, 7, "devices", {}]) * 1000
        rude.socket.settimeout(2)
        dropped = threading.Event()

        def flood() -> None:
            try:
                while True:
                    rude.socket.sendall(frame)
            except TimeoutError:  # the kernel reads no more
                rude.socket.settimeout(limits.KICK_S + 20)
                try:
                    rude.socket.sendall(frame * 100)
                except OSError:
                    dropped.set()
            except OSError:
                dropped.set()

        thread = threading.Thread(target=flood)
        thread.start()
        while thread.is_alive():
            begun = time.monotonic()
            good.call("ps")
            assert time.monotonic() - begun < SOON_S
            thread.join(0.2)
        assert dropped.is_set()
        assert kernel.memory_info().rss - before < 32 * 1024 * 1024
    assert any("did not read" in note for note in hung_up_on(machine.paths.socket))


def test_a_process_does_one_thing_at_a_time(slow_echo: Machine) -> None:
    with raw(slow_echo.paths.socket) as client:
        pid, number = endless(client)
        error = client.refused("generate", pid=pid, messages=USER)
        assert error["errno"] == Errno.EAGAIN
        assert str(pid) in error["message"]
        client.call("kill", pid=pid, signal="KILL")
        assert client.answer(number)[2]["finish"] == "cancelled"
        assert client.call("wait", pid=pid)["code"] == 137


def test_a_call_out_of_time_keeps_what_was_said(slow_echo: Machine) -> None:
    with raw(slow_echo.paths.socket) as client:
        pid = client.call("spawn", model="echo")["pid"]
        sampling = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 1900}
        fields = {"pid": pid, "messages": USER, "sampling": sampling, "timeout_s": 0.5}
        error = client.refused("generate", **fields)
        assert error["errno"] == Errno.ETIMEDOUT
        assert error["hint"].startswith("`llmasos devices` ")
        assert len(client.call("read_mem", pid=pid)["pages"]) == 2


def test_a_second_daemon_is_refused_and_a_rude_file_is_not_removed(machine: Machine) -> None:
    machine.start("--mount", "false")
    line = [sys.executable, "-m", "llmasos.userland.daemon", "run"]
    second = subprocess.run(line, env=machine.environment, capture_output=True, text=True)
    assert second.returncode == 1
    assert f"a daemon runs already (pid {machine.pid})" in second.stderr
    machine.stop()
    machine.paths.socket.write_text("mine")
    third = subprocess.run(line, env=machine.environment, capture_output=True, text=True)
    assert third.returncode == 1
    assert "is not a socket" in third.stderr
    assert machine.paths.socket.read_text() == "mine"


def test_two_sockets_cannot_share_a_store(machine: Machine, tmp_path: Path) -> None:
    machine.start("--mount", "false")
    line = [sys.executable, "-m", "llmasos.userland.daemon", "run"]
    elsewhere = machine.environment | {"LLMASOS_RUNTIME_DIR": str(tmp_path / "elsewhere")}
    second = subprocess.run(line, env=elsewhere, capture_output=True, text=True)
    assert second.returncode == 1
    where = f"{machine.paths.runtime} with its state in {machine.paths.state}"
    assert f"a daemon runs already (pid {machine.pid}) at {where}" in second.stderr


def test_descriptors_are_kept_for_databases_and_engines(machine: Machine) -> None:
    machine.under = ["/bin/sh", "-c", 'ulimit -n 256 && exec "$@"', "sh"]
    machine.start("--mount", "false")
    with ExitStack() as stack:
        clients = [stack.enter_context(raw(machine.paths.socket)) for _ in range(shares(256)[0])]
        late = stack.enter_context(raw(machine.paths.socket, None))
        assert late.receive()[2]["errno"] == Errno.EAGAIN
        pid = clients[0].call("spawn", model="echo")["pid"]  # starts an engine
        assert clients[1].call("generate", pid=pid, messages=USER)["finish"]


def test_a_thousand_connections_are_served_and_the_next_is_told(machine: Machine) -> None:
    machine.start("--mount", "false")
    clients: list[socket.socket] = []
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # as many sockets on our side
    try:
        for _ in range(limits.CONNECTIONS):
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(20)
            client.connect(str(machine.paths.socket))
            clients.append(client)
            Raw(client).call("hello", version=limits.PROTOCOL_VERSION)
        with raw(machine.paths.socket, None) as late:
            kind, _, error = late.receive()
            assert (kind, error["errno"]) == (ERROR, Errno.EAGAIN)
        assert Raw(clients[0]).call("stat")["connections"] == limits.CONNECTIONS
    finally:
        for client in clients:
            client.close()


def test_a_spawn_whose_client_is_gone_leaves_nothing_behind(machine: Machine) -> None:
    machine.start("--mount", "false")
    for _ in range(40):
        with raw(machine.paths.socket) as client:
            for _ in range(4):
                client.send("spawn", model="echo", keep=False)
    with raw(machine.paths.socket) as client:
        client.send("watch", since=0, kinds=["process", "end"])
        alive: set[int] = set()
        calls = 0
        while calls < 40 * 4 or alive:
            for event in client.receive()[2]["events"]:
                calls += event["syscall"] == "spawn"
                if event["note"].startswith("spawn"):
                    alive.add(event["pid"])
                elif event["note"].startswith("exit"):
                    alive.discard(event["pid"])
        for pid in (p["pid"] for p in client.call("ps", ended=True)["processes"]):
            client.answer(client.send("wait", pid=pid, timeout_s=20))  # being reaped
        assert client.call("ps", ended=True)["processes"] == []
