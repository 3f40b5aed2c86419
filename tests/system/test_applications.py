"""Applications: a careful program acts on what it started, and reads nothing else of its user."""

import json
import textwrap
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from llmasos import AsyncLLMasOS, LLMasOS
from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.table import TABLE
from llmasos.userland.sdk import application
from tests.conftest import Machine
from tests.system.test_program import run
from tests.system.test_residency import running

SECRET = "the vault opens with seven"
Try = Callable[[LLMasOS, int, int], object]  # a client, another's process, its own process
TRIES: dict[str, Try] = {
    "read_mem": lambda c, theirs, _: c.read_mem(theirs),
    "write_mem": lambda c, theirs, _: c.write_mem(theirs, "rewritten", page=0),
    "search_mem": lambda c, theirs, _: c.search_mem(theirs, "vault"),
    "trace_mem": lambda c, theirs, _: c.trace_mem(theirs, 0),
    "pin": lambda c, theirs, _: c.pin(theirs, 0),
    "evict": lambda c, theirs, _: c.evict(theirs, 0),
    "mmap": lambda c, theirs, own: c.mmap(own, f"/proc/{theirs}/mem"),
    "mmap into": lambda c, theirs, own: c.mmap(theirs, f"/proc/{own}/mem"),
    "munmap": lambda c, theirs, _: c.munmap(theirs, 0),
    "share": lambda c, theirs, own: c.share(theirs, own, 0),
    "share with": lambda c, theirs, own: c.share(own, theirs, 0),
    "forget": lambda c, theirs, _: c.forget(theirs, 0),
    "generate": lambda c, theirs, _: c.process(theirs).generate("go on", max_tokens=1),
    "fork": lambda c, theirs, _: c.fork(theirs),
    "spawn": lambda c, theirs, _: c.spawn("echo", parent=theirs),
    "send": lambda c, theirs, _: c.send(theirs, "hello"),
    "send as": lambda c, theirs, own: c.send(own, "hello", sender=theirs),
    "recv": lambda c, theirs, _: c.recv(theirs, 0),
    "attach": lambda c, theirs, _: list(c.attach(theirs)),
    "wait": lambda c, theirs, _: c.wait(theirs, 0),
    "kill": lambda c, theirs, _: c.kill(theirs, "KILL"),
    "nice": lambda c, theirs, _: c.nice(theirs, 5),
    "ps": lambda c, theirs, _: c.ps(pid=theirs),
}


def client(machine: Machine, app: str, profile: str = "careful") -> LLMasOS:
    return LLMasOS(socket=machine.paths.socket, app=app, profile=profile)


def begun(of: LLMasOS) -> int:
    """A process with something in it."""
    process = of.spawn("echo", keep=True)
    process.write_mem(SECRET)
    return process.pid


@contextmanager
def ruled(machine: Machine, row: str) -> Generator[None]:
    """The owner's rule meanwhile."""
    with client(machine, "person", "owner") as owner:
        owner.policy_edit(add=[row])
        yield
        owner.policy_edit(remove=[row])


@pytest.fixture
def theirs(shared: Machine) -> Iterator[int]:
    """A process that a person holds in the command line."""
    done = shared.llmasos("run", "-m", "echo", "--keep", "--json", SECRET)
    pid: int = json.loads(done.stdout)["pid"]
    yield pid
    shared.llmasos("kill", str(pid))
    shared.llmasos("wait", str(pid), check=False)


@pytest.fixture
def notes(shared: Machine) -> Iterator[LLMasOS]:
    """A program that asks for no profile."""
    with client(shared, "notes") as careful:
        yield careful
        for one in careful.ps(ended=True).processes:
            careful.process(one.pid).close()


def test_every_call_about_a_process_is_tried_here() -> None:
    about = {row.name for row in TABLE.values() if "/proc" in row.object + row.second}
    assert about | {"mmap"} == {name.partition(" ")[0] for name in TRIES}


def test_a_careful_program_touches_nothing_that_a_person_holds(
    shared: Machine, theirs: int, notes: LLMasOS
) -> None:
    own = begun(notes)
    with client(shared, "watcher", "operator") as operator:
        before = operator.read_mem(theirs)
        for name, attempt in TRIES.items():
            with pytest.raises(SyscallError) as caught:
                attempt(notes, theirs, own)
            assert caught.value.errno is Errno.EACCES, (name, caught.value)
        assert operator.read_mem(theirs) == before
        assert operator.ps(pid=theirs).processes[0].state is v.State.READY


def test_a_refusal_names_the_rule_and_a_command_that_allows_it(
    shared: Machine, theirs: int, notes: LLMasOS
) -> None:
    with pytest.raises(SyscallError) as caught:
        notes.process(theirs).read_mem()
    said = caught.value
    assert f"process {theirs} was started by llmasos" in said.message
    assert "careful.csv:9: p, r:careful, read_mem, /proc/own/*, allow" in said.message
    command = said.hint.split("`")[1]
    row = f"p, r:careful, read_mem, /proc/{theirs}/mem, allow"
    assert command == f'llmasos policy add "{row}"'
    with ruled(shared, row):
        assert SECRET in notes.process(theirs).read_mem()[0].text
        with pytest.raises(SyscallError):
            notes.process(theirs).write_mem("rewritten", page=0)
    with pytest.raises(SyscallError):
        notes.process(theirs).read_mem()


