"""Programs that the kernel starts: their socket is their identity, and what bounds them holds."""

import json
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from llmasos import AsyncLLMasOS
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Denied, Errno, SyscallError
from llmasos.kernel.access import identity
from llmasos.kernel.connection import programs as program
from llmasos.kernel.machine import Machine as Kernel
from llmasos.kernel.process.table import Process
from llmasos.userland.cli import exits
from tests.system.test_residency import running

pytestmark = pytest.mark.anyio
SEES = """
    import json, os, sys
    from llmasos import LLMasOS
    from llmasos.kernel.abi.errors import SyscallError

    def errno(call, *args, **named):
        try:
            call(*args, **named)
        except SyscallError as error:
            return error.errno.name
        return "ok"

    said = {"environment": sorted(os.environ)}
    with LLMasOS(profile="operator") as client:
        said["spawn"] = errno(client.spawn, "one")
        said["ps"] = [p.pid for p in client.ps().processes]
        said["mount"] = errno(client.mount, "two")
        said["shutdown"] = errno(client.shutdown) if sys.argv[2:] else "not tried"
"""
ANEW = """
    import json, sys
    from llmasos import LLMasOS
    from llmasos.kernel.abi.errors import SyscallError
    import os, subprocess

    said = {}
    if sys.argv[2:]:  # a grandchild, by the path
        with LLMasOS(socket=sys.argv[2], profile="operator") as client:
            try:
                client.mount("two")
                said["mount"] = "ok"
            except SyscallError as error:
                said["mount"] = error.errno.name
    else:
        line = [sys.executable, __file__, sys.argv[1], os.environ["WHERE"]]
        sys.exit(subprocess.run(line, env={"PATH": ""}).returncode)
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def run(
    kernel: Kernel, process: Process, folder: Path, script: str, *more: str, **environment: str
) -> dict[str, Any]:
    """What a program reports about itself."""
    file, report = folder / "program.py", folder / "report"
    save = 'open(sys.argv[1], "w").write(json.dumps(said))\n'
    file.write_text(textwrap.dedent(script) + save)
    command = [sys.executable, str(file), str(report), *more]
    await program.start(kernel, process, command, folder, environment)
    with anyio.fail_after(60):
        await process.ended.wait()
    assert process.ending is not None
    assert process.ending.code == 0
    found: dict[str, Any] = json.loads(report.read_text())
    return found


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(1500):
        if condition():
            return
        await anyio.sleep(0.02)
    pytest.fail("it never came about")


async def test_a_program_needs_no_path_and_no_secret(tmp_path: Path) -> None:
    async with running(tmp_path) as (kernel, client):
        started = await client.spawn("one", app="poet")
        process = kernel.processes.get(started.pid, kernel.run.owner)
        said = await run(kernel, process, tmp_path, SEES)
        assert not any("SOCKET" in name or "KEY" in name for name in said["environment"])
        assert said["spawn"] == "ok"
        assert said["ps"]


async def test_a_program_may_not_do_what_its_process_may_not(tmp_path: Path) -> None:
    async with running(tmp_path) as (kernel, _):
        async with AsyncLLMasOS(
            socket=tmp_path / "runtime" / "kernel.sock", app="maker"
        ) as careful:
            process = kernel.processes.get(
                (await careful.spawn("one", keep=True)).pid, kernel.run.owner
            )
        assert process.bounds == ("r:careful", "app:maker")
        said = await run(kernel, process, tmp_path, SEES, "down")  # it asks for operator
        assert (said["mount"], said["shutdown"]) == ("EACCES", "EACCES")


async def test_who_connects_anew_below_a_program_is_known(tmp_path: Path) -> None:
    where = tmp_path / "runtime" / "kernel.sock"
    async with running(tmp_path) as (kernel, _):
        async with AsyncLLMasOS(socket=where) as careful:
            process = kernel.processes.get(
                (await careful.spawn("one", keep=True)).pid, kernel.run.owner
            )
        said = await run(kernel, process, tmp_path, ANEW, WHERE=str(where))
        assert said["mount"] == "EACCES"


async def test_children_have_what_bounds_their_parents(tmp_path: Path) -> None:
    where = tmp_path / "runtime" / "kernel.sock"
    async with running(tmp_path) as (kernel, operator):
        async with AsyncLLMasOS(socket=where, profile="reader") as reader:
            with pytest.raises(SyscallError):  # who only looks starts nothing
                await reader.spawn("one")
        async with AsyncLLMasOS(socket=where) as careful:
            parent = await careful.spawn("one", keep=True)
        child = await operator.spawn("one", parent=parent.pid)
        [fork] = await operator.process(child.pid).fork()
        for pid, above in ((child.pid, parent.pid), (fork.pid, child.pid)):
            bounds = kernel.processes.get(pid, kernel.run.owner).bounds
            assert "r:careful" in bounds
            assert f"pid:{above}" in bounds


async def test_what_is_taken_from_a_parent_is_taken_from_its_children(tmp_path: Path) -> None:
    where = tmp_path / "runtime" / "kernel.sock"
    async with running(tmp_path) as (kernel, operator):
        parent = await operator.spawn("one")
        child = await operator.spawn("one", parent=parent.pid)
        row = f"p, pid:{parent.pid}, spawn, /dev/image/*, deny"
        async with AsyncLLMasOS(socket=where, profile="owner") as owner:
            await owner.policy_edit(add=[row])
        process = kernel.processes.get(child.pid, kernel.run.owner)
        said = await run(kernel, process, tmp_path, SEES)
        assert said["spawn"] == "EACCES"


async def test_a_program_that_is_not_there_is_enoent(tmp_path: Path) -> None:
    async with running(tmp_path) as (kernel, client):
        process = kernel.processes.get((await client.spawn("one")).pid, kernel.run.owner)
        with pytest.raises(SyscallError) as caught:
            await program.start(kernel, process, ["/no/such/program"], tmp_path, {})
        assert caught.value.errno is Errno.ENOENT
        assert process.ending is None


async def test_what_is_taken_from_a_parent_ends_the_calls_of_its_children(tmp_path: Path) -> None:
    where = tmp_path / "runtime" / "kernel.sock"
    async with running(tmp_path, rate=50) as (_, operator):
        parent = await operator.spawn("one")
        child = operator.process((await operator.spawn("one", parent=parent.pid)).pid)
        with pytest.raises(SyscallError, match=r"policy\.csv:1") as caught:
            async with child.stream("word " * 400) as answer:
                async for _ in answer:
                    async with AsyncLLMasOS(socket=where, profile="owner") as owner:
                        await owner.policy_edit(
                            add=[f"p, pid:{parent.pid}, generate, /proc/*, deny"]
                        )
        assert caught.value.errno is Errno.EACCES
        with pytest.raises(SyscallError, match=r"policy\.csv:1"):  # fork is its own doing, too
            async with AsyncLLMasOS(socket=where, profile="owner") as owner:
                await owner.policy_edit(text=f"p, pid:{parent.pid}, fork, /proc/*, deny\n")
            await child.fork()


async def test_an_app_with_a_role_may_what_the_role_may_and_nothing_else(tmp_path: Path) -> None:
    where = tmp_path / "runtime" / "kernel.sock"
    async with running(tmp_path) as (_, operator):
        poet = operator.process((await operator.spawn("one", app="poet")).pid)
        await poet.generate("hello")
        async with AsyncLLMasOS(socket=where, profile="owner") as owner:
            await owner.policy_edit(add=["g, app:poet, r:poet"])
            with pytest.raises(SyscallError, match="no rule allows it for app:poet"):
                await poet.generate("hello")
            await owner.policy_edit(add=["p, r:poet, generate, /proc/*, allow"])
        await poet.generate("hello")
        with pytest.raises(SyscallError, match="no rule allows it for app:poet"):
            await poet.fork()


async def test_a_line_of_descent_that_is_too_long_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BOUNDS", 8)
    async with running(tmp_path) as (_, operator):
        pid = (await operator.spawn("one")).pid
        with pytest.raises(SyscallError, match="8 are allowed") as caught:
            for _ in range(8):
                pid = (await operator.spawn("one", parent=pid)).pid
        assert caught.value.errno is Errno.EAGAIN


NESTED = """
    import json, os, sys
    from llmasos import LLMasOS
    from llmasos.kernel.abi.errors import SyscallError

    for _ in range(int(sys.argv[2])):
        child = os.fork()
        if child:
            os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    said = {}
    try:
        with LLMasOS(socket=sys.argv[3], profile="operator") as client:
            client.mount("two")
            said["mount"] = "ok"
    except SyscallError as error:
        said["mount"] = error.errno.name
