"""Single answers: one call on a process that exists for it only, and of which nothing remains."""

import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from llmasos import AsyncLLMasOS, LLMasOS
from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Denied, Errno, NotFound, SyscallError
from llmasos.userland.client import BlockingClient
from llmasos.userland.sdk.connection import ReplyStream
from tests.system.daemon import Machine
from tests.system.raw import raw
from tests.system.test_residency import running

GREEDY = v.Sampling(temperature=0)
LONG = "word " * 500
SLOW: dict[str, bool | int | float | str] = {"rate": 20.0, "slots": 4}
FLUSHES = re.compile(r"\b(?:fsync|fdatasync|sync_file_range)\(")

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def line(machine: Machine) -> Iterator[BlockingClient]:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        yield line


def request(text: str = "one two three", **fields: object) -> v.Generate:
    given = {"sampling": GREEDY, "model": "echo", **fields}
    return v.Generate(0, [v.Message(v.Role.USER, text)], **given)  # type: ignore[arg-type]


def ask(line: BlockingClient, text: str = "one two three", **fields: object) -> v.Generated:
    stream = line.stream("generate", request(text, **fields), v.Delta, v.Generated)
    for _ in stream:
        pass
    assert stream.reply is not None
    return stream.reply


def events(line: BlockingClient) -> list[v.Event]:
    stream = line.stream("watch", v.Watch(since=0, follow=False), v.Events, v.Nothing)
    return [event for batch in stream for event in batch.events]


def listed(line: BlockingClient) -> list[v.ProcessInfo]:
    return line.call("ps", v.Ps(ended=True), v.Processes).processes


