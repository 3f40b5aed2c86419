"""Which engines are loaded: several at once, at need, never under a call, gone when idle.

The kernel runs in the test's process here, so that it can have more than one echo.
"""

import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from llmasos import AsyncLLMasOS
from llmasos.kernel import boot
from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.paths import Paths
from llmasos.kernel.driver import Option
from llmasos.kernel.machine import Machine as Kernel
from llmasos.userland.client import BlockingClient
from tests.system.daemon import Machine
from tests.system.test_life import spawn, turn

pytestmark = pytest.mark.anyio
NAMES = ("one", "two", "three")
DEADLINE_S = 60


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def running(
    root: Path, *, unload_s: float = 0, first: str = "", pin: bool = False,
    summaries: bool = False, **options: Option,
) -> AsyncGenerator[tuple[Kernel, AsyncLLMasOS]]:  # fmt: skip
    """A kernel with three echo models, and a client of it."""
    where = Paths(**{name: root / name for name in ("runtime", "state", "cache", "config")})
    plan = boot.BootPlan(
        paths=where, system="test", private=False,
        drivers={"echo": "llmasos.drivers.echo"},
        images={name: ("echo", Path()) for name in NAMES},
        defaults={"echo": options}, first=first, idle_exit_s=1e6, journal_bytes=1 << 24,
        idle_unload_s=unload_s, pin=pin, summaries=summaries,
    )  # fmt: skip
    kernels: list[Kernel] = []
    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as tasks:
            up = anyio.Event()

            def ready(kernel: Kernel) -> None:
                kernels.append(kernel)
                up.set()

            tasks.start_soon(boot.boot, plan, ready)
            await up.wait()
            try:
                async with AsyncLLMasOS(socket=where.socket, profile="operator") as client:
                    yield kernels[0], client
            finally:
                kernels[0].run.stop("the test has ended", drain=False)


async def mounted(client: AsyncLLMasOS) -> dict[str, v.DeviceInfo]:
    return {device.name: device for device in (await client.devices()).devices}


async def until(client: AsyncLLMasOS, wanted: Callable[[dict[str, v.DeviceInfo]], bool]) -> None:
    """Wait for what the journal's device events bring about."""
    async with client.watch(kinds=["device"]) as events:
        if wanted(await mounted(client)):
            return
        async for _ in events:
            if wanted(await mounted(client)):
                return


async def notes(client: AsyncLLMasOS, name: str) -> list[str]:
    stream = client.watch(since=0, follow=False, kinds=["device"])
    return [e.note async for batch in stream for e in batch.events if e.object.endswith(name)]


async def answer(client: AsyncLLMasOS, pid: int, text: str) -> str:
    stream = client.generate(pid, text, temperature=0, max_tokens=50)
    return "".join([delta.text async for delta in stream])


async def test_several_engines_answer_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, client):
        said: dict[str, str] = {}

        async def talk(name: str) -> None:
            process = await client.spawn(name)
            said[name] = await answer(client, process.pid, f"I am {name}")

        async with anyio.create_task_group() as tasks:
            for name in NAMES:
                tasks.start_soon(talk, name)
        assert said == {name: f"I am {name}" for name in NAMES}
        assert set(await mounted(client)) == set(NAMES)


async def test_an_idle_model_is_unloaded_and_comes_back_with_its_options(tmp_path: Path) -> None:
    async with running(tmp_path, unload_s=0.2) as (_, client):
        await client.mount("one", window=512)
        process = await client.spawn("one")
        await answer(client, process.pid, "remember")
        await until(client, lambda found: not found)
        assert (await notes(client, "one"))[-1] == "unmounted no call for 0.2 s"
        assert (await client.ps(pid=process.pid)).processes[0].window == 0
        assert await answer(client, process.pid, "and go on") == "and go on"
        assert (await client.read_mem(process.pid)).pages[0].text == "remember"
        async with client.watch(kinds=["device"]):
            loads = await notes(client, "one")
        assert loads.count("up") == 2
        other = await client.spawn("one")
        assert (await client.ps(pid=other.pid)).processes[0].window == 512
        await until(client, lambda found: not found)
        await client.unmount("one")  # it is forgotten, though it was not loaded
        await client.spawn("one")
        assert (await client.ps(pid=other.pid)).processes[0].window == 2048


