"""Stories over a real socket: conversations, signals, restarts, full disks, engines that die."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.client import BlockingClient
from tests.files import containing
from tests.system.daemon import Machine

GREEDY = v.Sampling(temperature=0, max_tokens=24)
ENDLESS = v.Sampling(temperature=0, max_tokens=1500, ignore_eos=True)


def spawn(line: BlockingClient, model: str = "echo", **fields: object) -> int:
    return line.call("spawn", v.Spawn(model, **fields), v.Spawned).pid  # type: ignore[arg-type]


def turn(
    line: BlockingClient, pid: int, text: str, sampling: v.Sampling = GREEDY,
    overflow: v.Overflow = v.Overflow.PAGE,
) -> tuple[str, v.Generated]:  # fmt: skip
    messages = [v.Message(v.Role.USER, text)]
    request = v.Generate(pid, messages, sampling=sampling, overflow=overflow)
    stream = line.stream("generate", request, v.Delta, v.Generated)
    said = "".join(delta.text for delta in stream)
    assert stream.reply is not None
    return said, stream.reply


def kill(line: BlockingClient, pid: int, name: v.Signal = v.Signal.TERM) -> None:
    line.call("kill", v.Kill(pid, name), v.Nothing)


def info(line: BlockingClient, pid: int) -> v.ProcessInfo:
    return line.call("ps", v.Ps(pid), v.Processes).processes[0]


def messages(line: BlockingClient, pid: int) -> list[tuple[str, str]]:
    """The conversation: pages joined to messages."""
    joined: dict[int, tuple[str, str]] = {}
    for page in line.call("read_mem", v.ReadMem(pid), v.Pages).pages:
        kind, text = joined.get(page.message, (str(page.kind), ""))
        joined[page.message] = (kind, text + page.text)
    return [joined[number] for number in sorted(joined)]


def test_a_conversation_is_pages_and_goes_on(machine: Machine) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line, system="Be brief.", app="story")
        first, reply = turn(line, pid, "one two three")
        assert first == "one two three"
        assert reply.finish is v.Finish.STOP
        second, reply = turn(line, pid, "four")
        assert reply.usage.cached_tokens > 0
        assert messages(line, pid) == [
            ("system", "Be brief."), ("user", "one two three"), ("assistant", first),
            ("user", "four"), ("assistant", second),
        ]  # fmt: skip
        assert info(line, pid).context == sum(
            page.tokens for page in line.call("read_mem", v.ReadMem(pid), v.Pages).pages
        )


def test_a_long_message_becomes_several_pages_that_join_to_it(machine: Machine) -> None:
    machine.start("--mount", "false", "--window", "8192")
    text = "".join(f"Sätze {n} 漢字. " for n in range(300))
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line)
        turn(line, pid, text)
        pages = line.call("read_mem", v.ReadMem(pid), v.Pages).pages
        user = [page for page in pages if page.kind is v.Kind.USER]
        assert len(user) > 3
        assert max(page.tokens for page in user) <= 256
        assert "".join(page.text for page in user) == text


def test_what_does_not_fit_is_refused_with_the_numbers_if_it_is_to_be(machine: Machine) -> None:
    machine.start("--mount", "false", "--window", "256")
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line)
        turn(line, pid, "short")
        before = messages(line, pid)
        with pytest.raises(SyscallError, match="the window has 256") as caught:
            turn(line, pid, "word " * 400, overflow=v.Overflow.ERROR)
        assert caught.value.errno is Errno.E2BIG
        with pytest.raises(SyscallError, match="500 are requested for the answer"):
            turn(line, pid, "x", v.Sampling(max_tokens=500))
        assert messages(line, pid) == before
        with pytest.raises(SyscallError, match="system prompt has") as caught:
            spawn(line, system="word " * 400)
        assert caught.value.errno is Errno.E2BIG


def test_kill_9_keeps_processes_conversations_and_aliases(machine: Machine) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        line.call("image_add", v.ImageAdd("gpt-3", image="echo"), v.ImageInfo)
        kept = spawn(line, "gpt-3", nice=3)
        bound = spawn(line, keep=False)
        ended = spawn(line)
        kill(line, ended)
        end_time = info(line, ended).ended
        turn(line, kept, "remember this")
        kill(line, kept, v.Signal.STOP)
        before = messages(line, kept)
        machine.shoot()
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        assert info(line, kept).nice == 3
        assert info(line, kept).state is v.State.STOPPED
        assert info(line, ended).state is v.State.ENDED
        assert end_time is not None
        assert info(line, ended).ended == end_time
        assert info(line, kept).kept
        assert messages(line, kept) == before
        with pytest.raises(SyscallError, match=f"no process {bound}"):
            info(line, bound)
        kill(line, kept, v.Signal.CONT)
        assert turn(line, kept, "and go on")[0] == "and go on"
        assert spawn(line, "gpt-3") > ended  # a pid is never given twice


def test_a_call_that_a_crash_cut_is_completed_in_the_journal(machine: Machine) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        line.call("mount", v.Mount("echo", {"rate": 50}), v.DeviceInfo)
        pid = spawn(line)
        request = v.Generate(pid, [v.Message(v.Role.USER, "cut " * 30)], sampling=ENDLESS)
        next(iter(line.stream("generate", request, v.Delta, v.Generated)))
        machine.shoot()
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        watch = v.Watch(since=0, follow=False, pid=pid, kinds=["begin", "end"])
        events = [
            e for items in line.stream("watch", watch, v.Events, v.Nothing) for e in items.events
        ]
        assert [(e.kind, e.errno) for e in events] == [("begin", 0), ("end", Errno.EINTR)]
        assert messages(line, pid) == []  # half a turn is no turn
        assert turn(line, pid, "again")[0] == "again"


def test_term_int_stop_and_cont_do_what_they_say(machine: Machine) -> None:
    machine.start("--mount", "false")
    with (
        BlockingClient(machine.paths.socket) as line,
        BlockingClient(machine.paths.socket) as other,
    ):
        line.call("mount", v.Mount("echo", {"rate": 200}), v.DeviceInfo)
        pid = spawn(line)
        request = v.Generate(pid, [v.Message(v.Role.USER, "go " * 10)], sampling=ENDLESS)
        stream = line.stream("generate", request, v.Delta, v.Generated)
        items = iter(stream)
        next(items)
        assert info(other, pid).state is v.State.RUNNING
        kill(other, pid, v.Signal.STOP)
        assert info(other, pid).state is v.State.STOPPED
        kill(other, pid, v.Signal.CONT)
        next(items)
        kill(other, pid, v.Signal.INT)
        list(items)
        assert stream.reply is not None
        assert stream.reply.finish is v.Finish.CANCELLED
        assert len(messages(line, pid)) == 2
        kill(other, pid)
        ended = other.call("wait", v.Wait(pid, 10), v.Exit)
        assert (ended.code, ended.reason) == (0, "TERM")
        with pytest.raises(SyscallError, match="no process"):
            kill(other, pid)


def test_a_stopped_process_does_not_hold_up_the_others(machine: Machine) -> None:
    machine.start("--mount", "false")
    with (
        BlockingClient(machine.paths.socket) as line,
        BlockingClient(machine.paths.socket) as other,
    ):
        options: dict[str, bool | int | float | str] = {"rate": 500, "slots": 1}
        line.call("mount", v.Mount("echo", options), v.DeviceInfo)
        first = spawn(line)
        text = "abc def ghi " * 5
        request = v.Generate(first, [v.Message(v.Role.USER, text)], sampling=ENDLESS)
        stream = line.stream("generate", request, v.Delta, v.Generated)
        items = iter(stream)
        said = next(items).text
        kill(other, first, v.Signal.STOP)
        assert turn(other, spawn(other), "me too")[0] == "me too"
        kill(other, first, v.Signal.CONT)
        for item in items:
            said += item.text
            if len(said) > 300:
                kill(other, first, v.Signal.INT)
        assert said == (text * 400)[: len(said)]


def test_a_full_disk_is_said_and_loses_nothing(machine: Machine) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    machine.paths.state.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=72m", "tmpfs", str(machine.paths.state)]
    if subprocess.run(mount).returncode:
        pytest.skip("this machine does not let us mount a tmpfs")
    try:
        machine.start("--mount", "false")
        with BlockingClient(machine.paths.socket) as line:
            pid = spawn(line)
            turn(line, pid, "before")
            ballast = machine.paths.state / "ballast"
            ballast.write_bytes(bytes(20 * 1024 * 1024))
            with pytest.raises(SyscallError, match="MB free at") as caught:
                spawn(line)
            assert caught.value.errno is Errno.ENOSPC
            with pytest.raises(SyscallError) as caught:
                turn(line, pid, "while full")
            assert caught.value.errno is Errno.ENOSPC
            kill(line, pid)  # letting go works
            assert [text for _, text in messages(line, pid)] == ["before", "before"]
            ballast.unlink()
            assert turn(line, spawn(line), "after")[0] == "after"
        assert machine.stop() == 0
    finally:
        machine.shoot()
        subprocess.run(["umount", str(machine.paths.state)], check=True)


def test_sigterm_lets_calls_end_and_a_second_one_does_not_wait(machine: Machine) -> None:
    for blows, finish in ((1, v.Finish.STOP), (2, v.Finish.CANCELLED)):
        machine.start("--mount", "false")
        with (
            BlockingClient(machine.paths.socket) as line,
            BlockingClient(machine.paths.socket) as other,
        ):
            line.call("mount", v.Mount("echo", {"rate": 50}), v.DeviceInfo)
            pid = spawn(line)
            text = "abc" * 50
            sampling = v.Sampling(temperature=0, max_tokens=100)
            request = v.Generate(pid, [v.Message(v.Role.USER, text)], sampling=sampling)
            stream = line.stream("generate", request, v.Delta, v.Generated)
            items = iter(stream)
            said = next(items).text
            os.kill(machine.pid, signal.SIGTERM)
            with pytest.raises(SyscallError) as caught:
                while True:  # until the signal has arrived
                    spawn(other)
            assert caught.value.errno is Errno.ECANCELED
            if blows == 2:
                os.kill(machine.pid, signal.SIGTERM)
            said += "".join(item.text for item in items)
            assert stream.reply is not None
            assert stream.reply.finish is finish
            assert (said == text) is (finish is v.Finish.STOP)
            line.closed()
        assert machine.reap() == 0
        machine.start("--mount", "false")
        with BlockingClient(machine.paths.socket) as line:
            assert messages(line, pid) == [("user", text), ("assistant", said)]
            line.call("unmount", v.Unmount("echo"), v.Nothing)
        machine.stop()


def test_a_private_daemon_leaves_when_idle_and_without_processes(machine: Machine) -> None:
    machine.start("--private", "--mount", "false", "--idle-exit-s", "1")
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line)
    with BlockingClient(machine.paths.socket) as line:
        assert info(line, pid).state is v.State.READY  # a process holds the machine up
        kill(line, pid)
        line.call("wait", v.Wait(pid), v.Exit)
    assert machine.reap() == 0
    assert "idle for" in machine.log


def test_no_text_stands_outside_the_owners_directory(machine: Machine) -> None:
    machine.start("--mount", "false")
    secret = "xylophone-7431"
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line, system=f"system {secret}")
        turn(line, pid, f"user {secret}")
        turn(line, pid, secret * 3000)  # larger than the window: stored as pages
    machine.stop()
    found = [
        path.relative_to(machine.paths.state).parts[0]
        for path in containing(machine.paths.state, secret.encode())
    ]
    assert set(found) == {"owners"}
    assert secret not in machine.log


def test_reaping_removes_the_pages_from_the_disk(machine: Machine) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line)
        turn(line, pid, "forget me: quixotic")
        kill(line, pid)
        line.call("wait", v.Wait(pid), v.Exit)
    machine.stop()
    assert containing(machine.paths.state, b"")
    assert not containing(machine.paths.state, b"quixotic")


def test_a_hostile_model_file_is_refused_and_the_machine_goes_on(
    machine: Machine, tmp_path: Path
) -> None:
    machine.start("--mount", "false")
    hostile = {
        "empty.gguf": b"",
        "foreign.gguf": b"PK\x03\x04" + bytes(1000),
        "counts.gguf": b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 16,
        "short.gguf": b"GGUF\x03\x00\x00\x00",
    }
    with BlockingClient(machine.paths.socket) as line:
        for name, content in hostile.items():
            path = tmp_path / name
            path.write_bytes(content)
            with pytest.raises(SyscallError) as caught:
                line.call("image_add", v.ImageAdd("bad", str(path)), v.ImageInfo)
            assert caught.value.errno is Errno.EINVAL, name
        with pytest.raises(SyscallError) as caught:
            line.call("image_add", v.ImageAdd("bad", str(tmp_path / "none.gguf")), v.ImageInfo)
        assert caught.value.errno is Errno.ENOENT
        with pytest.raises(SyscallError, match="there is no model 'bad'") as caught:
            spawn(line, "bad")
        assert "models alias" in caught.value.hint
        assert line.call("devices", v.Nothing(), v.Devices).devices == []


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with a real model, for several tests."""
    machine = Machine(tmp_path_factory.mktemp("real"))
    machine.start()
    yield machine
    machine.down()


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_dead_engine_ends_its_calls_and_comes_back(real: Machine, blow: int) -> None:
    with BlockingClient(real.paths.socket) as line, BlockingClient(real.paths.socket) as other:
        pid = spawn(line, "smollm2")
        turn(line, pid, "Say hello.")
        before = messages(line, pid)
        asked = v.Message(v.Role.USER, f"Count to {blow}.")  # the same one twice would be poison
        request = v.Generate(pid, [asked], sampling=ENDLESS)
        stream = iter(line.stream("generate", request, v.Delta, v.Generated))
        next(stream)
        device = other.call("devices", v.Nothing(), v.Devices).devices[0]
        restarts = device.restarts
        os.kill(device.os_pid, blow)
        with pytest.raises(SyscallError, match=signal.Signals(blow).name) as caught:
            list(stream)
        assert caught.value.errno is Errno.EIO
        assert messages(line, pid) == before  # a failed turn leaves the conversation as it was
        said, _ = turn(line, pid, "Still there?")
        assert said
        device = other.call("devices", v.Nothing(), v.Devices).devices[0]
        assert (device.state, device.restarts) == ("up", restarts + 1)


