"""P-08: kill -9 under load; every page that was acknowledged is there, and is found again.

Writers write pages, processes talk, messages are sent, processes are spawned and calls refused,
while the daemon is shot: at random times, every second time after another program has read its
databases, and exactly at each named point. The short form always runs; `-m long` does fifty kills.
"""

import random
import re
import threading
import time
from collections.abc import Callable

import pytest

from llmasos.kernel import points
from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.client import BlockingClient
from tests.system import foreign
from tests.system.daemon import Machine

DEAD = (Errno.EPIPE, Errno.ECONNREFUSED)
START = ("--mount", "false", "--window", "512")
WRITERS = 6


class Ledger:
    """What was acknowledged: texts by process and number, and every number that was given."""

    def __init__(self) -> None:
        self.given: dict[str, set[int]] = {"call": set(), "pid": set(), "mail": set()}
        self.ids_repeated = 0
        self.pages_lost = 0
        self.pages: dict[int, dict[int, str]] = {}
        self.mail: list[tuple[int, str]] = []
        self.mail_done = 0
        self.count = 0
        self._lock = threading.Condition()

    def gave(self, what: str, number: int) -> None:
        with self._lock:
            self.ids_repeated += number in self.given[what]
            self.given[what].add(number)

    def grow(self, pages: int) -> None:
        """Return when so many more pages were acknowledged."""
        with self._lock:
            wanted = self.count + pages
            assert self._lock.wait_for(lambda: self.count >= wanted, 30)

    def wrote(self, pid: int, numbers: list[int], text: str) -> None:
        with self._lock:
            for number in numbers:
                assert number not in self.pages.setdefault(pid, {}), "a number was given twice"
            self.pages[pid][numbers[0]] = text
            self.count += 1
            self._lock.notify_all()

    def sent(self, number: int, body: str) -> None:
        self.gave("mail", number)
        with self._lock:
            self.mail.append((number, body))


def write(machine: Machine, ledger: Ledger, pid: int, mark: str) -> None:
    with BlockingClient(machine.paths.socket) as line:
        for number in range(100_000):
            text = f"{mark} number {number} of process {pid} is about copper and bread."
            asked = v.WriteMem(pid, text)
            ledger.wrote(pid, line.call("write_mem", asked, v.Written).pages, text)


def talk(machine: Machine, ledger: Ledger, pid: int, mark: str) -> None:
    with BlockingClient(machine.paths.socket) as line:
        for number in range(100_000):
            text = f"{mark} turn {number} of process {pid} asks about lamps."
            sampling = v.Sampling(temperature=0, max_tokens=20)
            asked = v.Generate(pid, [v.Message(v.Role.USER, text)], sampling=sampling)
            stream = line.stream("generate", asked, v.Delta, v.Generated)
            for _ in stream:
                pass
            assert stream.reply is not None
            ledger.wrote(pid, stream.reply.pages[:1], text)


def post(machine: Machine, ledger: Ledger, pid: int, mark: str) -> None:
    with BlockingClient(machine.paths.socket) as line:
        for number in range(500):
            body = f"{mark} message {number}"
            ledger.sent(line.call("send", v.Send(pid, body), v.Sent).number, body)


def count(machine: Machine, ledger: Ledger, pid: int, mark: str) -> None:
    """Numbers that are told before the rows with them are flushed, and pids."""
    careful = v.Profile.CAREFUL
    with (
        BlockingClient(machine.paths.socket) as line,
        BlockingClient(machine.paths.socket, profile=careful) as refused,
    ):
        while True:
            spawned = line.call("spawn", v.Spawn("echo", app="counter"), v.Spawned).pid
            ledger.gave("pid", spawned)
            for number in range(20):
                with pytest.raises(SyscallError) as caught:
                    name = (
                        f"user{spawned}x{number}"  # a refusal that repeats another has its number
                    )
                    refused.call("user_add", v.UserAdd(name), v.UserInfo)
                if caught.value.errno in DEAD:
                    raise caught.value
                told = re.search(r"policy explain (\d+)", caught.value.hint)
                if told is not None:  # else it is one of too many, and only counted
                    ledger.gave("call", int(told[1]))
            line.call("kill", v.Kill(spawned, v.Signal.KILL), v.Nothing)
            line.call("wait", v.Wait(spawned, 5), v.Exit)


