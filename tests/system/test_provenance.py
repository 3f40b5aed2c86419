"""Who wrote a page, and of what kind it is, the kernel says; callers say who spoke."""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmasos import LLMasOS
from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.client import BlockingClient
from tests.conftest import Machine
from tests.system.raw import raw
from tests.system.test_program import run
from tests.system.test_residency import running


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def notes(shared: Machine) -> Iterator[LLMasOS]:
    """An application."""
    with LLMasOS(socket=shared.paths.socket, app="notes") as client:
        yield client


@pytest.fixture
def line(shared: Machine) -> Iterator[BlockingClient]:
    """A person at the command line."""
    with BlockingClient(shared.paths.socket) as line:
        yield line


def owner(client: LLMasOS) -> str:
    assert client.welcome is not None
    return client.welcome.owner


def made(page: v.Page) -> tuple[str, str, str]:
    return page.kind, page.author, page.speaker


@pytest.mark.parametrize("field", ["author", "kind", "owner", "written", "message", "source"])
def test_a_writer_does_not_say_what_the_kernel_knows(shared: Machine, field: str) -> None:
    with raw(shared.paths.socket) as client:
        pid = client.call("spawn", model="echo", keep=False)["pid"]
        said = client.refused("write_mem", pid=pid, text="a text", **{field: "user"})
        assert said["errno"] == Errno.EINVAL
        assert field in said["message"]
        assert client.call("read_mem", pid=pid)["pages"] == []


def test_a_note_is_its_writer_s_whoever_is_said_to_have_spoken(
    notes: LLMasOS, line: BlockingClient
) -> None:
    with notes.spawn("echo", keep=False) as process:
        process.write_mem("the boat is red", speaker=owner(notes), time=1000.0)
        [page] = process.read_mem()
        assert made(page) == (v.Kind.NOTE, "app:notes", owner(notes))
        assert (page.time, page.written > 1e9) == (1000.0, True)
        line.call("write_mem", v.WriteMem(process.pid, "the boat is blue"), v.Written)
        assert made(process.read_mem()[1]) == (v.Kind.NOTE, owner(notes), "")


def test_whoever_replaces_a_text_has_written_it(notes: LLMasOS, line: BlockingClient) -> None:
    pid = line.call("spawn", v.Spawn("echo"), v.Spawned).pid
    asked = v.Generate(pid, [v.Message(v.Role.USER, "my words")], sampling=v.Sampling(max_tokens=3))
    for _ in line.stream("generate", asked, v.Delta, v.Generated):
        pass
    child = notes.spawn("echo", keep=False)
    line.call("mmap", v.Mmap(child.pid, f"/proc/{pid}/mem"), v.Mapped)
    before = child.read_mem()
    assert [made(page)[:2] for page in before] == [("user", owner(notes)), ("assistant", "echo")]
    for number, page in enumerate(before):
        child.write_mem(f"{page.text} and more", page=number)
    after = child.read_mem()
    assert {made(page) for page in after} == {(v.Kind.NOTE, "app:notes", "")}
    assert [page.message for page in after] == [page.message for page in before]
    theirs = line.call("read_mem", v.ReadMem(pid), v.Pages).pages
    assert [page.author for page in theirs] == [owner(notes), "echo"]
    child.close()
    line.call("kill", v.Kill(pid), v.Nothing)
    line.call("wait", v.Wait(pid), v.Exit)


def test_labels_stay_with_what_takes_the_place_of_a_text(notes: LLMasOS) -> None:
    with notes.spawn("echo", keep=False) as process:
        [number] = process.write_mem("from the web", labels=["web"])
        process.write_mem("another text", page=number)
        process.write_mem("a third one", page=number, labels=["file"])
        assert process.read_mem()[0].labels == ["web", "file"]
        process.write_mem("red", key="colour", labels=["web"])
        process.write_mem("blue", key="colour", labels=["mail"])
        assert process.read_mem()[-1].labels == ["web", "mail"]


def test_messages_of_any_role_are_the_caller_s_and_the_answer_is_the_model_s(
    notes: LLMasOS,
) -> None:
    said = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "I am the model"},
        {"role": "user", "content": "go on"},
    ]
    # A process may be called as anybody.
    with notes.spawn("echo", keep=False, app=owner(notes), system="you are kind") as process:
        process.generate(said, max_tokens=3)
        found = [made(page)[:2] for page in process.read_mem()]
        roles = ["system", *(one["role"] for one in said)]
        assert found == [*((role, "app:notes") for role in roles), ("assistant", "echo")]
        [child] = process.fork()
        assert [made(page)[:2] for page in child.read_mem()] == found
        child.close()


def test_a_document_is_whoever_s_mapped_it(
    shared: Machine, line: BlockingClient, tmp_path: Path
) -> None:
    name = line.welcome.owner  # a file may be called like a user
    (tmp_path / name).write_text("a text")
    with (
        LLMasOS(socket=shared.paths.socket, app="notes", profile="operator") as notes,
        notes.spawn("echo", keep=False) as process,
    ):
        process.mmap(f"/files{tmp_path}/{name}")
        assert made(process.read_mem()[0]) == (v.Kind.DOCUMENT, "app:notes", name)


def test_a_message_says_which_application_sent_it(notes: LLMasOS, line: BlockingClient) -> None:
    with (
        notes.spawn("echo", keep=False) as to,
        notes.spawn("echo", keep=False, app=owner(notes)) as sender,
    ):
        notes.send(to.pid, "from the application")
        sender.send(to.pid, "from a process that is called like the user")
        line.call("send", v.Send(to.pid, "from the user"), v.Sent)
        authors = [to.recv(0).author for _ in range(3)]
        assert authors == ["app:notes", f"app:{owner(notes)}", owner(notes)]


def test_the_author_and_the_speaker_are_both_found(notes: LLMasOS) -> None:
    with notes.spawn("echo", keep=False) as process:
        process.write_mem("the boat is red", speaker="ann")
        process.write_mem("the boat is blue")
        for author, count in (("ann", 1), ("app:notes", 2), ("bob", 0)):
            assert len(process.search_mem("boat", author=author).hits) == count


FORGES = """
    import json, sys
    from llmasos import LLMasOS

    with LLMasOS(app="llmasos") as client:
        process = client.process(int(sys.argv[2]))
        process.write_mem("a text")
        said = {"authors": [page.author for page in process.read_mem()]}
"""


@pytest.mark.anyio
async def test_a_program_of_the_kernel_is_not_taken_for_a_person(tmp_path: Path) -> None:
    async with running(tmp_path) as (kernel, client):
        started = await client.spawn("one", app="tool")
        process = kernel.processes.get(started.pid, kernel.run.owner)
        said: dict[str, Any] = await run(
            kernel, process, tmp_path, textwrap.dedent(FORGES), str(started.pid)
        )
        assert said == {"authors": ["app:tool"]}


def test_a_summary_is_made_by_the_kernel_alone(notes: LLMasOS) -> None:
    with notes.spawn("echo", keep=False) as process, pytest.raises(TypeError):
        process.write_mem("a text", kind="summary")  # type: ignore[call-arg]
    with pytest.raises(SyscallError):
        notes.read_mem(process.pid)
