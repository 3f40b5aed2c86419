"""Another embedder: its vectors are not mixed with those of before, and the way on is named."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient
from tests.system.daemon import Machine
from tests.waiting import until

TEXTS = ["My dog is afraid of thunder.", "The vault opens with tangerine.", "Bread needs time."]
pytestmark = pytest.mark.usefixtures("meaning")


def found(line: BlockingClient, pid: int) -> v.Hits:
    """A search after all pages have their vectors."""
    search = v.SearchMem(pid, "What does my pet fear?")
    return until(lambda: settled(line.call("search_mem", search, v.Hits)))


def settled(reply: v.Hits) -> v.Hits | None:
    pending = "for a moment" in reply.note or "not embedded yet" in reply.note
    return None if pending else reply


@pytest.fixture(scope="module")
def builtin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """The state of a machine with vectors: where it is, its process, and its embedder."""
    machine = Machine(tmp_path_factory.mktemp("builtin"))
    machine.meaning()
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        pid = line.call("spawn", v.Spawn("echo"), v.Spawned).pid
        for text in TEXTS:
            line.call("write_mem", v.WriteMem(pid, text), v.Written)
        first = found(line, pid)
        assert first.note == ""
        assert first.hits[0].page.text == TEXTS[0]
        checked = line.call("fsck", v.Fsck(), v.Checked)
        assert checked.faults == []
        every_page_is_found(line)
    machine.stop()
    return machine.paths.state, pid, checked.embedder


def every_page_is_found(line: BlockingClient) -> None:
    """A search by meaning finds every page, or says that some wait."""
    pid = line.call("spawn", v.Spawn("echo"), v.Spawned).pid
    search = v.SearchMem(pid, "water that flows", 1000, way="meaning", texts=False)
    for number in range(1, 31):
        line.call("write_mem", v.WriteMem(pid, f"Page {number} is about rivers."), v.Written)
        reply = until(lambda: settled(line.call("search_mem", search, v.Hits)))
        assert (reply.note, len(reply.hits)) == ("", number)
    line.call("kill", v.Kill(pid), v.Nothing)
    line.call("wait", v.Wait(pid), v.Exit)


def test_a_changed_embedder_is_refused_until_the_vectors_are_made_anew(
    machine: Machine, builtin: tuple[Path, int, str]
) -> None:
    state, pid, embedder = builtin
    shutil.copytree(state, machine.paths.state)
    machine.start("--mount", "false", "--memory-embedder", "smollm2")
    with BlockingClient(machine.paths.socket) as line:
        refused = found(line, pid)
        assert f"the vectors are of {embedder}" in refused.note
        assert "the embedder is smollm2" in refused.note
        assert "llmasos mem fsck --rebuild" in refused.note
        assert all("meaning" not in hit.parts or not hit.parts["meaning"] for hit in refused.hits)
        line.call("write_mem", v.WriteMem(pid, "A page of later."), v.Written)
        stat = line.call("stat", v.Nothing(), v.Stat)
        assert (stat.pages_waiting, stat.indexing) == (1, "stuck")
        assert "the embedder is smollm2" in stat.indexing_note
        line.call("fsck", v.Fsck(rebuild=True), v.Checked)
        anew = found(line, pid)
        assert anew.note == ""
        checked = line.call("fsck", v.Fsck(), v.Checked)
        assert checked.embedder.startswith("smollm2 ")
        assert (checked.vectors, checked.waiting, checked.faults) == (4, 0, [])
    machine.stop()


def test_vectors_of_another_size_are_refused_under_the_same_name_too(
    machine: Machine, builtin: tuple[Path, int, str]
) -> None:
    state, pid, _ = builtin
    shutil.copytree(state, machine.paths.state)
    [pages] = machine.paths.state.glob("owners/*/pages.db")
    with closing(sqlite3.connect(pages)) as database, database:
        database.execute("UPDATE derived SET version = '7' WHERE name = 'numbers'")
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        line.call("write_mem", v.WriteMem(pid, "A page of later."), v.Written)
        refused = found(line, pid)
        assert "vectors have 7 numbers" in refused.note
        assert "makes 512 now" in refused.note
        line.call("fsck", v.Fsck(rebuild=True), v.Checked)
        assert found(line, pid).note == ""
    machine.stop()


def test_a_page_that_is_not_what_was_written_is_told(machine: Machine) -> None:
    machine.start("--mount", "false", "--memory-embedder", "none")
    with BlockingClient(machine.paths.socket) as line:
        pid = line.call("spawn", v.Spawn("echo"), v.Spawned).pid
        for text in TEXTS:
            line.call("write_mem", v.WriteMem(pid, text), v.Written)
        assert line.call("fsck", v.Fsck(), v.Checked).faults == []
    machine.stop()
    [pages] = machine.paths.state.glob("owners/*/pages.db")
    with closing(sqlite3.connect(pages)) as database, database:
        database.execute("UPDATE pages SET text = text || '!' WHERE id & 1")
    machine.start("--mount", "false", "--memory-embedder", "none")
    with BlockingClient(machine.paths.socket) as line:
        assert "1 pages do not match their hash" in line.call("fsck", v.Fsck(), v.Checked).faults
    machine.stop()
