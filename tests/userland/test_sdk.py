"""The SDK: one method for each syscall, objects that people work with, and every way to leave."""

import gc
import inspect
import threading
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest

from llmasos import AsyncLLMasOS, Errno, LLMasOS, SyscallError
from llmasos.kernel.abi import limits
from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.table import TABLE
from llmasos.userland import start
from tests.conftest import Machine

pytestmark = pytest.mark.anyio
GUARD_S = 30
LONG = "word " * 500
SLOW = {"rate": 20, "slots": 4}  # tokens a second

FIVE_LINES = """from llmasos import LLMasOS
client = LLMasOS(api_key="YOUR_API_KEY")
model = client.get_model("gpt-3")
text = model.generate_text(prompt="The quick brown fox jumps over the lazy dog.")
print(text)
"""


@pytest.fixture
async def client(shared: Machine) -> AsyncIterator[AsyncLLMasOS]:
    with anyio.fail_after(GUARD_S):
        async with AsyncLLMasOS(socket=shared.paths.socket, profile="operator") as client:
            yield client


@pytest.fixture
async def slow(machine: Machine) -> AsyncIterator[AsyncLLMasOS]:
    """A client of a machine whose echo takes its time."""
    machine.start("--mount", "false")
    with anyio.fail_after(GUARD_S):
        async with AsyncLLMasOS(socket=machine.paths.socket, profile="operator") as client:
            await client.mount("echo", pin=False, **SLOW)
            yield client


@pytest.fixture
def door(shared: Machine) -> Iterator[LLMasOS]:
    with LLMasOS(socket=shared.paths.socket) as client:
        yield client


# --- the five lines ---------------------------------------------------------------------------
def test_five_lines_make_text_on_a_machine_without_a_daemon(machine: Machine) -> None:
    """P-01: no account, no hub, no configuration; a wrong name is told how to become right."""
    machine.environment["LLMASOS_WINDOW"] = "256"  # a short answer will do
    del machine.environment["LLMASOS_MOUNT"]
    before = machine.python("-c", FIVE_LINES, check=False)
    assert before.returncode == 1
    assert b"installed: echo, smollm2" in before.stderr
    assert b"llmasos models alias gpt-3" in before.stderr
    machine.llmasos("models", "alias", "gpt-3", "smollm2")
    done = machine.python("-c", FIVE_LINES)
    assert len(done.stdout.split()) > 1
    assert done.stderr.count(b"YOUR_API_KEY") == 1
    assert b"Traceback" not in done.stderr


def test_autostart_can_be_forbidden(machine: Machine) -> None:
    done = machine.python("-c", FIVE_LINES, check=False, LLMASOS_AUTOSTART="0")
    assert done.returncode == 1
    assert b"ECONNREFUSED" in done.stderr
    assert not machine.paths.socket.exists()


async def test_the_core_starts_a_private_daemon_and_can_stop_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**machine.environment, "LLMASOS_MOUNT": "false"}.items():
        monkeypatch.setenv(name, value)
    with anyio.fail_after(GUARD_S):
        async with AsyncLLMasOS(profile="operator") as client:
            stat = await client.stat()
            assert stat.private
            assert (await client.mount("echo", window=512)).window == 512
            await client.unmount("echo")
            assert (await client.devices()).devices == []
            await client.shutdown(drain=False)
    assert start.wait_for_exit(stat.os_pid, GUARD_S)
    with pytest.raises(SyscallError) as caught:
        async with AsyncLLMasOS(autostart=False):
            pass
    assert caught.value.errno is Errno.ECONNREFUSED


# --- the table --------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [AsyncLLMasOS, LLMasOS])
def test_every_syscall_is_a_method_with_a_docstring(kind: type) -> None:
    for name in set(TABLE) - {"hello"}:
        assert inspect.getdoc(getattr(kind, name)), name


async def test_a_call_over_a_frame_is_e2big_and_the_client_goes_on(client: AsyncLLMasOS) -> None:
    async with await client.spawn("echo", keep=False) as process:
        for _ in range(limits.CALLS_IN_FLIGHT):
            with pytest.raises(SyscallError, match="mem map PID FILE") as caught:
                await process.generate("x" * 1_200_000)
            assert caught.value.errno is Errno.E2BIG
        assert (await process.generate("hello", temperature=0)).text