def test_a_program_has_its_processes_in_its_next_connection(
    shared: Machine, notes: LLMasOS
) -> None:
    own = begun(notes)
    with client(shared, "notes") as again, client(shared, "other") as other:
        assert [one.pid for one in again.ps().processes] == [own]
        assert [page.text for page in again.read_mem(own).pages] == [SECRET]
        [child] = again.fork(own)
        assert [one.pid for one in notes.ps().processes] == [own, child.pid]
        assert other.ps().processes == []
        with pytest.raises(SyscallError, match="was started by notes"):
            other.read_mem(own)


def test_whoever_forks_for_a_person_takes_nothing_from_the_program(
    shared: Machine, notes: LLMasOS
) -> None:
    own = begun(notes)
    child = int(shared.llmasos("fork", str(own)).stdout)
    assert notes.ps(pid=child).processes[0].started_by == ["notes", "llmasos"]
    assert notes.read_mem(child).pages[0].text == SECRET
    done = shared.llmasos("chat", "--pid", str(own), stdin="hello")  # a person goes on with it
    assert done.stdout.strip()


def test_other_profiles_see_what_their_user_has(
    shared: Machine, theirs: int, notes: LLMasOS
) -> None:
    for profile in ("reader", "open", "operator"):
        with client(shared, "notes", profile) as wide:
            assert theirs in [one.pid for one in wide.ps().processes]
            assert SECRET in wide.read_mem(theirs).pages[0].text


def test_a_process_that_is_not_there_is_esrch_for_a_careful_program(notes: LLMasOS) -> None:
    process = notes.spawn("echo")
    process.close()
    for call in (process.read_mem, process.fork, process.kill, process.wait):
        with pytest.raises(SyscallError) as caught:
            call()
        assert caught.value.errno is Errno.ESRCH
    process.close()  # a second time


def test_pages_of_a_person_are_not_forgotten_through_a_share(
    shared: Machine, theirs: int, notes: LLMasOS
) -> None:
    own = begun(notes)
    with client(shared, "person", "operator") as operator:
        first = operator.share(theirs, own, 0).first
        assert SECRET in notes.read_mem(own, first=first).pages[0].text
        with pytest.raises(SyscallError, match=f"forget /proc/{theirs}/mem") as caught:
            notes.forget(own, first)
        assert caught.value.errno is Errno.EACCES
        assert SECRET in operator.read_mem(theirs).pages[0].text
        assert notes.forget(own, 0).pages == 1  # what is its own alone


def test_a_careful_program_follows_its_own_events(shared: Machine, theirs: int) -> None:
    with client(shared, "follower") as careful:
        follow(shared, careful, theirs)


def follow(shared: Machine, notes: LLMasOS, theirs: int) -> None:
    own = begun(notes)
    shared.llmasos("nice", "3", str(own))
    shared.llmasos("nice", "3", str(theirs))
    with pytest.raises(SyscallError):
        notes.read_mem(theirs)
    with notes.watch(since=0, follow=False) as events:
        found = [event for batch in events for event in batch.events if event.owner]
    assert {event.pid for event in found if event.kind != "refused"} <= {0, own}
    assert {"spawn", "write_mem", "nice", "read_mem"} <= {event.syscall for event in found}
    assert any(event.kind == "process" and event.note.startswith("spawn") for event in found)
    assert any(event.kind == "refused" and event.pid == theirs for event in found)  # its own try
    with notes.watch(since=0, follow=False, pid=theirs) as events:
        assert {event.kind for batch in events for event in batch.events} == {"refused"}


def test_what_others_were_refused_is_not_explained(shared: Machine, notes: LLMasOS) -> None:
    with client(shared, "other") as other, pytest.raises(SyscallError) as caught:
        other.shutdown()
    number = int(caught.value.hint.split("explain ")[1].split("`")[0])
    with pytest.raises(SyscallError) as missing:
        notes.policy_check(call=number)
    assert missing.value.errno is Errno.ENOENT
    with client(shared, "person", "operator") as operator:
        assert operator.policy_check(call=number).action == "shutdown"


def test_a_deny_holds_for_own_processes_by_either_name(shared: Machine, notes: LLMasOS) -> None:
    own = begun(notes)
    for object_ in (f"/proc/{own}/mem", "/proc/*", f"/proc/own/{own}/mem", "/proc/own/*"):
        row = f"p, r:careful, read_mem, {object_}, deny"
        with ruled(shared, row), pytest.raises(SyscallError, match=r"policy\.csv:1"):
            notes.read_mem(own)
    denied = pytest.raises(SyscallError, match=r"policy\.csv:1")
    with ruled(shared, "p, r:careful, ps, /proc, deny"), denied:
        notes.ps()
    assert notes.ps().processes


