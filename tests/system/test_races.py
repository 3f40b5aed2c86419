"""Sequences that no single call shows: what was queued, cancelled, pipelined or half loaded."""

import psutil

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno
from llmasos.kernel.abi.wire import ERROR, ITEM
from llmasos.userland.client import BlockingClient
from tests.system.daemon import Machine
from tests.system.raw import Raw, raw
from tests.system.test_life import info, kill, messages, spawn, turn
from tests.waiting import until


def states(machine: Machine) -> dict[int, tuple[str, int | None]]:
    with BlockingClient(machine.paths.socket) as line:
        listed = line.call("ps", v.Ps(ended=True), v.Processes).processes
        return {process.pid: (process.state, process.code) for process in listed}


def loads(client: Raw, number: int) -> None:
    """Wait until the call of this number has said that a model loads for it."""
    stage = ""
    while stage != "load":
        kind, answered, fields = client.receive()
        assert (kind, answered) == (ITEM, number), fields
        stage = fields["stage"]


def test_a_write_whose_client_is_gone_happens_in_memory_and_on_disk_or_in_neither(
    machine: Machine,
) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        pids = [spawn(line) for _ in range(12)]
    for pid, signal in zip(pids, ("TERM", "STOP", "KILL") * 4, strict=True):
        with raw(machine.paths.socket) as client:
            client.send("kill", pid=pid, signal=signal)
    with BlockingClient(machine.paths.socket) as line:
        spawn(line)  # behind all of them in the writer's queue
    before = states(machine)
    machine.shoot()
    machine.start("--mount", "false")
    assert states(machine) == before


def test_a_signal_behind_an_exit_does_not_undo_it(machine: Machine) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        pids = [spawn(line) for _ in range(6)]
    with raw(machine.paths.socket) as client:
        for pid in pids:
            sent = [client.send("kill", pid=pid, signal=name) for name in ("TERM", "CONT", "KILL")]
            for number in sent:
                client.answer(number)
    before = states(machine)
    assert {state for state, _ in before.values()} == {"ended"}
    machine.shoot()
    machine.start("--mount", "false")
    assert states(machine) == before


def test_tokens_without_a_text_do_not_stop_a_call(machine: Machine) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line)
        sampling = v.Sampling(temperature=0, max_tokens=600, ignore_eos=True, stop=["😀" * 250])
        said, reply = turn(line, pid, "😀" * 100, sampling)
        assert reply.finish is v.Finish.STOP
        assert set(said) <= {"😀"}


def test_an_engine_that_is_unmounted_while_it_loads_does_not_stay(machine: Machine) -> None:
    machine.start("--mount", "false")
    with raw(machine.paths.socket, "operator") as client, raw(machine.paths.socket) as other:
        loading = other.send("spawn", model="smollm2")
        loads(other, loading)
        client.call("unmount", image="smollm2")
        assert other.answer(loading)[2]["errno"] == Errno.EIO
        assert client.call("devices")["devices"] == []
        client.call("spawn", model="smollm2")
        (device,) = client.call("devices")["devices"]
        assert device["state"] == "up"
        children = psutil.Process(machine.pid).children(recursive=True)
        gone, alive = psutil.wait_procs([c for c in children if c.pid != device["os_pid"]], 20)
        assert not alive, (gone, alive)


def test_a_load_belongs_to_everybody_who_waits_for_it(machine: Machine) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        with raw(machine.paths.socket) as impatient:
            loads(impatient, impatient.send("spawn", model="smollm2"))
        assert turn(line, spawn(line, "smollm2"), "Say hi.")[0]


def test_a_signal_reaches_a_call_that_has_no_slot_yet(machine: Machine) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line, "smollm2")
        line.call("unmount", v.Unmount("smollm2"), v.Nothing)
        with raw(machine.paths.socket) as client:
            fields = {"pid": pid, "messages": [{"role": "user", "content": "hi"}]}
            number = client.send("generate", **fields)
            until(lambda: info(line, pid).state is v.State.WAITING)
            kill(line, pid, v.Signal.INT)
            kind, _, answer = client.answer(number)
            assert (kind, answer["errno"]) == (ERROR, Errno.ECANCELED), answer
        assert messages(line, pid) == []
        assert turn(line, pid, "And now?")[0]


def test_a_stop_while_the_model_loads_is_clean(machine: Machine) -> None:
    machine.start()
    assert machine.stop() == 0
    assert "Traceback" not in machine.log
    assert machine.log.rstrip().endswith("stopped")
