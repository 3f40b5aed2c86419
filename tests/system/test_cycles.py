"""Calls leave no reference cycles: some would stay until a full collection, which is rare."""

import gc
from collections import Counter
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.paths import Paths
from llmasos.kernel.boot import BootPlan, boot
from llmasos.kernel.machine import Machine
from llmasos.userland.client import BlockingClient

pytestmark = pytest.mark.anyio


def life(client: BlockingClient) -> None:
    pid = client.call("spawn", v.Spawn("echo", system="be brief"), v.Spawned).pid
    client.call("write_mem", v.WriteMem(pid, "a page"), v.Written)
    (child,) = client.call("fork", v.Fork(pid), v.Forked).pids
    asked = v.Generate(child, [v.Message(v.Role.USER, "hello")], sampling=v.Sampling(max_tokens=4))
    for _ in client.stream("generate", asked, v.Delta, v.Generated):
        pass
    client.call("search_mem", v.SearchMem(pid, "page"), v.Hits)
    client.call("send", v.Send(child, "mail"), v.Sent)
    client.call("recv", v.Recv(child, 10.0), v.Mail)
    for number in (child, pid):
        client.call("kill", v.Kill(number), v.Nothing)
        client.call("wait", v.Wait(number), v.Exit)


def lives(socket: Path) -> None:
    with BlockingClient(socket) as client:
        for _ in range(20):
            life(client)


async def test_calls_leave_nothing_for_the_garbage_collector(tmp_path: Path) -> None:
    where = [tmp_path / name for name in ("runtime", "state", "cache", "config")]
    plan = BootPlan(
        paths=Paths(*where), system="test", private=False,
        drivers={"echo": "llmasos.drivers.echo"}, images={"echo": ("echo", Path())},
        defaults={"echo": {}}, first="", idle_exit_s=60.0, journal_bytes=2**24,
    )  # fmt: skip
    machines: list[Machine] = []
    left: list[object] = []
    ready = anyio.Event()

    def started(machine: Machine) -> None:
        machines.append(machine)
        ready.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(boot, plan, started)
        await ready.wait()
        await to_thread.run_sync(lives, plan.paths.socket)  # what is created once
        gc.collect()
        gc.disable()
        try:
            await to_thread.run_sync(lives, plan.paths.socket)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            left += [one for one in gc.garbage if type(one).__module__.startswith("llmasos.kernel")]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
            gc.unfreeze()  # the kernel freezes what exists when it has started
        machines[0].run.stop("was stopped by the test", drain=True)
    assert Counter(type(one).__name__ for one in left) == {}