def test_a_rule_for_an_application_binds_its_connections(shared: Machine, notes: LLMasOS) -> None:
    with ruled(shared, "p, app:notes, spawn, /dev/image/*, deny"):
        with pytest.raises(SyscallError, match=r"policy\.csv:1"):
            notes.spawn("echo")
        with client(shared, "other") as other:
            other.spawn("echo").close()


def test_applications_outlive_the_daemon(machine: Machine) -> None:
    machine.start("--mount", "false")
    with client(machine, "notes") as notes:
        own = begun(notes)
    machine.shoot()
    machine.start("--mount", "false")
    with client(machine, "notes") as notes, client(machine, "other") as other:
        assert notes.read_mem(own).pages[0].text == SECRET
        with pytest.raises(SyscallError, match="was started by notes"):
            other.read_mem(own)


# --- what a program is called ---------------------------------------------------------------------
NAMED = """
    import json, sys
    from llmasos.userland.sdk import application
    print(application.name())
"""


def test_a_program_has_a_name_of_its_own_each_time(shared: Machine, tmp_path: Path) -> None:
    files = [tmp_path / folder / "main.py" for folder in ("one", "two")]
    for file in (*files, tmp_path / "pack" / "job.py", tmp_path / "pack" / "__main__.py"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(textwrap.dedent(NAMED))
    (tmp_path / "pack" / "__init__.py").touch()

    def named(*words: str) -> str:
        return shared.python(*words, PYTHONPATH=str(tmp_path)).stdout.decode().strip()

    one, again, two = (named(str(file)) for file in (files[0], files[0], files[1]))
    assert one == again != two
    assert one.startswith("main-")
    assert named("-m", "pack.job") == "pack.job"
    assert named("-m", "pack") == "pack"
    assert named("-c", textwrap.dedent(NAMED)) == application.INTERACTIVE


def test_the_name_that_a_program_gives_itself_is_what_the_kernel_has(shared: Machine) -> None:
    with client(shared, "") as unnamed, client(shared, "notes") as notes:
        assert unnamed.welcome is not None
        assert unnamed.welcome.app == application.name()
        assert notes.welcome is not None
        assert notes.welcome.app == "notes"
    with pytest.raises(SyscallError, match="app"):
        client(shared, "not a name")


# --- programs that the kernel started -------------------------------------------------------------
SEES = """
    import json, sys
    from llmasos import LLMasOS
    from llmasos.kernel.abi.errors import SyscallError

    def errno(call, *args):
        try:
            call(*args)
        except SyscallError as error:
            return error.errno.name
        return "ok"

    with LLMasOS(app="notes", profile=sys.argv[2]) as client:
        mine, beside = map(int, sys.argv[3:])
        said = {"app": client.welcome.app, "before": [one.pid for one in client.ps().processes]}
        child = client.spawn("one", keep=True)
        said["after"] = [one.pid for one in client.ps().processes] == [mine, child.pid]
        said["mine"], said["beside"] = errno(client.read_mem, mine), errno(client.kill, beside)
"""


@pytest.mark.anyio
@pytest.mark.parametrize("profile", ["careful", "open"])
async def test_a_program_has_the_identity_of_its_process(tmp_path: Path, profile: str) -> None:
    """It says that it is the application that started its process, and is not."""
    where = tmp_path / "runtime" / "kernel.sock"
    async with running(tmp_path) as (kernel, _), AsyncLLMasOS(socket=where, app="notes") as notes:
        mine, beside = [(await notes.spawn("one", app=name)).pid for name in ("tool", "x")]
        process = kernel.processes.get(mine, kernel.run.owner)
        said: dict[str, Any] = await run(
            kernel, process, tmp_path, SEES, profile, str(mine), str(beside)
        )
        assert said == {
            "app": "tool", "before": [mine], "after": True, "mine": "ok", "beside": "EACCES",
        }  # fmt: skip
        below = [one.pid for one in (await notes.ps()).processes]
        assert below[:1] == [beside]  # its own process ended with its program
        assert len(below) == 2  # what its process started is of the application, too


@pytest.mark.anyio
async def test_a_new_process_is_nobody_s_while_its_number_is_free(tmp_path: Path) -> None:
    """Numbers can be foreseen: a call about one that is not there yet must not be let through."""
    where = tmp_path / "runtime" / "kernel.sock"
    async with running(tmp_path) as (_, operator), AsyncLLMasOS(socket=where, app="x") as careful:
        last = (await operator.spawn("one")).pid
        said = list[SyscallError]()

        async def read(pid: int) -> None:
            try:
                await careful.read_mem(pid)
            except SyscallError as error:
                said.append(error)

        await read(last + 1)
        assert (await operator.spawn("one")).pid == last + 1
        await read(last + 1)
        assert [one.errno for one in said] == [Errno.ESRCH, Errno.EACCES]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read, last + 2)
            tasks.start_soon(operator.spawn, "one")
        assert len(said) == 3  # whichever came first: it was not let through


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
