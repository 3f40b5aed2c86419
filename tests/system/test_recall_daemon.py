"""The recall process below a daemon: it may die at any time, and a child has its parent's pages."""

import time

import psutil

from llmasos.kernel import values as v
from llmasos.userland.line import Line
from tests.system.daemon import Machine

FACT, QUESTION = "My dog is afraid of thunder.", "What does my pet fear?"  # no word in common
TALK = "Somebody spoke of rivers, chairs and bread, and of many other things, at length. " * 3
DEADLINE_S = 60.0


def search(line: Line, pid: int, question: str = QUESTION) -> v.Hits:
    return line.call("search_mem", v.SearchMem(pid, question, 3), v.Hits)


def by_meaning(line: Line, pid: int, question: str = QUESTION) -> v.Hits:
    """A search to which nothing is missing."""
    until = time.monotonic() + DEADLINE_S
    while (found := search(line, pid, question)).note:
        assert time.monotonic() < until, found.note
        time.sleep(0.05)
    return found


def texts(found: v.Hits) -> list[str]:
    return [hit.page.text for hit in found.hits]


def say(line: Line, pid: int, text: str) -> v.Generated:
    sampling = v.Sampling(temperature=0, max_tokens=20)
    asked = v.Generate(pid, [v.Message(v.Role.USER, text)], sampling=sampling)
    stream = line.stream("generate", asked, v.Delta, v.Generated)
    for _ in stream:
        pass
    assert stream.reply is not None
    return stream.reply


def children(kernel: int) -> list[psutil.Process]:
    """The recall processes of a daemon."""
    found = psutil.Process(kernel).children()
    return [one for one in found if "llmasos.drivers.recall.child" in one.cmdline()]


def test_a_killed_recall_process_costs_no_page_and_comes_back(machine: Machine) -> None:
    machine.start("--mount", "false", "--window", "512")
    with Line(machine.paths.socket) as line:
        pid = line.call("spawn", v.Spawn("echo"), v.Spawned).pid
        line.call("write_mem", v.WriteMem(pid, FACT), v.Written)
        for turn in range(6):
            say(line, pid, f"{turn} {TALK}")
        assert FACT in texts(by_meaning(line, pid))
        before = line.call("read_mem", v.ReadMem(pid), v.Pages).pages
        [process] = children(line.call("stat", v.Nothing(), v.Stat).os_pid)
        process.kill()
        process.wait(DEADLINE_S)
        while "by words only" not in (found := search(line, pid, "thunder")).note:
            assert found.note == ""  # the kernel has not heard of it yet
        assert FACT in texts(found)
        told = say(line, pid, "Who is afraid of thunder?")
        assert 0 in {fault.page for fault in told.faults}
        assert FACT in texts(by_meaning(line, pid))
        after = line.call("read_mem", v.ReadMem(pid), v.Pages).pages
        assert [page.text for page in after[: len(before)]] == [page.text for page in before]


def test_a_child_finds_its_parents_pages_by_meaning_and_its_own(machine: Machine) -> None:
    machine.start("--mount", "false")
    with Line(machine.paths.socket) as line:
        pid = line.call("spawn", v.Spawn("echo"), v.Spawned).pid
        line.call("write_mem", v.WriteMem(pid, FACT), v.Written)
        (child,) = line.call("fork", v.Fork(pid), v.Forked).pids
        own = "Bread has to rest before it goes into the oven."
        line.call("write_mem", v.WriteMem(child, own), v.Written)
        assert texts(by_meaning(line, child))[0] == FACT
        baking = "How does one bake a loaf?"
        assert texts(by_meaning(line, child, baking))[0] == own
        assert own not in texts(by_meaning(line, pid, baking))


def test_pages_without_a_vector_are_counted_until_none_is_left(machine: Machine) -> None:
    def waiting() -> int:
        return line.call("stat", v.Nothing(), v.Stat).pages_waiting

    machine.start("--mount", "false")
    with Line(machine.paths.socket) as line:
        pid = line.call("spawn", v.Spawn("echo"), v.Spawned).pid
        for number in range(40):
            line.call("write_mem", v.WriteMem(pid, f"{number} {TALK}"), v.Written)
        assert waiting() > 0
        by_meaning(line, pid)
        assert waiting() == 0
        line.call("fsck", v.Fsck(rebuild=True), v.Checked)
        by_meaning(line, pid)
        assert waiting() == 0
        checked = line.call("fsck", v.Fsck(), v.Checked)
        assert (checked.vectors, checked.faults) == (40, [])