"""


@pytest.mark.parametrize("depth", [0, 3, limits.ANCESTORS + 6])
async def test_nobody_hides_below_a_program_however_deep(tmp_path: Path, depth: int) -> None:
    where = tmp_path / "runtime" / "kernel.sock"
    async with running(tmp_path) as (kernel, _):
        async with AsyncLLMasOS(socket=where) as careful:
            process = kernel.processes.get(
                (await careful.spawn("one", keep=True)).pid, kernel.run.owner
            )
        said = await run(kernel, process, tmp_path, NESTED, str(depth), str(where))
        assert said["mount"] == "EACCES"


def test_a_line_of_ancestors_that_breaks_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(Denied, match="has ended"):
        peer = identity.PeerCredentials(ended.pid, os.geteuid())
        identity.descends_from(ours, peer, {1}, subreaper=False)


async def test_a_program_has_so_many_connections(tmp_path: Path) -> None:
    where = tmp_path / "runtime" / "kernel.sock"
    many = """
        import json, sys
        from llmasos import LLMasOS
        from llmasos.kernel.abi.errors import SyscallError

        clients, said = [], {}
        try:
            for _ in range(40):
                clients.append(LLMasOS(socket=sys.argv[2]))
        except SyscallError as error:
            said = {"errno": error.errno.name, "many": len(clients)}
    """
    async with running(tmp_path) as (kernel, client):
        kernel.connections.user_limit = 20
        process = kernel.processes.get((await client.spawn("one")).pid, kernel.run.owner)
        said = await run(kernel, process, tmp_path, many, str(where))
        assert said == {"errno": "EAGAIN", "many": 19}  # and the one that it inherited


async def test_what_outlives_its_process_may_do_nothing(tmp_path: Path) -> None:
    left = """
        import os, sys, time
        from llmasos import LLMasOS
        from llmasos.kernel.abi.errors import SyscallError

        client = LLMasOS()
        if os.fork():
            time.sleep(60)
        os.setsid()
        open(sys.argv[1], "w").write("up")
        while os.path.exists(sys.argv[1]):
            time.sleep(0.02)
        os._exit(0)  # the client's thread was not forked: nobody would end it
    """
    async with running(tmp_path) as (kernel, client):
        process = kernel.processes.get((await client.spawn("one")).pid, kernel.run.owner)
        file, report = tmp_path / "left.py", tmp_path / "up"
        file.write_text(textwrap.dedent(left))
        command = [sys.executable, str(file), str(report)]
        await program.start(kernel, process, command, tmp_path, {})
        await eventually(report.exists)
        assert kernel.clients.of_process(process.pid)
        await client.process(process.pid).kill()
        await eventually(lambda: not kernel.clients.of_process(process.pid))
        report.unlink()


async def test_programs_follow_one_another_on_one_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a shell runs several commands: each says hello on what it inherits."""
    script = """
        import json, os, subprocess, sys, time

        said = {"codes": []}
        time.sleep(0.5)  # longer than HELLO_S: a program may take its time to start
        line = [sys.executable, "-c", "from llmasos.userland.cli import main; main(['ps'])"]
        for _ in range(2):
            done = subprocess.run(line, pass_fds=[int(os.environ["LLMASOS_FD"])])
            said["codes"].append(done.returncode)
    """
    async with running(tmp_path) as (kernel, client):
        process = kernel.processes.get((await client.spawn("one")).pid, kernel.run.owner)
        monkeypatch.setattr(limits, "HELLO_S", 0.2)
        said = await run(kernel, process, tmp_path, script)
        assert said["codes"] == [0, 0]


