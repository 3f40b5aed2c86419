"""An engine that loses the prompts it keeps loses nothing but time: no caller notices it."""

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.client import BlockingClient
from tests.system.daemon import Machine
from tests.system.one_slot import QUESTION, Asked, box, line, waiting
from tests.system.test_life import ENDLESS, GREEDY, kill, messages, spawn, turn
from tests.waiting import until

__all__ = ["box", "line"]  # fixtures


def busy(box: Machine, line: BlockingClient) -> tuple[int, Asked]:
    """A call that has the slot."""
    pid = spawn(line)
    call = Asked(box, pid, ENDLESS)
    until(lambda: bool(call.said))
    return pid, call


def test_a_call_that_waits_survives_the_engine(box: Machine, line: BlockingClient) -> None:
    pid = spawn(line, system="Be brief.")
    turn(line, pid, "hello")
    _, first = busy(box, line)
    asked = Asked(box, pid, GREEDY)
    until(lambda: waiting(line) == 1)
    line.call("restart", v.Restart("echo"), v.Restarted)
    first.wait()
    assert isinstance(first.error, SyscallError)
    asked.wait()
    assert asked.reply is not None, asked.error
    assert asked.said == QUESTION
    assert turn(line, pid, "and on")[0] == "and on"
    assert messages(line, pid) == [
        ("system", "Be brief."), ("user", "hello"), ("assistant", "hello"), ("user", QUESTION),
        ("assistant", QUESTION), ("user", "and on"), ("assistant", "and on"),
    ]  # fmt: skip


def test_a_call_that_waits_is_composed_again_when_another_s_page_is_forgotten(
    box: Machine, line: BlockingClient
) -> None:
    pid, other = spawn(line), spawn(line)
    turn(line, pid, "hello")
    turn(line, other, "a secret")
    runs, first = busy(box, line)
    asked = Asked(box, pid, GREEDY)
    until(lambda: waiting(line) == 1)
    line.call("forget", v.Forget(other, 0), v.Forgotten)
    kill(line, runs, v.Signal.INT)
    first.wait()
    asked.wait()
    assert asked.reply is not None, asked.error
    assert asked.said == QUESTION
    assert messages(line, pid)[:2] == [("user", "hello"), ("assistant", "hello")]


def test_many_calls_that_lost_their_prompts_all_end(box: Machine, line: BlockingClient) -> None:
    pids = [spawn(line) for _ in range(12)]
    for pid in pids:
        turn(line, pid, f"hello {pid}")
    _, first = busy(box, line)
    asked = [Asked(box, pid, GREEDY) for pid in pids]
    until(lambda: waiting(line) == len(pids))
    line.call("restart", v.Restart("echo"), v.Restarted)
    first.wait()
    for one in asked:
        one.wait()
        assert one.reply is not None, one.error
        assert one.said == QUESTION


def test_a_suspect_whose_prompt_was_lost_is_still_a_suspect(machine: Machine) -> None:
    """It crashes its engine alone: that makes it poison."""
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        options: dict[str, bool | int | float | str] = {"slots": 1, "poison": QUESTION}
        line.call("mount", v.Mount("echo", options), v.DeviceInfo)
        pids = [spawn(line) for _ in range(2)]
        for pid in pids:
            kill(line, pid, v.Signal.STOP)
        asked = [Asked(machine, pid, GREEDY) for pid in pids]
        until(lambda: waiting(line) == 2)  # both are composed by the same engine
        for pid, one in zip(pids, asked, strict=True):
            kill(line, pid, v.Signal.CONT)
            one.wait()
            assert one.error is not None
            assert one.error.errno is Errno.EIO
        third = Asked(machine, spawn(line), GREEDY)
        third.wait()
        assert third.error is not None
        assert third.error.errno is Errno.EPOISON