async def test_an_option_that_makes_no_sense_is_named(client: AsyncLLMasOS) -> None:
    async with await client.spawn("echo", keep=False) as process:
        with pytest.raises(SyscallError, match="overflow='x': must be page or error") as caught:
            await process.generate("hello", overflow="x")
        assert caught.value.errno is Errno.EINVAL
        with pytest.raises(TypeError, match="'foo'"):
            await client.write_mem(process.pid, "text", foo=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        for call in (client.read_mem(process.pid, since=9.0, until=8.0),
                     client.search_mem(process.pid, "hello", since=9.0, until=8.0)):  # fmt: skip
            with pytest.raises(SyscallError, match="is later than until=1970-01-01") as late:
                await call
            assert late.value.errno is Errno.EINVAL


async def test_syscalls_return_the_replies_of_the_table(client: AsyncLLMasOS) -> None:
    assert client.welcome is not None
    assert client.welcome.profile is v.Profile.OPERATOR
    assert isinstance(await client.stat(), v.Stat)
    assert isinstance(await client.devices(), v.Devices)
    assert "echo" in {image.name for image in (await client.images()).images}
    assert len((await client.tokenize("echo", "abcdef")).tokens) == 2
    async with await client.spawn("echo", app="sdk", nice=3, keep=False) as process:
        (info,) = (await client.ps(pid=process.pid)).processes
        assert (info.app, info.nice) == ("sdk", 3)
        await client.nice(process.pid, -3)
        (info,) = (await client.ps(pid=process.pid)).processes
        assert info.nice == -3
    gone = [event async for batch in client.watch(since=0, follow=False) for event in batch.events]
    assert any(event.syscall == "nice" and event.pid == process.pid for event in gone)


async def test_models_and_aliases_come_and_go(client: AsyncLLMasOS) -> None:
    image = await client.image_add("parrot", image="echo")
    assert "parrot" in image.aliases
    assert (await client.get_model("parrot")).info.name == "echo"
    await client.image_remove("parrot")
    with pytest.raises(SyscallError) as caught:
        await client.get_model("parrot")
    assert caught.value.errno is Errno.ENOENT
    assert "models alias parrot EXISTING" in caught.value.hint


async def test_a_careful_client_may_not_change_the_machine(shared: Machine) -> None:
    async with AsyncLLMasOS(socket=shared.paths.socket) as client:
        with pytest.raises(SyscallError) as caught:
            await client.shutdown()
    assert caught.value.errno is Errno.EACCES


# --- conversations ----------------------------------------------------------------------------
async def test_a_process_keeps_its_pages_between_calls(client: AsyncLLMasOS) -> None:
    async with await client.spawn("echo", system="be brief", keep=False) as process:
        first = await process.generate("one two", temperature=0)
        second = await process.generate("three", temperature=0)
        assert (first.text, second.text) == ("one two", "three")
        assert first.finish is v.Finish.STOP
        assert second.usage.prompt_tokens > first.usage.prompt_tokens
        pages = await process.read_mem()
    assert [page.text for page in pages] == ["be brief", "one two", "one two", "three", "three"]
    assert second.pages == [3, 4]
    with pytest.raises(SyscallError) as caught:
        await process.generate("four")
    assert caught.value.errno is Errno.ESRCH


async def test_an_answer_is_read_as_it_comes_and_then_has_its_reply(client: AsyncLLMasOS) -> None:
    async with await client.spawn("echo", keep=False) as process:
        answer = process.stream("one two three", temperature=0)
        with pytest.raises(RuntimeError):
            _ = answer.reply
        pieces = [piece async for piece in answer]
    assert len(pieces) >= 1
    assert answer.reply.text == "".join(pieces) == "one two three"


async def test_one_prompt_leaves_no_process_behind(client: AsyncLLMasOS) -> None:
    model = await client.get_model("echo")
    assert await model.generate_text(prompt="hello", temperature=0) == "hello"
    talk = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "bye"}]
    assert await model.chat(talk, temperature=0) == "bye"
    assert (await model.generate("hello", nice=5, app="poem", temperature=0)).text == "hello"
    assert "poem" not in {info.app for info in (await client.ps(ended=True)).processes}