def rows(path: Path, table: str) -> int:
    with closing(sqlite3.connect(path)) as database:
        return int(database.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def slow(line: BlockingClient) -> None:
    line.call("mount", v.Mount("echo", SLOW), v.DeviceInfo)


def rule(machine: Machine, row: str) -> None:
    with raw(machine.paths.socket, "owner") as owner:
        owner.call("policy_edit", add=[row])


# --- one call -------------------------------------------------------------------------------------
def test_nothing_of_a_single_answer_remains(machine: Machine, line: BlockingClient) -> None:
    reply = ask(line)
    assert (reply.pages, reply.window, reply.evicted, reply.faults) == ([], [], [], [])
    assert (reply.finish, reply.model) == (v.Finish.STOP, "echo")
    assert listed(line) == []
    machine.stop()
    owner = next((machine.paths.state / "owners").iterdir())
    assert rows(machine.paths.state / "processes.db", "processes") == 0
    for table in ("pages", "spaces", "tables", "ranges", "moves", "todo", "vectors"):
        assert rows(owner / "pages.db", table) == 0, table
    assert not (owner / "mail.db").exists() or rows(owner / "mail.db", "mail") == 0


def test_pids_of_single_answers_are_not_given_again(machine: Machine) -> None:
    pids: list[int] = []
    for _ in range(2):
        machine.start("--mount", "false")
        with BlockingClient(machine.paths.socket) as line:
            pids += [ask(line).pid, line.call("spawn", v.Spawn("echo"), v.Spawned).pid]
        machine.shoot()
    assert len(set(pids)) == len(pids)
    assert pids == sorted(pids)


def test_a_single_answer_is_one_call_and_waits_for_no_flush(
    machine: Machine, line: BlockingClient
) -> None:
    with LLMasOS(socket=machine.paths.socket) as client:
        model = client.get_model("echo")
        model.generate("hello")  # mounts it
        before = line.call("stat", v.Nothing(), v.Stat)
        assert model.generate("hello", temperature=0).text == "hello"
        after = line.call("stat", v.Nothing(), v.Stat)
    assert after.calls - before.calls == 2  # with this `stat`
    assert after.flushes == before.flushes


def test_the_daemon_flushes_nothing_for_a_single_answer(machine: Machine, tmp_path: Path) -> None:
    """Counted outside of the daemon; a spawned process shows that flushes are seen."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace, which counts system calls, is not installed")
    traced = tmp_path / "trace"
    # -D: the daemon is our own child and gets our signals; strace ends with it.
    machine.under = [
        strace, "-D", "-f", "-qq", "-e", "trace=fsync,fdatasync,sync_file_range", "-o", str(traced)
    ]  # fmt: skip
    machine.start("--mount", "false")

    def flushes() -> int:
        return len(FLUSHES.findall(traced.read_text()))

    with BlockingClient(machine.paths.socket) as line:
        ask(line)
        before = flushes()
        counted = line.call("stat", v.Nothing(), v.Stat).flushes
        for _ in range(20):
            ask(line)
        assert flushes() == before
        line.call("spawn", v.Spawn("echo"), v.Spawned)
        assert flushes() > before
        assert line.call("stat", v.Nothing(), v.Stat).flushes > counted


def test_a_single_answer_streams_and_takes_every_option(line: BlockingClient) -> None:
    for stop, text in (([], "one two three"), (["two"], "one ")):
        asked = request(sampling=v.Sampling(temperature=0, stop=stop))
        stream = line.stream("generate", asked, v.Delta, v.Generated)
        assert "".join(delta.text for delta in stream) == text
    cut = ask(line, LONG, sampling=v.Sampling(temperature=0, max_tokens=3))
    assert (cut.finish, cut.usage.completion_tokens) == (v.Finish.LENGTH, 3)
    refused: list[tuple[dict[str, Any], Errno]] = [
        ({"deterministic": True}, Errno.EINVAL),  # echo is not
        ({"model": "nothing"}, Errno.ENOENT),
        ({"overflow": v.Overflow.ERROR, "text": "word " * 60_000}, Errno.E2BIG),
    ]
    for wrong, errno in refused:
        with pytest.raises(SyscallError) as caught:
            ask(line, **wrong)
        assert caught.value.errno is errno
    assert listed(line) == []


def test_what_a_single_answer_does_not_read_is_not_stored_either(machine: Machine) -> None:
    machine.start("--mount", "false", "--window", "256")
    with BlockingClient(machine.paths.socket) as line:
        [notice] = ask(line, "word " * 800).notices
        assert "of its" in notice
        assert notice.endswith("are not read")


# --- a process like any other ---------------------------------------------------------------------
async def speaking(
    stream: ReplyStream[v.Delta, v.Generated], client: AsyncLLMasOS
) -> v.ProcessInfo:
    """The process of a single answer after its first piece of text."""
    async for delta in stream:
        if delta.text:
            break
    [info] = (await client.ps()).processes
    return info


async def test_a_single_answer_is_listed_niced_stopped_and_interrupted(tmp_path: Path) -> None:
    async with running(tmp_path, rate=20.0, slots=4) as (kernel, client):
        stream = client.generate(0, LONG, model="one", app="poem", nice=3, temperature=0)
        assert (await anext(stream)).loading is not None  # the model was not mounted
        info = await speaking(stream, client)
        assert (info.app, info.nice, info.kept, info.model) == ("poem", 3, False, "one")
        assert info.state is v.State.RUNNING
        await client.nice(info.pid, 7)
        await client.kill(info.pid, "STOP")
        [info] = (await client.ps()).processes
        assert (info.nice, info.state) == (7, v.State.STOPPED)
        await client.kill(info.pid, "CONT")
        await client.kill(info.pid, "INT")
        async for _ in stream:
            pass
        assert stream.reply is not None
        assert (stream.reply.pid, stream.reply.finish) == (info.pid, v.Finish.CANCELLED)
        assert (await client.ps(ended=True)).processes == []
        assert kernel.owners.get(kernel.run.owner).memory.tables.get(info.pid) is None
        assert kernel.processes.find(info.pid, kernel.run.owner) is None


@pytest.mark.parametrize("signal", ["TERM", "KILL"])
async def test_a_single_answer_can_be_killed_waited_for_and_attached_to(
    tmp_path: Path, signal: str
) -> None:
    async with running(tmp_path, rate=20.0, slots=4) as (_, client):
        stream = client.generate(0, LONG, model="one", temperature=0)
        info = await speaking(stream, client)
        output = client.attach(info.pid)
        exits: list[v.Exit] = []

        async def wait() -> None:
            exits.append(await client.wait(info.pid))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            assert (await anext(output)).text
            await client.kill(info.pid, signal)
            async for _ in output:
                pass
        assert exits[0].code == {"TERM": 143, "KILL": 137}[signal]
        async for _ in stream:
            pass
        assert stream.reply is not None
        assert stream.reply.finish is v.Finish.CANCELLED
        with pytest.raises(NotFound):
            await client.kill(info.pid, signal)


async def test_what_others_wrote_to_its_process_goes_with_it(tmp_path: Path) -> None:
    async with running(tmp_path, rate=20.0, slots=4) as (kernel, client):
        stream = client.generate(0, LONG, model="one", temperature=0)
        info = await speaking(stream, client)
        await client.write_mem(info.pid, "a note")
        await client.send(info.pid, "hello")
        owner = kernel.owners.get(kernel.run.owner)
        assert owner.messages == 1
        await stream.aclose()
        assert (await client.ps(ended=True)).processes == []
        assert owner.messages == 0
        assert owner.memory.tables.get(info.pid) is None
        assert await owner.memory.read("SELECT count(*) FROM pages") == [(0,)]


async def test_a_closed_connection_ends_its_single_answers(tmp_path: Path) -> None:
    async with running(tmp_path, rate=20.0, slots=4) as (_, client):
        async with AsyncLLMasOS(socket=tmp_path / "runtime" / "kernel.sock") as other:
            stream = other.generate(0, LONG, model="one", temperature=0)
            info = await speaking(stream, client)
            ended = client.attach(info.pid)
        async for _ in ended:
            pass
        with pytest.raises(NotFound):
            await client.ps(pid=info.pid)


def test_a_single_answer_counts_against_the_share_of_its_owner(machine: Machine) -> None:
    machine.limits(PROCESSES=2)
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        first = line.call("spawn", v.Spawn("echo"), v.Spawned).pid
        assert ask(line).finish is v.Finish.STOP  # one is free, again and again
        assert ask(line).finish is v.Finish.STOP
        line.call("spawn", v.Spawn("echo"), v.Spawned)
        with pytest.raises(SyscallError, match="cannot create 1 process: the limit") as caught:
            ask(line)
        assert caught.value.errno is Errno.EAGAIN
        line.call("kill", v.Kill(first), v.Nothing)
        line.call("wait", v.Wait(first), v.Exit)
        assert ask(line).finish is v.Finish.STOP


# --- the journal ----------------------------------------------------------------------------------
def test_a_single_answer_has_a_begin_and_an_end_in_the_journal(line: BlockingClient) -> None:
    reply = ask(line, app="poem")
    begin, end = [event for event in events(line) if reply.call in (event.seq, event.call)]
    assert (begin.kind, end.kind) == ("begin", "end")
    assert begin.syscall == end.syscall == "generate"
    assert begin.object == end.object == "/dev/image/echo"
    assert begin.subject == end.subject
    assert begin.subject.split()[1:] == ["r:operator", "app:llmasos", "app:poem"]
    assert (begin.pid, end.pid, end.errno) == (reply.pid, reply.pid, 0)


def test_a_crash_during_a_single_answer_completes_it_as_interrupted(machine: Machine) -> None:
    """P-08."""
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        slow(line)
        stream = iter(line.stream("generate", request(LONG), v.Delta, v.Generated))
        next(stream)
        machine.shoot()
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        [begin] = [e for e in events(line) if (e.kind, e.syscall) == ("begin", "generate")]
        [end] = [e for e in events(line) if e.call == begin.seq]
        assert (end.kind, end.errno, end.pid) == ("end", Errno.EINTR, begin.pid)
        assert begin.pid
        assert listed(line) == []


# --- permissions ----------------------------------------------------------------------------------
def test_who_may_not_spawn_gets_no_single_answer(machine: Machine) -> None:
    """P-06."""
    machine.start("--mount", "false")
    with (
        LLMasOS(socket=machine.paths.socket, app="notes") as client,
        LLMasOS(socket=machine.paths.socket, profile="reader") as reader,
    ):
        assert client.get_model("echo").generate_text("hello", temperature=0) == "hello"
        with pytest.raises(Denied, match=r"r:reader .* may not spawn /dev/image/echo"):
            reader.get_model("echo").generate("hello")
        rule(machine, "p, app:notes, generate, /proc/*, deny")
        with pytest.raises(Denied, match="app:notes may not generate /proc/own/0/generate"):
            client.get_model("echo").generate("hello")
        with raw(machine.paths.socket, "owner") as owner:
            owner.call("policy_edit", undo=True)
        rule(machine, "p, app:notes, spawn, /dev/image/echo, deny")
        with pytest.raises(Denied, match="app:notes may not spawn /dev/image/echo"):
            client.get_model("echo").generate("hello")
        with raw(machine.paths.socket, "owner") as owner:
            owner.call("policy_edit", undo=True)
        rule(machine, "p, app:poem, generate, /proc/*, deny")
        with pytest.raises(Denied, match="app:poem"):
            client.get_model("echo").generate("hello", app="poem")


def test_a_larger_share_needs_the_permission_to_nice(machine: Machine) -> None:
    machine.start("--mount", "false")
    with LLMasOS(socket=machine.paths.socket, app="notes") as client:
        rule(machine, "p, app:notes, nice, /proc/*, deny")
        model = client.get_model("echo")
        assert model.generate_text("hello", temperature=0, nice=5) == "hello"
        with pytest.raises(Denied, match="app:notes may not nice"):
            model.generate("hello", nice=-5)


@pytest.mark.parametrize(
    "row", ["p, app:notes, spawn, /dev/image/*, deny", "p, app:notes, generate, /proc/*, deny"]
)
def test_a_change_of_the_rules_cancels_a_single_answer(machine: Machine, row: str) -> None:
    machine.start("--mount", "false")
    with (
        BlockingClient(machine.paths.socket) as line,
        LLMasOS(socket=machine.paths.socket, app="notes") as client,
    ):
        slow(line)
        answer = client.get_model("echo").stream(LONG, temperature=0)
        next(answer)
        rule(machine, row)
        with pytest.raises(Denied, match="app:notes may not"):
            for _ in answer:
                pass
        assert listed(line) == []
        [refused] = [event for event in events(line) if event.kind == "refused"]
        assert refused.pid


def test_rules_are_learned_simulated_and_explained_from_single_answers(machine: Machine) -> None:
    machine.start("--mount", "false")
    with LLMasOS(socket=machine.paths.socket, app="notes") as client:
        reply = client.get_model("echo").generate("hello", temperature=0)
    with LLMasOS(socket=machine.paths.socket, profile="owner") as owner:
        learned = owner.policy_learn(app="notes").rules
        assert "p, app:notes, spawn, /dev/image/echo, allow" in learned
        assert "p, app:notes, generate, /proc/own/*, allow" in learned
        for row in ("p, app:notes, spawn, /dev/image/*, deny", "p, app:notes, generate, /*, deny"):
            [blocked] = owner.policy_simulate(f"{row}\n").blocked
            assert blocked.calls == 1
        owner.policy_edit(add=["p, app:notes, generate, /proc/*, deny"])
        verdict = owner.policy_check(call=reply.call)
        assert (verdict.effect, verdict.action) == (v.Effect.DENY, "generate")
        owner.policy_edit(undo=True)
        owner.policy_edit(add=learned)
    with LLMasOS(socket=machine.paths.socket, app="notes", profile="careful") as client:
        stream = client.generate(0, "hello", model="echo", temperature=0)
        assert "".join(delta.text for delta in stream) == "hello"
