"""Forgetting is real: after it no byte of a text, of its words or of its vector is on the disk."""

import sqlite3
from pathlib import Path

import pytest

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.client import BlockingClient
from tests.files import containing
from tests.system.daemon import Machine
from tests.waiting import until

SECRET = "zanzibarquince"  # a word that no stemmer changes


def spawn(line: BlockingClient) -> int:
    return line.call("spawn", v.Spawn("echo"), v.Spawned).pid


def indexed(line: BlockingClient, pid: int, question: str) -> v.Hits:
    """A search after all pages have their vectors."""

    def complete() -> v.Hits | None:
        found = line.call("search_mem", v.SearchMem(pid, question), v.Hits)
        return None if found.note else found

    return until(complete)


def vectors(machine: Machine) -> dict[int, bytes]:
    (file,) = (machine.paths.state / "owners").glob("*/pages.db")
    with sqlite3.connect(file) as database:
        rows = database.execute("SELECT id, vector FROM vectors").fetchall()
    database.close()
    return dict(rows)


def holding(machine: Machine, what: bytes) -> set[str]:
    """Files that hold some bytes, whatever kind of file it is."""
    root = machine.paths.state
    return {str(path.relative_to(root)) for path in containing(root, what)}


def near(machine: Machine, vector: bytes) -> set[str]:
    """The same for a vector: any 32 bytes of it in a row."""
    pieces = [vector[at : at + 32] for at in range(0, len(vector) - 31, 32)]
    return {name for piece in pieces for name in holding(machine, piece)}


@pytest.mark.usefixtures("meaning")
def test_what_is_forgotten_is_nowhere_on_the_disk(machine: Machine) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line)
        for number in range(12):
            line.call("write_mem", v.WriteMem(pid, f"Page {number} is about bread."), v.Written)
        asked = v.WriteMem(pid, f"The secret word is {SECRET}.", key="secret")
        (page,) = line.call("write_mem", asked, v.Written).pages
        for number in range(3):
            line.call("write_mem", v.WriteMem(pid, f"After it, tea {number}."), v.Written)
        (child,) = line.call("fork", v.Fork(pid), v.Forked).pids
        indexed(line, pid, "What is the secret?")
        where = v.TraceMem(pid, page)
        assert SECRET in line.call("trace_mem", where, v.Trace).page.text
        assert line.call("fsck", v.Fsck(), v.Checked).faults == []  # Chroma has caught up
        before = vectors(machine)
        gone = max(before, key=lambda one: one == _id(machine, SECRET))
        assert holding(machine, SECRET.encode())  # so that the test can fail
        assert any("chroma" in name for name in near(machine, before[gone]))
        done = line.call("forget", v.Forget(pid, key="secret"), v.Forgotten)
        assert (done.pages, done.processes) == (1, [pid, child])
        assert holding(machine, SECRET.encode()) == set()
        assert near(machine, before[gone]) == set()
        assert set(vectors(machine)) == set(before) - {gone}
        for one in (pid, child):
            hits = indexed(line, one, f"What is the secret word {SECRET}?").hits
            assert all(SECRET not in hit.page.text for hit in hits)
            numbers = [p.number for p in line.call("read_mem", v.ReadMem(one), v.Pages).pages]
            assert page not in numbers
            assert len(numbers) == 15
        checked = line.call("fsck", v.Fsck(), v.Checked)
        assert checked.faults == []
        with pytest.raises(SyscallError, match="has no key 'secret'") as caught:
            line.call("forget", v.Forget(pid, key="secret"), v.Forgotten)
        assert caught.value.errno is Errno.ENOENT
    machine.stop()
    assert holding(machine, SECRET.encode()) == set()
    assert near(machine, before[gone]) == set()


def _id(machine: Machine, text: str) -> int:
    (file,) = (machine.paths.state / "owners").glob("*/pages.db")
    with sqlite3.connect(file) as database:
        (found,) = database.execute("SELECT id FROM pages WHERE text LIKE ?", (f"%{text}%",))
    database.close()
    return int(found[0])


def test_a_reaped_processs_words_are_gone_when_the_machine_is_down(machine: Machine) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        pid, other = spawn(line), spawn(line)
        line.call("write_mem", v.WriteMem(other, "Something else stays."), v.Written)
        line.call("write_mem", v.WriteMem(pid, f"The word is {SECRET}."), v.Written)
        assert holding(machine, SECRET.encode())
        line.call("kill", v.Kill(pid), v.Nothing)
        line.call("wait", v.Wait(pid), v.Exit)
    machine.stop()
    assert holding(machine, SECRET.encode()) == set()
    assert holding(machine, b"Something else stays")


def test_a_crash_before_the_sweep_is_made_good_by_the_next_run(machine: Machine) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line)
        line.call("write_mem", v.WriteMem(pid, f"The word is {SECRET}."), v.Written)
        line.call("kill", v.Kill(pid), v.Nothing)
        line.call("wait", v.Wait(pid), v.Exit)
    machine.shoot()
    assert holding(machine, SECRET.encode())
    machine.start("--mount", "false")
    machine.stop()
    assert holding(machine, SECRET.encode()) == set()


@pytest.mark.parametrize("number", [0, 7])
def test_what_is_not_there_is_not_forgotten(machine: Machine, number: int, tmp_path: Path) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line)
        with pytest.raises(SyscallError, match=f"process {pid} has no page {number}") as caught:
            line.call("forget", v.Forget(pid, number), v.Forgotten)
        assert caught.value.errno is Errno.ENOENT


def test_a_forget_of_no_page_says_which(machine: Machine) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line)
        line.call("write_mem", v.WriteMem(pid, "A page."), v.Written)
        for request, errno, text in (
            (v.Forget(pid, 0, 0), Errno.EINVAL, "count is 0"),
            (v.Forget(pid, 7), Errno.ENOENT, "has no page 7"),
            (v.Forget(pid, 7, 3), Errno.ENOENT, "has no page from 7 to 9"),
            (v.Forget(pid, key="none"), Errno.ENOENT, "has no key 'none'"),
        ):
            with pytest.raises(SyscallError, match=text) as error:
                line.call("forget", request, v.Forgotten)
            assert error.value.errno is errno
        assert line.call("forget", v.Forget(pid, 0), v.Forgotten).pages == 1