async def test_a_call_keeps_its_model_however_long_it_is(tmp_path: Path) -> None:
    async with running(tmp_path, unload_s=0.05, rate=100.0) as (_, client):
        process = await client.spawn("one")
        begin = time.monotonic()
        stream = client.generate(process.pid, "abcabc", ignore_eos=True, max_tokens=60)
        assert len("".join([delta.text async for delta in stream])) > 60
        assert time.monotonic() - begin > 0.3
        await until(client, lambda found: not found)


async def test_a_pinned_model_stays(tmp_path: Path) -> None:
    async with running(tmp_path, unload_s=0.1) as (_, client):
        await client.mount("one", pin=True)
        await client.mount("two")
        await client.mount("three")
        pinned = await client.mount("three", pin=True)  # it is mounted: now it is pinned, too
        assert pinned.pinned
        await until(client, lambda found: set(found) == {"one", "three"})
        assert all(device.pinned for device in (await mounted(client)).values())
    async with running(tmp_path, unload_s=0.1, first="two", pin=True) as (_, client):
        await until(client, lambda found: len(found) == 3 and found["two"].state == "up")
        found = await mounted(client)
        assert all(found[name].pinned for name in NAMES)


async def test_a_model_that_is_mounted_already_is_no_error(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, client):
        first = await client.mount("one", window=512)
        for again in (await client.mount("one"), await client.mount("one", window=512)):
            assert (again.os_pid, again.window) == (first.os_pid, 512)
        await client.unmount("one")
        assert (await client.mount("one")).window == 2048


async def test_an_unused_model_is_mounted_anew_with_other_options(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, client):
        process = await client.spawn("one")
        assert (await client.mount("one", window=512)).window == 512
        stream = client.generate(process.pid, "abc", ignore_eos=True, max_tokens=200)
        await stream.__anext__()
        with pytest.raises(SyscallError, match="mounted with other options, and a call") as caught:
            await client.mount("one", window=1024)
        assert caught.value.errno is Errno.EBUSY
        assert "`llmasos unmount one`" in caught.value.hint
        await stream.aclose()


async def test_a_mount_takes_the_place_of_the_automatic_one(tmp_path: Path) -> None:
    async with running(tmp_path, first="one", load_s=0.5) as (_, client):
        assert (await mounted(client))["one"].state == "loading"
        assert (await client.mount("one", window=512)).window == 512
        assert (await mounted(client))["one"].window == 512


async def test_memory_is_taken_from_whoever_was_used_least_recently(tmp_path: Path) -> None:
    async with running(tmp_path, memory=500) as (_, client):  # two of them fit
        pids = {name: (await client.spawn(name)).pid for name in ("one", "two")}
        await answer(client, pids["one"], "used again")
        pids["three"] = (await client.spawn("three")).pid
        assert set(await mounted(client)) == {"one", "three"}
        assert (await notes(client, "two"))[-1] == "unmounted its memory is needed for three"
        assert await answer(client, pids["two"], "back") == "back"
        assert set(await mounted(client)) == {"two", "three"}