def until_it_dies(work: Callable[..., None], *arguments: object) -> threading.Thread:
    def run() -> None:
        try:
            work(*arguments)
        except SyscallError as error:
            assert error.errno in DEAD, error

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def load(machine: Machine, ledger: Ledger, pids: list[int], mark: str) -> list[threading.Thread]:
    works = [write] * WRITERS + [talk, talk, count, post]
    return [
        until_it_dies(work, machine, ledger, pid, mark)
        for work, pid in zip(works, pids, strict=True)
    ]


def spawn_all(machine: Machine) -> list[int]:
    with BlockingClient(machine.paths.socket) as line:
        return [line.call("spawn", v.Spawn("echo"), v.Spawned).pid for _ in range(WRITERS + 4)]


def read(line: BlockingClient, pid: int) -> dict[int, str]:
    texts: dict[int, str] = {}
    first: int | None = 0
    while first is not None:
        reply = line.call("read_mem", v.ReadMem(pid, first), v.Pages)
        texts |= {page.number: page.text for page in reply.pages}
        first = reply.next
    return texts


def compare(machine: Machine, ledger: Ledger) -> None:
    """Nothing is lost, and the indexes say what the pages say."""
    with BlockingClient(machine.paths.socket) as line:
        for pid, known in ledger.pages.items():
            found = read(line, pid)
            ledger.pages_lost += sum(found.get(n) != text for n, text in known.items())
        faults = line.call("fsck", v.Fsck(), v.Checked).faults
        assert [fault for fault in faults if "a write of them failed" not in fault] == []


def mail_is_there(machine: Machine, ledger: Ledger, pid: int) -> None:
    """Take it all; what is said to be done never comes again."""
    with BlockingClient(machine.paths.socket) as line:
        found: list[tuple[int, str]] = []
        while True:
            try:
                mail = line.call("recv", v.Recv(pid, 0.0), v.Mail)
            except SyscallError as error:
                assert error.errno is Errno.ETIMEDOUT
                break
            found.append((mail.number, mail.body))
        assert set(ledger.mail) <= set(found)
        assert found == sorted(found)
        assert all(number > ledger.mail_done for number, _ in found)
        if found:
            ledger.mail.clear()
            ledger.mail_done = found[-1][0]
            line.call("recv", v.Recv(pid, done=ledger.mail_done, take=False), v.Mail)


def shot(machine: Machine, kills: int, seed: int) -> Ledger:
    dice, ledger = random.Random(seed), Ledger()
    machine.start(*START)
    pids = spawn_all(machine)
    for kill in range(kills):
        threads = load(machine, ledger, pids, f"life {kill}")
        time.sleep(dice.uniform(0.05, 0.8))  # the random time is the test
        if kill % 2:
            foreign.read(foreign.databases(machine.paths.state))
            ledger.grow(20)
        machine.shoot()
        for thread in threads:
            thread.join(30)
        machine.start(*START)
        compare(machine, ledger)
        mail_is_there(machine, ledger, pids[-1])
    machine.stop()
    numbers = sum(len(given) for given in ledger.given.values())
    print(f"{kills} kills, {ledger.count} pages, {numbers} numbers")
    print(f"crash.pages_lost {ledger.pages_lost}, crash.ids_repeated {ledger.ids_repeated}")
    assert (ledger.pages_lost, ledger.ids_repeated) == (0, 0)
    assert all(len(given) >= kills for given in ledger.given.values())
    return ledger


@pytest.mark.timeout(300)
def test_no_acknowledged_page_is_lost_in_a_few_kills(machine: Machine) -> None:
    assert shot(machine, 4, 1).count > 100


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_no_acknowledged_page_is_lost_in_fifty_kills(machine: Machine) -> None:
    machine.meaning()
    assert shot(machine, 50, 2).count > 2_000


@pytest.mark.timeout(300)
@pytest.mark.parametrize("point", [p for p in points.POINTS if p.startswith("store.")])
def test_no_acknowledged_page_is_lost_at_a_point_of_the_store(machine: Machine, point: str) -> None:
    ledger = Ledger()
    machine.start(*START)
    pids = spawn_all(machine)
    machine.stop()
    for count in (1, 40):
        machine.environment["LLMASOS_DIE_AT"] = f"{point}:{40 + count}"
        machine.start(*START)
        for thread in load(machine, ledger, pids, f"{point} {count}"):
            thread.join(60)
        assert machine.reap() == -9
        del machine.environment["LLMASOS_DIE_AT"]
        machine.start(*START)
        compare(machine, ledger)
        machine.stop()
    assert (ledger.pages_lost, ledger.ids_repeated) == (0, 0)
    assert ledger.count > 5