async def test_a_program_s_children_do_not_speak_on_its_connection(tmp_path: Path) -> None:
    """Its descriptor is closed to them, and what says its number is stale: they go by the path."""
    script = """
        import json, subprocess, sys
        from llmasos import LLMasOS

        def run(words, **how):
            return subprocess.run([sys.executable, "-c", words], **how).returncode

        ask = "from llmasos.userland.cli import main; raise SystemExit(main({}))".format
        with LLMasOS() as client:
            look = "import os; os.fstat(int(os.environ['LLMASOS_FD']))"
            said = {"open": not run(look, close_fds=False, stderr=subprocess.DEVNULL)}
            said["ps"] = [run(ask(["ps"]), close_fds=close) for close in (False, True)]
            said["mount"] = run(ask(["mount", "two"]))  # the kernel knows its ancestors
            said["mine"] = len(client.ps().processes)
    """
    where = tmp_path / "runtime"
    async with running(tmp_path) as (kernel, _):
        async with AsyncLLMasOS(socket=where / "kernel.sock") as careful:
            process = kernel.processes.get(
                (await careful.spawn("one", keep=True)).pid, kernel.run.owner
            )
        said = await run(kernel, process, tmp_path, script, LLMASOS_RUNTIME_DIR=str(where))
        assert said == {"open": False, "ps": [0, 0], "mount": exits.DENIED, "mine": 1}