async def test_what_does_not_fit_says_who_holds_the_memory(tmp_path: Path) -> None:
    async with running(tmp_path, memory=500, rate=50.0) as (_, client):
        await client.mount("one", pin=True)
        process = await client.spawn("two")
        stream = client.generate(process.pid, "abc", ignore_eos=True, max_tokens=1000)
        await stream.__anext__()
        with pytest.raises(SyscallError) as caught:
            await client.spawn("three")
        assert caught.value.errno is Errno.ENOMEM
        assert "500 MB are needed, 24 MB of 1024 are free" in caught.value.message
        assert "one (pinned), two (in use)" in caught.value.message
        assert "llmasos unmount" in caught.value.hint
        assert set(await mounted(client)) == {"one", "two"}
        await client.kill(process.pid)
        with pytest.raises(StopAsyncIteration):
            while True:
                await stream.__anext__()
        with pytest.raises(SyscallError, match="1000 MB are needed") as caught:
            await client.mount("three", memory=1000)
        assert caught.value.message.endswith("one (pinned)")
        assert set(await mounted(client)) == {"one"}  # the idle one went in vain


async def test_no_caller_sees_that_a_model_goes_by_itself(tmp_path: Path) -> None:
    """Two models that fit one at a time, unloaded at once, and callers of both at random times."""
    async with running(tmp_path, unload_s=0.001, memory=700, load_s=0.01) as (_, client):
        pids = {name: (await client.spawn(name)).pid for name in ("one", "two")}
        dice = random.Random(4)
        answered = busy = 0

        async def talk() -> None:
            nonlocal answered, busy
            for _ in range(60):
                name = dice.choice(("one", "two"))
                await anyio.sleep(dice.random() * 0.004)
                try:
                    process = await client.spawn(name, keep=False)
                    assert await answer(client, process.pid, "here") == "here"
                    assert (await client.tokenize(name, "here")).tokens
                    await client.reap(process.pid)
                    answered += 1
                except SyscallError as error:
                    # The other one is in use just now: that is no unload under a caller.
                    assert error.errno is Errno.ENOMEM, error
                    busy += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(talk)
        assert answered + busy == 360
        assert answered > 30
        assert pids


def progress(path: Path, name: str) -> list[v.Progress]:
    """A mount by the blocking client."""
    with BlockingClient(path) as line:
        return list(line.stream("mount", v.Mount(name), v.Progress, v.DeviceInfo))


async def test_a_load_is_told_while_it_lasts(tmp_path: Path) -> None:
    async with running(tmp_path, load_s=1.0) as (_, client):
        path = tmp_path / "runtime" / "kernel.sock"
        told = await anyio.to_thread.run_sync(progress, path, "one")
        assert [one.stage for one in told] == ["load"] * len(told)
        shares = [one.done for one in told]
        assert shares == sorted(shares)
        assert 3 <= len(told) <= 11
        assert shares[0] < 0.2
        assert shares[-1] >= 0.7
        again = await client.spawn("one")
        assert again.pid


# --- real models ------------------------------------------------------------------------------
async def test_two_real_models_are_loaded_at_once(machine: Machine) -> None:
    machine.sense()  # some gigabytes would fit for the other one
    machine.start("--tune", "false")
    with BlockingClient(machine.paths.socket) as line:
        images = {i.name: i for i in line.call("images", v.Nothing(), v.Images).images}
        line.call("image_add", v.ImageAdd("twin", images["smollm2"].path), v.ImageInfo)
        pids = [spawn(line, name) for name in ("smollm2", "twin")]
        sampling = v.Sampling(temperature=0, max_tokens=12)
        said = [turn(line, pid, "Say hello.", sampling)[0] for pid in pids]
        assert all(said)
        found = line.call("devices", v.Nothing(), v.Devices).devices
        assert {d.name: d.state for d in found} == {"smollm2": "up", "twin": "up"}
        assert len({d.os_pid for d in found}) == 2
        line.call("mount", v.Mount("twin", pin=True), v.DeviceInfo)
        line.call("unmount", v.Unmount("smollm2"), v.Nothing)
        huge = v.Mount("smollm2", {"slots": 256, "window": 8192})
        with pytest.raises(SyscallError, match=r"MB are free.*twin \(pinned\)") as no:
            list(line.stream("mount", huge, v.Progress, v.DeviceInfo))
        assert no.value.errno is Errno.ENOMEM