async def test_wrong_messages_and_options_are_named(client: AsyncLLMasOS) -> None:
    model = await client.get_model("echo")
    with pytest.raises(SyscallError, match="robot"):
        await model.chat([{"role": "robot", "content": "x"}])
    with pytest.raises(SyscallError) as caught:
        await model.generate_text("x", temperature=-1)
    assert caught.value.errno is Errno.EINVAL
    with pytest.raises(SyscallError, match="both pid 7 and model 'echo'") as caught:
        client.generate(7, "x", model="echo")
    assert caught.value.errno is Errno.EINVAL


async def test_a_hundred_answers_at_once_wait_for_each_other(client: AsyncLLMasOS) -> None:
    model = await client.get_model("echo")
    texts: dict[int, str] = {}

    async def ask(number: int) -> None:
        texts[number] = await model.generate_text(f"number {number}", temperature=0)

    async with anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(ask, number)
    assert texts == {number: f"number {number}" for number in range(100)}


async def test_more_calls_than_the_kernel_accepts_wait_for_each_other(
    client: AsyncLLMasOS,
) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(2 * limits.CALLS_IN_FLIGHT):
            group.start_soon(client.stat)


async def test_endless_calls_do_not_stand_in_the_way(client: AsyncLLMasOS) -> None:
    """Fewer than the kernel's limit may wait for ever; the others go on."""
    async with (
        await client.spawn("echo", keep=False) as process,
        anyio.create_task_group() as group,
    ):
        for _ in range(limits.CALLS_IN_FLIGHT // 4):
            group.start_soon(client.wait, process.pid)
        assert (await process.generate("still here", temperature=0)).text == "still here"
        group.cancel_scope.cancel()


async def test_a_follower_who_never_reads_is_dropped_and_told(client: AsyncLLMasOS) -> None:
    unread = client.watch()
    async with await client.spawn("echo", keep=False) as process:
        for number in range(limits.WATCH_EVENTS + 100):
            await client.nice(process.pid, number % 2)
    with pytest.raises(SyscallError) as caught:
        async for _batch in unread:
            pass
    assert caught.value.errno is Errno.EAGAIN
    assert "behind" in caught.value.message


# --- interruptions ----------------------------------------------------------------------------
async def test_a_cancelled_task_ends_its_call_in_the_kernel(slow: AsyncLLMasOS) -> None:
    process = await slow.spawn("echo")
    answer = process.stream(LONG, temperature=0)
    first = await answer.__anext__()
    with anyio.move_on_after(0.2):
        await answer.whole()
    again = await process.generate("next", temperature=0, max_tokens=2)  # EAGAIN if it still ran
    assert again.finish is not v.Finish.CANCELLED
    texts = [page.text for page in await process.read_mem() if page.kind is v.Kind.ASSISTANT]
    assert texts[0].startswith(first)  # what was said is kept


async def test_an_answer_that_is_left_early_is_ended(slow: AsyncLLMasOS) -> None:
    model = await slow.get_model("echo")
    async with model.stream(LONG, temperature=0) as answer:
        async for _piece in answer:
            break
    assert (await slow.ps(ended=True)).processes == []


async def test_signals_reach_a_process_that_speaks(slow: AsyncLLMasOS) -> None:
    async with await slow.spawn("echo") as process:
        answer = process.stream(LONG, temperature=0)
        await answer.__anext__()
        await process.kill("INT")
        assert (await answer.whole()).finish is v.Finish.CANCELLED
        await process.nice(5)


async def test_a_timeout_is_etimedout(slow: AsyncLLMasOS) -> None:
    async with await slow.spawn("echo") as process:
        with pytest.raises(SyscallError) as caught:
            await process.generate(LONG, timeout_s=0.2)
        assert caught.value.errno is Errno.ETIMEDOUT
        with pytest.raises(SyscallError) as caught:
            await process.wait(timeout_s=0.05)
        assert caught.value.errno is Errno.ETIMEDOUT


async def test_attach_follows_another_clients_process(slow: AsyncLLMasOS) -> None:
    process = await slow.spawn("echo")
    attached = slow.attach(process.pid)
    said = (await process.generate("a b c d", temperature=0)).text
    await process.close()
    heard = "".join([output.text async for output in attached])
    assert heard == said
    assert attached.reply is not None
    assert attached.reply.pid == process.pid


async def test_a_lost_kernel_fails_every_call_and_says_how_to_go_on(
    slow: AsyncLLMasOS, machine: Machine
) -> None:
    process = await slow.spawn("echo")
    errors: list[SyscallError] = []

    async def speak() -> None:
        with pytest.raises(SyscallError) as caught:
            await process.generate(LONG)
        errors.append(caught.value)

    async with anyio.create_task_group() as group:
        group.start_soon(speak)
        group.start_soon(speak)  # waits for nothing: EAGAIN
        await slow.attach(process.pid).__anext__()
        machine.shoot()
    with pytest.raises(SyscallError) as caught:
        await slow.stat()
    assert {error.errno for error in errors} <= {Errno.EPIPE, Errno.EAGAIN}
    assert caught.value.errno is Errno.EPIPE
    assert "connect again" in caught.value.hint


async def test_a_callers_own_error_stays_as_it_is(shared: Machine) -> None:
    with pytest.raises(ZeroDivisionError):
        async with AsyncLLMasOS(socket=shared.paths.socket):
            raise ZeroDivisionError


async def test_a_closed_client_says_so(shared: Machine) -> None:
    client = AsyncLLMasOS(socket=shared.paths.socket)
    with pytest.raises(RuntimeError, match="async with"):
        await client.stat()
    async with client:
        pass
    with pytest.raises(SyscallError) as caught:
        await client.stat()
    assert caught.value.errno is Errno.EPIPE


async def test_a_key_is_eacces(shared: Machine) -> None:
    with pytest.raises(SyscallError) as caught:
        async with AsyncLLMasOS("sk-1", socket=shared.paths.socket):
            pass
    assert caught.value.errno is Errno.EACCES


# --- the door ---------------------------------------------------------------------------------
def test_the_door_does_what_the_core_does(door: LLMasOS) -> None:
    model = door.get_model("echo")
    assert model.generate_text("hello", temperature=0) == "hello"
    assert model.chat("hi", temperature=0) == "hi"
    with model.stream("one two", temperature=0) as answer:
        assert "".join(answer) == answer.text == answer.reply.text == "one two"
    with door.spawn("echo", keep=False) as process:
        assert process.generate("a", temperature=0).text == "a"
        assert len(process.read_mem()) == 2
        process.nice(2)
        process.kill("STOP")
        process.kill("CONT")
        assert door.ps(pid=process.pid).processes[0].nice == 2
        assert door.process(process.pid).stream("b", temperature=0).text == ""
    with door.watch(since=0, follow=False) as events:
        assert sum(len(batch.events) for batch in events) > 1
        assert events.reply == v.Nothing()
    assert door.stat().connections >= 1


def test_a_stream_keeps_its_client_connected(shared: Machine) -> None:
    events = LLMasOS(socket=shared.paths.socket).watch(since=0, follow=False)
    gc.collect()
    assert [event for batch in events for event in batch.events]
    assert events.reply == v.Nothing()


def test_threads_share_a_door(door: LLMasOS) -> None:
    model = door.get_model("echo")
    texts: dict[int, str] = {}

    def ask(number: int) -> None:
        texts[number] = model.generate_text(f"thread {number}", temperature=0)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GUARD_S)
    assert texts == {number: f"thread {number}" for number in range(8)}


def test_a_closed_door_closes_its_processes_once(shared: Machine) -> None:
    door = LLMasOS(socket=shared.paths.socket)
    pid = door.spawn("echo", keep=False).pid
    door.close()
    door.close()
    with LLMasOS(socket=shared.paths.socket) as other:
        with other.watch(since=0, pid=pid, kinds=["process"]) as events:
            next(batch for batch in events if batch.events[-1].note.startswith("exit"))
        with other.watch(since=0, follow=False, pid=pid, kinds=["process"]) as events:
            notes = [event.note for batch in events for event in batch.events]
        assert [note for note in notes if note.startswith("exit")] == [
            "exit 129 its connection closed"
        ]
        assert pid not in {info.pid for info in other.ps().processes}


def test_a_program_that_forgets_to_close_ends_all_the_same(shared: Machine) -> None:
    code = "from llmasos import LLMasOS; c = LLMasOS(); c.spawn('echo', keep=False); print('end')"
    done = shared.python("-W", "error", "-c", code)
    assert (done.stdout, done.stderr) == (b"end\n", b"")