async def test_no_daemon_is_started_below_a_program(tmp_path: Path) -> None:
    script = """
        import json, os, subprocess, sys

        code = "import sys; from llmasos.userland.cli import main; sys.exit(main(sys.argv[1:]))"
        mine = [int(os.environ["LLMASOS_FD"])]
        said = {"codes": [], "err": ""}
        for words, passed in (
            (["daemon", "start"], mine), (["ps"], mine),  # it is still there
            (["daemon", "start"], []), (["mount", "two"], []), (["ps"], []),
        ):
            line = [sys.executable, "-c", code, *words]
            done = subprocess.run(line, pass_fds=passed, stderr=subprocess.PIPE, text=True)
            said["codes"].append(done.returncode)
            said["err"] = done.stderr
    """
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    names = ("STATE", "CONFIG", "CACHE")
    environment = {f"LLMASOS_{name}_DIR": str(elsewhere / name) for name in names}
    async with running(tmp_path) as (kernel, client):
        process = kernel.processes.get((await client.spawn("one")).pid, kernel.run.owner)
        said = await run(kernel, process, tmp_path, script, TMPDIR=str(elsewhere), **environment)
        assert said["codes"] == [0, 0, *[exits.NO_DAEMON] * 3]
        assert "set LLMASOS_RUNTIME_DIR to that of the kernel" in said["err"]
        assert list(elsewhere.iterdir()) == []


async def test_a_store_that_fails_at_a_program_s_end_ends_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as (kernel, client):
        process = kernel.processes.get((await client.spawn("one")).pid, kernel.run.owner)

        async def broken(*_: object) -> None:
            raise SyscallError(Errno.EIO, "the disk is gone")

        monkeypatch.setattr(kernel.processes, "exit", broken)
        await program.start(kernel, process, ["/bin/true"], tmp_path, {})
        await eventually(lambda: not kernel.connections.programs)
        monkeypatch.undo()
        assert (await client.stat()).processes == 1
