"""The recall process below a daemon: it may die at any time, and a child has its parent's pages."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient
from tests.system.daemon import Machine
from tests.system.test_life import spawn, turn
from tests.waiting import DEADLINE_S, until

FACT, QUESTION = "My dog is afraid of thunder.", "What does my pet fear?"  # no word in common
TALK = "Somebody spoke of rivers, chairs and bread, and of many other things, at length. " * 3
PAGES = 40  # fewer than become vectors at once: none of them is counted on the way


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlockingClient]:
    """A client of a machine whose recall process may die at any time."""
    machine = Machine(tmp_path_factory.mktemp("common"))
    machine.meaning()
    machine.start("--mount", "false", "--window", "512")
    with BlockingClient(machine.paths.socket) as line:
        yield line
    machine.down()


def search(line: BlockingClient, pid: int, question: str = QUESTION) -> v.Hits:
    return line.call("search_mem", v.SearchMem(pid, question, 3), v.Hits)


def by_meaning(line: BlockingClient, pid: int, question: str = QUESTION) -> v.Hits:
    """A search to which nothing is missing."""

    def complete() -> v.Hits | None:
        found = search(line, pid, question)
        return None if found.note else found

    return until(complete)


def texts(found: v.Hits) -> list[str]:
    return [hit.page.text for hit in found.hits]


def recall_child(line: BlockingClient) -> psutil.Process:
    """The recall process of a daemon."""
    found = psutil.Process(line.call("stat", v.Nothing(), v.Stat).os_pid).children()
    [child] = [one for one in found if "llmasos.drivers.recall.child" in one.cmdline()]
    return child


def recall_state(line: BlockingClient) -> str:
    recall = line.call("devices", v.Nothing(), v.Devices).recall
    assert recall is not None
    return recall.state


def until_waiting(line: BlockingClient, wanted: int) -> None:
    """Asks without a search: that would set off itself what should happen without one."""
    until(lambda: line.call("stat", v.Nothing(), v.Stat).pages_waiting == wanted)


def test_a_killed_recall_process_costs_no_page_and_comes_back(line: BlockingClient) -> None:
    pid = spawn(line)
    line.call("write_mem", v.WriteMem(pid, FACT), v.Written)
    for number in range(6):
        turn(line, pid, f"{number} {TALK}")
    assert FACT in texts(by_meaning(line, pid))
    before = line.call("read_mem", v.ReadMem(pid), v.Pages).pages
    process = recall_child(line)
    process.suspend()  # while it does not answer, words are all there is, and that is said
    found = search(line, pid, "thunder")
    assert "lexical only" in found.note
    assert FACT in texts(found)
    _, told = turn(line, pid, "Who is afraid of thunder?")
    assert 0 in {fault.page for fault in told.faults}
    assert any("lexical only" in notice for notice in told.notices)
    process.kill()
    process.wait(DEADLINE_S)
    again = {hit.page.number: hit for hit in by_meaning(line, pid).hits}
    assert again[0].page.text == FACT
    assert again[0].parts["meaning"] > 0
    after = line.call("read_mem", v.ReadMem(pid), v.Pages).pages
    assert [page.text for page in after[: len(before)]] == [page.text for page in before]


def test_a_child_finds_its_parents_pages_by_meaning_and_its_own(line: BlockingClient) -> None:
    pid = spawn(line)
    line.call("write_mem", v.WriteMem(pid, FACT), v.Written)
    (child,) = line.call("fork", v.Fork(pid), v.Forked).pids
    own = "Bread has to rest before it goes into the oven."
    line.call("write_mem", v.WriteMem(child, own), v.Written)
    assert texts(by_meaning(line, child))[0] == FACT
    baking = "How does one bake a loaf?"
    assert texts(by_meaning(line, child, baking))[0] == own
    assert own not in texts(by_meaning(line, pid, baking))


@pytest.mark.usefixtures("meaning")
def test_pages_of_who_never_searches_become_vectors(machine: Machine) -> None:
    machine.limits(RECALL_BOOT_S=0.0, INDEX_FIRST_PAGES=8)
    machine.start("--mount", "false", "--window", "512")
    with BlockingClient(machine.paths.socket) as line:
        assert recall_state(line) == "idle"  # there was no page when it looked
        pid = spawn(line)
        for number in range(3):
            turn(line, pid, f"{number} {TALK}")
        assert recall_state(line) == "idle"
        for number in range(3):
            turn(line, pid, f"{number} {TALK}")
        until_waiting(line, 0)
        assert recall_state(line) == "up"


def test_pages_become_vectors_after_a_start_and_the_first_question_is_answered_by_meaning(
    machine: Machine,
) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line)
        for text in (FACT, "Bread has to rest before it goes into the oven."):
            line.call("write_mem", v.WriteMem(pid, text), v.Written)
    machine.stop()
    machine.meaning()
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        until(  # nobody has asked for anything
            lambda: line.call("stat", v.Nothing(), v.Stat).indexing == "current" or None
        )
    machine.stop()
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        found = search(line, pid)
        assert found.note == ""
        assert found.hits[0].parts["meaning"] > 0


@pytest.mark.usefixtures("meaning")
def test_pages_without_a_vector_are_counted_until_none_is_left_and_again_after_a_rebuild(
    machine: Machine,
) -> None:
    machine.start("--mount", "false")
    with ThreadPoolExecutor(1) as pool, BlockingClient(machine.paths.socket) as line:
        pid = spawn(line)
        for number in range(PAGES):
            line.call("write_mem", v.WriteMem(pid, f"{number} {TALK}"), v.Written)
        until_waiting(line, PAGES)  # nobody needed the recall process yet
        by_meaning(line, pid)
        until_waiting(line, 0)
        child = recall_child(line)
        child.suspend()  # else the pages might have their vectors again before anybody looks
        with BlockingClient(machine.paths.socket) as other:
            made = pool.submit(other.call, "fsck", v.Fsck(rebuild=True), v.Checked)
            try:
                until_waiting(line, PAGES)
            finally:
                child.resume()
            assert "rebuilt: vectors" in made.result(DEADLINE_S).mended
        until_waiting(line, 0)
        checked = line.call("fsck", v.Fsck(), v.Checked)
        assert (checked.vectors, checked.waiting, checked.faults) == (PAGES, 0, [])
