"""Recall outlives the deaths of its processes, and a renewal leaves no byte of what was removed."""

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random

import anyio
import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault
from llmasos.kernel.driver import Cause
from tests.drivers.recall_failures import FEW, PAGES, QUESTION, check, chroma_of, quick, until
from tests.drivers.recall_rig import (
    DEADLINE_S,
    WIDTH,
    Rig,
    best,
    expected,
    pack,
    vector,
    vectors,
    whole,
)  # fmt: skip
from tests.files import contents

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", autouse=True)
def short_pauses() -> Iterator[None]:
    with quick():
        yield


@pytest.fixture(scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    async with Rig(tmp_path_factory.mktemp("recall")) as rig:
        yield rig


@pytest.fixture
async def owner(rig: Rig) -> Path:
    """Some pages, which Chroma has: of one owner, whatever has died in an earlier test."""
    return await held(rig, "owner", PAGES)


@pytest.fixture
async def small(rig: Rig) -> Path:
    """The same with fewer pages."""
    return await held(rig, "small", FEW)


async def held(rig: Rig, name: str, pages: int) -> Path:
    owner = rig.folder / name
    owner.mkdir(exist_ok=True)
    if (await rig.search(owner, QUESTION, whole(1))).unknown:
        await rig.hand_over(owner, {1: vectors(pages)})
    assert await rig.stored(owner, 1) == pages
    return owner


# --- processes --------------------------------------------------------------------------------
@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_killed_child_is_told_and_comes_back_with_nothing(
    rig: Rig, owner: Path, death: signal.Signals
) -> None:
    pid, ups, downs = rig.facts.os_pid, rig.ear.ups, len(rig.ear.downs)
    os.kill(pid, death)
    with pytest.raises(DeviceFault):
        while True:
            await rig.search(owner, QUESTION, whole(1))
    await rig.ear.until(lambda: len(rig.ear.downs) > downs)
    told = rig.ear.downs[-1]
    assert death.name in told.reason
    assert told.cause is (Cause.OUTSIDE if death is signal.SIGKILL else Cause.CRASH)
    assert not told.failed
    await rig.ear.until(lambda: rig.ear.ups > ups)
    assert rig.facts.os_pid != pid
    assert (await rig.search(owner, QUESTION, whole(1))).unknown == [1]
    await rig.hand_over(owner, {1: vectors(PAGES)})
    await check(rig, owner)
    assert await rig.stored(owner, 1) == PAGES


def freeze(pid: int) -> None:
    """SIGSTOP, and wait until every thread of our child has stopped."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


async def test_a_hanging_child_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HANG_S", 2.0)
    async with Rig(tmp_path) as rig:
        freeze(rig.facts.os_pid)
        with pytest.raises(DeviceFault, match="no answer for"), anyio.fail_after(DEADLINE_S):
            await rig.device.add(rig.owner(), 1, [], [])
        await rig.ear.until(lambda: rig.ear.ups == 2)
        assert (await rig.search(rig.owner(), QUESTION, whole(1))).unknown == [1]


async def test_after_a_restart_chroma_gets_the_difference(rig: Rig) -> None:
    owner, ups = rig.owner(), rig.ear.ups
    await rig.hand_over(owner, {1: vectors(500), 2: vectors(40)})
    assert await rig.stored(owner, 1) == 500
    await rig.device.restart()
    await rig.ear.until(lambda: rig.ear.ups > ups)
    # A sixth is gone, some are others now, 100 are new; space 2 is of another embedder.
    other = {**vectors(600), **{place: vector(Random(place + 1000)) for place in range(7)}}
    fresh = {place: data for place, data in other.items() if place % 6 != 5}
    await rig.hand_over(owner, {1: fresh, 2: vectors(30, width=8)})
    assert await rig.stored(owner, 1) == len(fresh) == 500
    assert await rig.stored(owner, 2) == 30
    for place in (0, 3, 6, 598):
        found = await rig.search(owner, fresh[place], whole(1))
        scores = expected({1: fresh}, fresh[place], [whole(1)])
        assert set(best(scores, 10)) <= set(found.pages)


async def test_chroma_s_own_process_may_die(rig: Rig, owner: Path) -> None:
    downs = len(rig.ear.downs)
    os.kill(chroma_of(rig.facts.os_pid), signal.SIGKILL)
    await check(rig, owner)
    await rig.device.add(owner, 1, [PAGES], [vectors(PAGES + 1)[PAGES]])
    await check(rig, owner, PAGES + 1)

    async def stored() -> bool:  # the first may meet the death
        return await rig.stored(owner, 1) == PAGES + 1

    await until(stored)
    assert not (await check(rig, owner, PAGES + 1)).note
    assert len(rig.ear.downs) == downs
    await rig.device.remove(owner, 1, [PAGES])


async def test_everything_ends_with_a_killed_kernel(tmp_path: Path) -> None:
    code = f"""
import asyncio
from pathlib import Path
from tests.drivers.recall_rig import Rig, vectors

async def main():
    async with Rig(Path({str(tmp_path)!r})) as rig:
        owner = rig.owner()
        await rig.hand_over(owner, {{1: vectors(3)}})
        assert await rig.stored(owner, 1) == 3
        print(rig.facts.os_pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=root) as kernel:
        assert kernel.stdout is not None
        child = int(kernel.stdout.readline())
        ends = [os.pidfd_open(pid) for pid in (child, chroma_of(child))]
        kernel.kill()
        for end in ends:
            assert select.select([end], [], [], DEADLINE_S)[0]
            os.close(end)


# --- removal ----------------------------------------------------------------------------------
# The bytes of a plain vector, wherever they begin.
PLAIN = re.compile(rb"(?=((?:\0\0\x80[\x3e\xbe]){%d}))" % WIDTH)


def plain_vectors(count: int) -> list[bytes]:
    """Different ones, whose length is 1 to the last bit: Chroma stores them as they are."""
    signs = Random(4).sample(range(2**WIDTH), count)
    made = [pack([(bits >> n & 1) / 2 - 0.25 for n in range(WIDTH)]) for bits in signs]
    assert all(PLAIN.match(one) for one in made)
    return made


def holding(owner: Path, wanted: list[bytes]) -> set[bytes]:
    """Those of the plain vectors that any file holds."""
    found = {match[1] for _, data in contents(owner) for match in PLAIN.finditer(data)}
    return found & set(wanted)


def deleted_and_open(pid: int, owner: Path) -> list[str]:
    """Files that are gone by name and not from the disk."""
    links: list[str] = []
    try:
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it is closed meanwhile
                links.append(os.readlink(path))
    except PermissionError:  # only root may look into a process that writes no core
        return []
    return [link for link in links if link.startswith(str(owner)) and link.endswith("(deleted)")]


async def test_a_renewal_leaves_no_byte_of_what_was_removed(rig: Rig) -> None:
    owner, all_vectors = rig.owner(), plain_vectors(PAGES + 300)
    held, other = dict(enumerate(all_vectors[:PAGES])), dict(enumerate(all_vectors[PAGES:]))
    await rig.hand_over(owner, {1: held, 2: other})
    assert await rig.stored(owner, 1) == PAGES
    places = [*range(100, 150), PAGES - 1]
    gone = [*(held[place] for place in places), *other.values()]
    await rig.device.remove(owner, 1, places)
    await rig.device.remove(owner, 2)
    assert await rig.stored(owner, 1) == PAGES - len(places)
    # Chroma has deleted them, and yet they are there: else this test could not fail.
    assert len(holding(owner, gone)) > 0.8 * len(gone)
    await rig.renew(owner)
    assert holding(owner, gone) == set()
    kept = [data for place, data in held.items() if place not in places]
    assert len(holding(owner, kept)) == len(kept)
    assert await rig.stored(owner, 1) == len(kept)
    assert (await rig.search(owner, held[0], whole(2))).unknown == [2]
    assert holding(owner, gone) == set()
    assert not deleted_and_open(chroma_of(rig.facts.os_pid), owner)
    assert not deleted_and_open(rig.facts.os_pid, owner)


async def test_searches_go_on_while_files_are_renewed(rig: Rig, small: Path) -> None:
    searches = 0
    async with anyio.create_task_group() as tasks:
        done = anyio.Event()

        async def renew() -> None:
            await rig.renew(small)
            done.set()

        tasks.start_soon(renew)
        while not done.is_set():
            assert not (await check(rig, small, FEW)).note
            searches += 1
    assert searches > 1
    assert await rig.stored(small, 1) == FEW


async def test_files_are_renewed_after_chroma_has_died(rig: Rig, small: Path) -> None:
    chroma = chroma_of(rig.facts.os_pid)
    end = os.pidfd_open(chroma)
    os.kill(chroma, signal.SIGKILL)
    assert select.select([end], [], [], DEADLINE_S)[0]
    os.close(end)
    await rig.renew(small)
    assert await rig.stored(small, 1) == FEW


async def test_an_owner_who_holds_nothing_keeps_no_files(rig: Rig) -> None:
    owner = rig.owner()
    await rig.hand_over(owner, {1: vectors(FEW)})
    assert await rig.stored(owner, 1) == FEW
    await rig.device.remove(owner, 1)
    await rig.renew(owner)
    assert [path.name for path in owner.iterdir()] == ["chroma.lock"]
    assert not deleted_and_open(rig.facts.os_pid, owner)
    shutil.rmtree(owner)
    owner.mkdir()
    await rig.hand_over(owner, {1: vectors(3)})
    assert await rig.stored(owner, 1) == 3


async def test_a_renewal_that_was_killed_is_made_good(rig: Rig, small: Path) -> None:
    ups, chroma = rig.ear.ups, chroma_of(rig.facts.os_pid)

    async def written() -> bool:
        return (small / "chroma.new" / "chroma.sqlite3").exists()

    async def renew() -> None:
        with pytest.raises(DeviceFault):
            await rig.renew(small)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(renew)
        await until(written)
        assert chroma_of(rig.facts.os_pid) == chroma  # no other one is started to write them
        os.kill(rig.facts.os_pid, signal.SIGKILL)
    await rig.ear.until(lambda: rig.ear.ups > ups)
    await rig.hand_over(small, {1: vectors(FEW)})
    assert await rig.stored(small, 1) == FEW
    assert not (await check(rig, small, FEW)).note
    assert {path.name for path in small.iterdir()} == {"chroma", "chroma.lock"}
