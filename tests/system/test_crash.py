"""P-08: kill -9 the daemon at random times; what was acknowledged is there, and goes on.

Sixteen processes generate while others are spawned, niced, stopped, killed and reaped. A checker
outside the kernel writes down each acknowledgement as it arrives and compares after the restart.
The short form always runs; `-m long` does fifty kills.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import pytest

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.client import BlockingClient
from tests.system.daemon import Machine

TALKERS = 16
GREEDY = v.Sampling(temperature=0, max_tokens=40)


@dataclass
class Known:
    """What the kernel has acknowledged about one process."""

    nice: int = 0
    stopped: bool = False
    ended: bool = False  # TERM was acknowledged
    reaped: bool = False  # wait was acknowledged
    turns: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    doubt: str = ""  # a call whose answer never came: either outcome is right


class Ledger:
    """Acknowledgements, by pid. One thread writes one process's entry."""

    def __init__(self) -> None:
        self.processes: dict[int, Known] = {}
        self.acknowledged = 0
        self._lock = threading.Lock()

    def spawned(self, pid: int) -> Known:
        with self._lock:
            assert pid not in self.processes, f"pid {pid} was given twice"
            self.processes[pid] = known = Known()
            self.acknowledged += 1
        return known

    def note(self) -> None:
        with self._lock:
            self.acknowledged += 1


def talk(machine: Machine, ledger: Ledger, pid: int, seed: int) -> None:
    """One conversation, turn after turn, until the connection dies."""
    known = ledger.processes[pid]
    with BlockingClient(machine.paths.socket) as line:
        for turn in range(10_000):
            prompt = f"turn {len(known.turns)} of {pid} with {seed}.{turn}"
            known.doubt = prompt
            request = v.Generate(pid, [v.Message(v.Role.USER, prompt)], sampling=GREEDY)
            stream = line.stream("generate", request, v.Delta, v.Generated)
            text = "".join(item.text for item in stream)
            known.turns.append((prompt, text))
            known.doubt = ""
            ledger.note()
            if len(known.turns) >= 12:
                return  # the window has an end


def meddle(machine: Machine, ledger: Ledger, seed: int) -> None:
    """Spawn, nice, stop, end and reap processes of its own until the connection dies."""
    dice = random.Random(seed)
    with BlockingClient(machine.paths.socket) as line:
        while True:
            pid = line.call("spawn", v.Spawn("echo", app="meddler"), v.Spawned).pid
            known = ledger.spawned(pid)
            for _ in range(dice.randint(0, 6)):
                if dice.random() < 0.6:
                    known.doubt = "nice"
                    nice = dice.randint(-10, 10)
                    line.call("nice", v.Renice(pid, nice), v.Nothing)
                    known.nice, known.doubt = nice, ""
                else:
                    known.doubt = "stop"
                    line.call("kill", v.Kill(pid, v.Signal.STOP), v.Nothing)
                    known.stopped, known.doubt = True, ""
                ledger.note()
            if dice.random() < 0.7:
                known.doubt = "end"
                line.call("kill", v.Kill(pid, v.Signal.TERM), v.Nothing)
                known.ended, known.doubt = True, ""
                ledger.note()
                if dice.random() < 0.7:
                    known.doubt = "reap"
                    line.call("wait", v.Wait(pid, 5), v.Exit)
                    known.reaped, known.doubt = True, ""
                    ledger.note()


def until_dead(work: Callable[[], None], faults: list[BaseException]) -> None:
    """The connection dying is the plan; anything else is a fault."""
    try:
        work()
    except SyscallError as error:
        if error.errno not in (Errno.EPIPE, Errno.ECONNREFUSED):
            faults.append(error)
    except BaseException as error:
        faults.append(error)


def check(line: BlockingClient, ledger: Ledger) -> None:
    """Compare the machine with the ledger; forget what ended."""
    alive = {process.pid: process for process in listed(line)}
    for pid, known in list(ledger.processes.items()):
        process = alive.get(pid)
        if known.reaped:
            assert process is None, f"{pid} was reaped and is back"
            del ledger.processes[pid]
            continue
        if process is None:
            assert known.doubt == "reap", f"{pid} was acknowledged and is lost ({known})"
            del ledger.processes[pid]
            continue
        assert not known.ended or process.state is v.State.ENDED, (process, known)
        if process.state is v.State.ENDED:
            assert known.ended or known.doubt == "end", (process, known)
            line.call("wait", v.Wait(pid, 5), v.Exit)
            del ledger.processes[pid]
            continue
        assert process.nice == known.nice or known.doubt == "nice", (process, known)
        if known.doubt != "stop":
            assert (process.state is v.State.STOPPED) is known.stopped, (process, known)
        check_pages(line, pid, known)
        # Where an answer never came, either outcome is right; from now on this one is.
        known.nice, known.stopped = process.nice, process.state is v.State.STOPPED
        known.doubt = ""


def listed(line: BlockingClient) -> Iterator[v.ProcessInfo]:
    after: int | None = 0
    while after is not None:
        reply = line.call("ps", v.Ps(ended=True, after=after), v.Processes)
        yield from reply.processes
        after = reply.next


def check_pages(line: BlockingClient, pid: int, known: Known) -> None:
    """Every acknowledged turn, in order, whole; then at most the one in doubt, whole too."""
    messages: dict[int, str] = {}
    first: int | None = 0
    while first is not None:
        reply = line.call("read_mem", v.ReadMem(pid, first), v.Pages)
        for page in reply.pages:
            messages[page.message] = messages.get(page.message, "") + page.text
        first = reply.next
    said = [messages[n] for n in sorted(messages)]
    expected = [text for turn in known.turns for text in turn]
    assert said[: len(expected)] == expected, f"{pid} lost words"
    rest = said[len(expected) :]
    assert len(rest) in (0, 2), f"{pid} has half a turn: {rest}"
    if rest:
        assert rest[0] == known.doubt
        known.turns.append((rest[0], rest[1]))


@pytest.mark.parametrize(
    "kills", [4, pytest.param(50, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)
def test_kill_9_loses_nothing_that_was_acknowledged(machine: Machine, kills: int) -> None:
    dice = random.Random(os.urandom(8))
    ledger = Ledger()
    faults: list[BaseException] = []
    machine.start("--mount", "false")
    for cycle in range(kills):
        with BlockingClient(machine.paths.socket) as line:
            if cycle == 0:
                options: dict[str, bool | int | float | str] = {"rate": 200, "window": 4096}
                line.call("mount", v.Mount("echo", options), v.DeviceInfo)
            talkers = [p for p, k in ledger.processes.items() if k.turns and len(k.turns) < 12]
            while len(talkers) < TALKERS:
                talkers.append(line.call("spawn", v.Spawn("echo", app="talker"), v.Spawned).pid)
                ledger.spawned(talkers[-1])
        work = [partial(talk, machine, ledger, pid, cycle) for pid in talkers[:TALKERS]]
        work += [partial(meddle, machine, ledger, 100 * cycle + n) for n in range(4)]
        threads = [threading.Thread(target=until_dead, args=(w, faults)) for w in work]
        for thread in threads:
            thread.start()
        time.sleep(dice.uniform(0.05, 1.0))  # the random time is the test
        os.kill(machine.pid, signal.SIGKILL)
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert not faults, faults
        machine.reap()
        machine.start("--mount", "false")
        with BlockingClient(machine.paths.socket) as line:
            check(line, ledger)
    turns = sum(len(known.turns) for known in ledger.processes.values())
    print(f"{kills} kills, {ledger.acknowledged} acknowledgements, {turns} turns, 0 lost")
    assert ledger.acknowledged > 20 * kills
