"""Messages between processes: in order, bounded, kept over kill -9, and nobody's slot."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.client import BlockingClient
from tests.files import containing
from tests.system.daemon import Machine
from tests.waiting import until


@pytest.fixture
def line(machine: Machine) -> Iterator[BlockingClient]:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        yield line


def spawn(line: BlockingClient) -> int:
    return line.call("spawn", v.Spawn("echo"), v.Spawned).pid


def send(line: BlockingClient, pid: int, body: str, **fields: object) -> v.Sent:
    return line.call("send", v.Send(pid, body, **fields), v.Sent)  # type: ignore[arg-type]


def recv(line: BlockingClient, pid: int, timeout_s: float | None = 10.0, done: int = 0) -> v.Mail:
    return line.call("recv", v.Recv(pid, timeout_s, done), v.Mail)


def test_messages_come_in_order_with_sender_and_labels(line: BlockingClient) -> None:
    one, two = spawn(line), spawn(line)
    for number in range(5):
        sent = send(line, two, f"message {number}", sender=one, labels=["web"])
        assert sent.waiting == number + 1
    found = [recv(line, two) for _ in range(5)]
    assert [mail.body for mail in found] == [f"message {number}" for number in range(5)]
    assert [mail.waiting for mail in found] == [4, 3, 2, 1, 0]
    assert {(mail.sender, mail.author, *mail.labels) for mail in found} == {
        (one, "app:llmasos", "web")
    }


def test_who_waits_is_woken_and_holds_no_slot(line: BlockingClient, machine: Machine) -> None:
    one, two = spawn(line), spawn(line)
    with ThreadPoolExecutor(1) as pool, BlockingClient(machine.paths.socket) as other:
        waiting = pool.submit(recv, other, two)
        device = line.call("devices", v.ListDevices(), v.Devices).devices[0]
        assert device.busy == device.waiting == 0
        stream = line.stream(
            "generate", v.Generate(one, [v.Message(v.Role.USER, "hi")]), v.Delta, v.Generated
        )
        assert "".join(delta.text for delta in stream) == "hi"
        send(line, two, "wake up")
        assert waiting.result(10).body == "wake up"


def test_several_who_wait_are_served_in_turn(line: BlockingClient, machine: Machine) -> None:
    pid = spawn(line)
    ready = threading.Barrier(5)

    def wait() -> str:
        with BlockingClient(machine.paths.socket) as mine:
            ready.wait(10)
            mail = recv(mine, pid)
            mine.call("recv", v.Recv(pid, done=mail.number, take=False), v.Mail)
            return mail.body

    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(wait) for _ in range(4)]
        ready.wait(10)
        for number in range(4):
            send(line, pid, str(number))
        assert sorted(one.result(10) for one in waiting) == ["0", "1", "2", "3"]


def test_a_full_mailbox_refuses_with_the_numbers(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line)
        for number in range(limits.MAIL):
            send(line, pid, str(number))
        words = f"{limits.MAIL} messages wait for process {pid}, {limits.MAIL} are allowed"
        with pytest.raises(SyscallError, match=words) as caught:
            send(line, pid, "one more")
        assert caught.value.errno is Errno.EAGAIN
        assert recv(line, pid).body == "0"
        with pytest.raises(SyscallError, match=words):  # it may have to come again
            send(line, pid, "one more")
        assert recv(line, pid).body == "1"
        send(line, pid, "one more")
        assert line.call("stat", v.Nothing(), v.Stat).mail == limits.MAIL


def test_kill_9_loses_no_message_and_none_comes_twice_that_was_done(machine: Machine) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line)
        numbers = [send(line, pid, f"message {number}").number for number in range(6)]
        first = recv(line, pid)
        second = recv(line, pid)  # says that the first is dealt with, which is written soon
        assert (first.number, second.number) == (numbers[0], numbers[1])
        line.call("recv", v.Recv(pid, done=first.number, take=False), v.Mail)  # it is on disk
        send(line, pid, "the last")
    machine.shoot()
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        again = recv(line, pid)
        assert again == replace(second, waiting=again.waiting)
        bodies = [
            recv(line, pid, done=again.number).body,
            *(recv(line, pid).body for _ in range(4)),
        ]
        assert bodies == ["message 2", "message 3", "message 4", "message 5", "the last"]
        with pytest.raises(SyscallError, match="no message waits for process") as caught:
            recv(line, pid, 0.0)
        assert caught.value.errno is Errno.ETIMEDOUT


def test_a_body_stands_in_its_receivers_owners_directory_only(machine: Machine) -> None:
    machine.start("--mount", "false")
    secret = "xylophone-8127"
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line)
        send(line, pid, f"the secret is {secret}")
    machine.stop()
    found = [
        path.relative_to(machine.paths.state).parts[0]
        for path in containing(machine.paths.state, secret.encode())
    ]
    assert set(found) == {"owners"}


def test_who_waits_for_a_process_that_ends_is_told(line: BlockingClient, machine: Machine) -> None:
    pid = spawn(line)
    with ThreadPoolExecutor(1) as pool, BlockingClient(machine.paths.socket) as other:
        waiting = pool.submit(recv, other, pid)
        while line.call("stat", v.Nothing(), v.Stat).connections < 2:
            pass
        line.call("kill", v.Kill(pid), v.Nothing)
        with pytest.raises(SyscallError, match=f"process {pid} has ended"):
            waiting.result(10)
    for call in (lambda: send(line, pid, "x"), lambda: recv(line, pid)):
        with pytest.raises(SyscallError) as caught:
            call()
        assert caught.value.errno is Errno.ESRCH


def test_what_is_sent_to_nobody_or_in_anothers_name_is_refused(line: BlockingClient) -> None:
    pid = spawn(line)
    for fields in ({"pid": 99, "body": "x"}, {"pid": pid, "body": "x", "sender": 99}):
        with pytest.raises(SyscallError, match="there is no process 99") as caught:
            line.call("send", v.Send(**fields), v.Sent)  # type: ignore[arg-type]
        assert caught.value.errno is Errno.ESRCH
    with pytest.raises(SyscallError, match="body"):
        send(line, pid, "")


def test_a_message_whose_receiver_hung_up_is_for_the_next_one(
    line: BlockingClient, machine: Machine
) -> None:
    pid = spawn(line)
    numbers = [send(line, pid, body).number for body in ("first", "second", "third")]
    with BlockingClient(machine.paths.socket) as careless:
        assert recv(careless, pid).body == "first"
        assert recv(careless, pid).body == "second"  # with this the first is dealt with
    while line.call("stat", v.Nothing(), v.Stat).connections > 1:
        pass
    assert [recv(line, pid).number for _ in range(2)] == numbers[1:]


def test_a_message_can_be_dealt_with_without_taking_the_next(machine: Machine) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line)
        for body in ("first", "second"):
            send(line, pid, body)
        mail = recv(line, pid)
        said = line.call("recv", v.Recv(pid, done=mail.number, take=False), v.Mail)
        assert (said.number, said.body, said.waiting) == (0, "", 1)
    machine.shoot()
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        assert recv(line, pid).body == "second"


def test_a_mailbox_holds_so_many_bytes(line: BlockingClient) -> None:
    pid = spawn(line)
    body = "x" * limits.MAIL_CHARS
    for _ in range(limits.MAILBOX_BYTES // limits.MAIL_CHARS):
        send(line, pid, body)
    words = f"wait for process {pid}, {limits.MAILBOX_BYTES} are allowed"
    with pytest.raises(SyscallError, match=words) as caught:
        send(line, pid, body)
    assert caught.value.errno is Errno.EAGAIN
    assert len(recv(line, pid).body) == limits.MAIL_CHARS
    recv(line, pid)  # with this the first is dealt with
    send(line, pid, body)


def test_a_message_may_have_as_many_characters_in_any_script(line: BlockingClient) -> None:
    """Three bytes each: more than 1 MiB, both ways."""
    pid = spawn(line)
    wide = "\u6f22" * limits.MAIL_CHARS
    send(line, pid, wide)
    assert recv(line, pid).body == wide


# --- what is left on the disk -------------------------------------------------------------------
BODY = "the password is zanzibarquince"


def until_gone(machine: Machine) -> None:
    """The body leaves the disk by itself, some seconds after the message was dealt with."""
    root = machine.paths.state

    def gone() -> bool:
        return not any(BODY.encode() in f.read_bytes() for f in root.glob("owners/*/mail.db*"))

    until(gone)


@pytest.mark.parametrize("end", ["dealt with", "its process is gone"])
def test_a_body_leaves_the_disk_when_nobody_will_ask(
    line: BlockingClient, machine: Machine, end: str
) -> None:
    pid = spawn(line)
    send(line, pid, BODY)
    if end == "dealt with":
        line.call("recv", v.Recv(pid, done=recv(line, pid).number, take=False), v.Mail)
    else:
        line.call("kill", v.Kill(pid), v.Nothing)
        line.call("wait", v.Wait(pid), v.Exit)
    until_gone(machine)


def test_a_body_that_was_dealt_with_leaves_the_disk_after_kill_9(machine: Machine) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        pid, other = spawn(line), spawn(line)
        send(line, other, "this one stays")
        send(line, pid, BODY)
        line.call("recv", v.Recv(pid, done=recv(line, pid).number, take=False), v.Mail)
    machine.shoot()
    [file] = machine.paths.state.glob("owners/*/mail.db-wal")
    assert BODY.encode() in file.read_bytes()  # so that the test can fail
    machine.start("--mount", "false")
    until_gone(machine)
    with BlockingClient(machine.paths.socket) as line:
        assert recv(line, other).body == "this one stays"
