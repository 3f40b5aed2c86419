"""Forgetting holds for calls in flight: none answers from a forgotten page, or keeps what it said.

The echo engine repeats the last user message, and a page that comes back stands in that message: so
an answer shows what the call saw.
"""

import pytest

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno
from llmasos.userland.client import BlockingClient
from tests.system.daemon import Machine
from tests.system.one_slot import Asked, box, line, waiting
from tests.system.test_forgetting import SECRET, holding
from tests.system.test_life import ENDLESS, GREEDY, kill, turn
from tests.waiting import until

__all__ = ["box", "line"]  # fixtures


@pytest.fixture
def pid(line: BlockingClient) -> int:
    """A process whose first page is pinned, and comes back with each request."""
    pid = line.call("spawn", v.Spawn("echo"), v.Spawned).pid
    line.call("write_mem", v.WriteMem(pid, f"The word is {SECRET}."), v.Written)
    line.call("pin", v.Pin(pid, 0), v.Nothing)
    return pid


def texts(line: BlockingClient, pid: int) -> list[str]:
    return [page.text for page in line.call("read_mem", v.ReadMem(pid), v.Pages).pages]


def nothing_is_left(box: Machine, line: BlockingClient, *pids: int) -> None:
    for pid in pids:
        assert SECRET not in turn(line, pid, "And now?")[0]
        assert SECRET not in " ".join(texts(line, pid))
    assert holding(box, SECRET.encode()) == set()


def test_an_answer_shows_what_a_call_saw(line: BlockingClient, pid: int) -> None:
    assert SECRET in turn(line, pid, "What is the word?")[0]  # so that the others can fail
    for number in range(len(texts(line, pid))):
        line.call("forget", v.Forget(pid, number), v.Forgotten)


@pytest.mark.parametrize("whose", ["its own", "its parent's"])
def test_a_call_that_waits_for_a_slot_is_composed_again(
    box: Machine, line: BlockingClient, pid: int, whose: str
) -> None:
    asks = pid if whose == "its own" else line.call("fork", v.Fork(pid), v.Forked).pids[0]
    other = line.call("spawn", v.Spawn("echo"), v.Spawned).pid
    busy = Asked(box, other, ENDLESS)
    until(lambda: bool(busy.said))
    asked = Asked(box, asks, GREEDY)
    until(lambda: waiting(line) == 1)
    line.call("forget", v.Forget(pid, 0), v.Forgotten)
    kill(line, other, v.Signal.INT)
    busy.wait()
    asked.wait()
    assert asked.reply is not None, asked.error
    assert asked.said == "What is the word?"
    assert asked.reply.faults == []
    nothing_is_left(box, line, pid, asks)


def test_a_stopped_call_without_a_word_is_composed_again(
    box: Machine, line: BlockingClient, pid: int
) -> None:
    kill(line, pid, v.Signal.STOP)
    asked = Asked(box, pid, GREEDY)
    until(lambda: waiting(line) == 1)
    line.call("forget", v.Forget(pid, 0), v.Forgotten)
    kill(line, pid, v.Signal.CONT)
    asked.wait()
    assert asked.said == "What is the word?", asked.error
    nothing_is_left(box, line, pid)


def ends_without_a_trace(box: Machine, line: BlockingClient, pid: int, asked: Asked) -> None:
    asked.wait()
    assert asked.error is not None
    assert asked.error.errno is Errno.ECANCELED
    assert "was forgotten; the answer is discarded" in asked.error.message
    assert texts(line, pid) == []
    nothing_is_left(box, line, pid)


def test_a_call_that_answers_ends_and_nothing_of_it_is_kept(
    box: Machine, line: BlockingClient, pid: int
) -> None:
    asked = Asked(box, pid, ENDLESS)
    until(lambda: SECRET in asked.said)
    line.call("forget", v.Forget(pid, 0), v.Forgotten)
    ends_without_a_trace(box, line, pid, asked)


def test_a_parked_call_ends_and_nothing_of_it_is_kept(
    box: Machine, line: BlockingClient, pid: int
) -> None:
    asked = Asked(box, pid, ENDLESS)
    until(lambda: SECRET in asked.said)
    kill(line, pid, v.Signal.STOP)
    other = line.call("spawn", v.Spawn("echo"), v.Spawned).pid
    assert turn(line, other, "me too")[0] == "me too"  # it has the only slot now
    line.call("forget", v.Forget(pid, 0), v.Forgotten)
    kill(line, pid, v.Signal.CONT)
    ends_without_a_trace(box, line, pid, asked)


def test_other_calls_of_the_owner_go_on(box: Machine, line: BlockingClient, pid: int) -> None:
    other = line.call("spawn", v.Spawn("echo"), v.Spawned).pid
    asked = Asked(box, other, ENDLESS)
    until(lambda: bool(asked.said))
    line.call("forget", v.Forget(pid, 0), v.Forgotten)
    before = len(asked.said)
    until(lambda: len(asked.said) > before)
    kill(line, other, v.Signal.INT)
    asked.wait()
    assert asked.reply is not None
    assert asked.reply.finish is v.Finish.CANCELLED
