"""How much of a window is taken: what `ps` tells, what pins may take, and what does not fit."""

from collections.abc import Iterator

import pytest

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.client import BlockingClient
from tests.system.daemon import Machine
from tests.system.test_paging import WINDOW, chat, pages, say, spawn

START = ("--mount", "false", "--window", str(WINDOW))


@pytest.fixture
def line(machine: Machine) -> Iterator[BlockingClient]:
    machine.start(*START)
    with BlockingClient(machine.paths.socket, profile=v.Profile.OPERATOR) as line:
        yield line


def write(line: BlockingClient, pid: int, words: int = 40) -> int:
    """A page outside the window: its number."""
    return line.call("write_mem", v.WriteMem(pid, "word " * words), v.Written).pages[0]


def pin(line: BlockingClient, pid: int, first: int, count: int = 1, *, pinned: bool = True) -> None:
    line.call("pin", v.Pin(pid, first, count, pinned), v.Nothing)


def context(line: BlockingClient, pid: int) -> int:
    return line.call("ps", v.Ps(pid), v.Processes).processes[0].context


def in_window(line: BlockingClient, pid: int) -> int:
    return sum(p.tokens for p in pages(line, pid) if p.where is v.Where.WINDOW)


def tokens(line: BlockingClient, pid: int, *numbers: int) -> int:
    return sum(page.tokens for page in pages(line, pid) if page.number in numbers)


def too_much(line: BlockingClient, pid: int, sampling: v.Sampling) -> SyscallError:
    asked = v.Generate(pid, [v.Message(v.Role.USER, "hello")], sampling=sampling)
    with pytest.raises(SyscallError, match=f"the window has {WINDOW}") as caught:
        list(line.stream("generate", asked, v.Delta, v.Generated))
    assert caught.value.errno is Errno.E2BIG
    return caught.value


# --- ps ---------------------------------------------------------------------------------------
def test_ps_tells_what_is_in_the_window_now_and_after_kill_9(
    line: BlockingClient, machine: Machine
) -> None:
    pid, other, none = spawn(line, system="You are kind."), spawn(line), spawn(line)
    for _ in range(3):
        chat(line, pid, 4)
        assert context(line, pid) == in_window(line, pid) > 0
    write(line, pid)
    say(line, other, "hello")
    line.call("evict", v.Evict(other, 0), v.Nothing)
    assert context(line, other) == in_window(line, other) == tokens(line, other, 1)
    line.call("write_mem", v.WriteMem(other, "longer than before", page=1), v.Written)
    before = {one: in_window(line, one) for one in (pid, other, none)}
    machine.shoot()
    machine.start(*START)
    with BlockingClient(machine.paths.socket) as again:
        for _ in range(2):
            found = again.call("ps", v.Ps(), v.Processes).processes
            assert {one.pid: one.context for one in found} == before
        assert before[none] == 0 < before[other] < before[pid] <= WINDOW


def test_ps_follows_whatever_changes_a_window(line: BlockingClient) -> None:
    pid = spawn(line, system="You are kind.")
    for turn in range(20):
        say(line, pid, f"{turn}. " + "bread and copper " * 12)
        assert context(line, pid) == in_window(line, pid)
    newest = pages(line, pid)[-2].number
    line.call("write_mem", v.WriteMem(pid, "short", page=newest), v.Written)
    assert context(line, pid) == in_window(line, pid)
    child = line.call("fork", v.Fork(pid), v.Forked).pids[0]
    assert context(line, child) == in_window(line, child) == context(line, pid)
    line.call("evict", v.Evict(pid, newest), v.Nothing)
    assert context(line, pid) == in_window(line, pid) < context(line, child)
    line.call("forget", v.Forget(child, newest), v.Forgotten)
    assert context(line, child) == in_window(line, child)


# --- pins -------------------------------------------------------------------------------------
def test_pins_take_half_of_the_window_at_most_with_the_system_prompt(line: BlockingClient) -> None:
    pid = spawn(line, system="You are kind. " * 4)
    numbers = [write(line, pid) for _ in range(8)]
    with pytest.raises(SyscallError, match="8 pinned pages") as caught:
        pin(line, pid, numbers[0], 8)
    all_ = tokens(line, pid, 0, *numbers)
    assert caught.value.errno is Errno.E2BIG
    assert f"take {all_} tokens; {WINDOW // 2} of the window's {WINDOW}" in caught.value.message
    assert not any(page.pinned for page in pages(line, pid))
    fits = (WINDOW // 2 - tokens(line, pid, 0)) // tokens(line, pid, numbers[0])
    pin(line, pid, numbers[0], fits)
    with pytest.raises(SyscallError, match=f"{fits + 1} pinned pages"):
        pin(line, pid, numbers[fits])
    assert say(line, pid, "hello")[1].window
    pin(line, pid, numbers[0], pinned=False)
    pin(line, pid, numbers[fits])


def test_the_window_to_be_counts_while_no_model_is_mounted(line: BlockingClient) -> None:
    pid = spawn(line)
    numbers = [write(line, pid) for _ in range(8)]
    line.call("unmount", v.Unmount("echo"), v.Nothing)
    with pytest.raises(SyscallError, match=f"of the window's {WINDOW} "):
        pin(line, pid, numbers[0], 8)
    pin(line, pid, numbers[0], 2)
    pin(line, pid, numbers[0], 8, pinned=False)


# --- what does not fit ------------------------------------------------------------------------
def test_pins_are_named_with_their_tokens_only_when_there_are_some(line: BlockingClient) -> None:
    pid = spawn(line)
    number = write(line, pid)
    hint = too_much(line, pid, v.Sampling(max_tokens=WINDOW)).hint
    assert "pin" not in hint
    pin(line, pid, number)
    hint = too_much(line, pid, v.Sampling(max_tokens=WINDOW - 20)).hint
    taken = tokens(line, pid, number)
    assert f"pinned pages take {taken} tokens: `llmasos mem pin {pid} {number} --off`" in hint
    assert "`llmasos unmount echo`, `llmasos mount echo --set window=768`" in hint


def test_no_larger_window_is_advised_than_the_model_can_have(line: BlockingClient) -> None:
    pid = spawn(line)
    hint = too_much(line, pid, v.Sampling(max_tokens=131_072)).hint
    assert "mount" not in hint
    assert "a window of echo has at most 131072" in hint