def test_an_engine_that_hangs_is_killed_and_comes_back(machine: Machine) -> None:
    machine.start("--mount", "false")
    with (
        BlockingClient(machine.paths.socket) as line,
        BlockingClient(machine.paths.socket) as other,
    ):
        line.call("mount", v.Mount("smollm2", {"hang_s": 2.0}), v.DeviceInfo)
        pid = spawn(line, "smollm2")
        request = v.Generate(pid, [v.Message(v.Role.USER, "Count.")], sampling=ENDLESS)
        stream = iter(line.stream("generate", request, v.Delta, v.Generated))
        next(stream)
        device = other.call("devices", v.Nothing(), v.Devices).devices[0]
        os.kill(device.os_pid, signal.SIGSTOP)
        with pytest.raises(SyscallError) as caught:
            list(stream)
        assert caught.value.errno is Errno.EIO
        assert turn(line, pid, "Hello?")[0]


def test_sixteen_processes_answer_at_once_on_a_real_model(real: Machine) -> None:
    with BlockingClient(real.paths.socket) as line:
        pids = [spawn(line, "smollm2") for _ in range(16)]
        streams = [
            line.stream(
                "generate",
                v.Generate(pid, [v.Message(v.Role.USER, f"Say {pid}.")], sampling=GREEDY),
                v.Delta, v.Generated,
            )
            for pid in pids
        ]  # fmt: skip
        said = ["".join(delta.text for delta in stream) for stream in streams]
        assert all(said)
        for pid, stream, text in zip(pids, streams, said, strict=True):
            assert stream.reply is not None
            assert stream.reply.pid == pid
            assert messages(line, pid) == [("user", f"Say {pid}."), ("assistant", text)]


def test_no_engine_outlives_a_killed_kernel(real: Machine) -> None:
    with BlockingClient(real.paths.socket) as line:
        spawn(line, "smollm2")
        engine = psutil.Process(line.call("devices", v.Nothing(), v.Devices).devices[0].os_pid)
        real.shoot()
        engine.wait(60)
        assert not engine.is_running()


def test_signals_are_ignored_while_the_last_writes_are_made(
    machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("""
import signal, sys
from llmasos.kernel.storage.store import Store
close = Store.close
def closing(store):
    print("ignored:", signal.getsignal(signal.SIGTERM) is signal.SIG_IGN, file=sys.stderr)
    close(store)
Store.close = closing
""")
    machine.environment["PYTHONPATH"] = str(tmp_path)
    machine.start("--mount", "false")
    assert machine.stop() == 0
    assert "ignored: True" in machine.log
