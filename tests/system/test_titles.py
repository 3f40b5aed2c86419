"""What `ps` says of a conversation: its user's first words, from the owner's database alone."""

from pathlib import Path

import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient
from tests.files import containing
from tests.system.daemon import Machine
from tests.system.test_life import info, kill, spawn, turn

FIRST = "Which oil does the lighthouse keeper need?\nPlease answer quickly."
WORDS = "Which oil does the lighthouse keeper need? Please answer…"


def holding(folder: Path, words: str) -> set[str]:
    """Files below the state directory with these words, by their place there."""
    return {str(path.relative_to(folder)) for path in containing(folder, words.encode())}


def test_a_title_is_the_first_words_of_the_user(machine: Machine) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line, system="You are a keeper of lighthouses.")
        assert (info(line, pid).title, info(line, pid).parent) == ("", 0)
        turn(line, pid, FIRST)
        assert info(line, pid).title == WORDS
        turn(line, pid, "And what else?")
        assert info(line, pid).title == WORDS
        assert info(line, pid).used > info(line, pid).created
        [child] = line.call("fork", v.Fork(pid), v.Forked).pids
        assert (info(line, child).title, info(line, child).parent) == (WORDS, pid)
        listed = line.call("ps", v.Ps(), v.Processes).processes
        assert {one.pid: one.title for one in listed} == {pid: WORDS, child: WORDS}
        machine.shoot()
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        assert info(line, pid).title == WORDS
        assert info(line, pid).used > info(line, pid).created


@pytest.mark.parametrize("text", ["x" * 400, "字" * 400, "a\x1b[31m b\tc", "  \n two  words "])
def test_a_title_is_one_short_line(machine: Machine, text: str) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line)
        turn(line, pid, text, v.Sampling(max_tokens=1))
        title = info(line, pid).title
    assert 0 < len(title) <= limits.TITLE_CHARS
    assert not set(title) & set("\n\t\r")
    assert title.startswith(text.split()[0][:10])


def test_a_page_that_is_forgotten_takes_its_title_along(machine: Machine) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line)
        turn(line, pid, "zebra crossing")
        turn(line, pid, "a second question")
        child = line.call("fork", v.Fork(pid), v.Forked).pids[0]
        assert info(line, child).title == info(line, pid).title == "zebra crossing"
        line.call("forget", v.Forget(pid, 0, 2), v.Forgotten)  # its answer repeats it
        for one in (pid, child):
            assert info(line, one).title == "a second question"
        line.call("forget", v.Forget(pid, 2, 2), v.Forgotten)
        assert info(line, pid).title == ""


def test_a_fork_without_its_question_is_called_by_the_answer(machine: Machine) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line, system="You are a keeper of lighthouses.")
        turn(line, pid, "zebra crossing")
        child = line.call("fork", v.Fork(pid), v.Forked).pids[0]
        line.call("forget", v.Forget(pid, 1), v.Forgotten)
        answer = line.call("read_mem", v.ReadMem(child, 2), v.Pages).pages[0].text
        assert info(line, child).title == info(line, pid).title == " ".join(answer.split())
        turn(line, child, "a second question")
        assert info(line, child).title == "a second question"
        line.call("forget", v.Forget(pid, 2), v.Forgotten)
        assert info(line, pid).title == ""  # what the system prompt says is no title


def test_a_title_stands_in_no_other_file(machine: Machine) -> None:
    """P-13: the journal and the table of processes hold no person's text."""
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line)
        turn(line, pid, "zebra crossing at noon")
        assert info(line, pid).title == "zebra crossing at noon"
        kill(line, pid)
        owner = line.welcome.owner
    machine.stop()
    places = holding(machine.paths.state, "zebra crossing")
    assert {place.split("/")[0] for place in places} == {"owners"}
    assert all(place.startswith(f"owners/{owner}/") for place in places)
    assert "zebra" not in machine.log


def test_who_may_not_read_the_pages_sees_no_title(machine: Machine) -> None:
    machine.paths.config.mkdir()
    machine.paths.policy_file.write_text("p, r:reader, read_mem, /proc/*, deny\n")
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line)
        turn(line, pid, "zebra crossing")
    with BlockingClient(machine.paths.socket, profile=v.Profile.READER) as line:
        (one,) = line.call("ps", v.Ps(), v.Processes).processes
        assert (one.pid, one.title) == (pid, "")
