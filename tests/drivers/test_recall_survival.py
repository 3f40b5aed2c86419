"""Recall outlives its processes, its files and its disk, and what was removed leaves no byte."""

import contextlib
import fcntl
import functools
import json
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from random import Random

import anyio
import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault
from llmasos.kernel.driver import Cause, VectorScores
from tests.drivers.recall_rig import (
    DEADLINE_S,
    WIDTH,
    Rig,
    best,
    expected,
    pack,
    page,
    vector,
    vectors,
    whole,
)  # fmt: skip

pytestmark = pytest.mark.anyio
PAGES = 1_200  # more than Chroma keeps in its log: it writes its index, too
FEW = 400
HINT = "llmasos mem fsck --rebuild"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Short pauses, and Chroma is asked from 300 pages on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "RESTART_FIRST_S", 0.01)
        patch.setattr(limits, "CHROMA_RETRY_FIRST_S", 0.2)
        patch.setattr(limits, "EXACT_PAGES", 300)
        patch.setattr("llmasos.drivers.process.GRACE_S", 0.5)
        yield


@pytest.fixture(scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    async with Rig(tmp_path_factory.mktemp("recall")) as rig:
        yield rig


@pytest.fixture
async def owner(rig: Rig) -> Path:
    """Some pages, which Chroma has."""
    owner = rig.owner()
    await rig.hand_over(owner, {1: vectors(PAGES)})
    assert await rig.stored(owner, 1) == PAGES
    return owner


QUESTION = vector(Random(99))


@functools.cache
def should_be_found(pages: int) -> frozenset[int]:
    return frozenset(best(expected({1: vectors(pages)}, QUESTION, [whole(1)]), 20))


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Look again and again: files, notes and other programs do not call."""
    with anyio.fail_after(DEADLINE_S):
        while not await true():  # noqa: ASYNC110
            await anyio.sleep(0.02)


async def check(rig: Rig, owner: Path, pages: int = PAGES) -> VectorScores:
    """A search finds what it should."""
    found = await rig.search(owner, QUESTION, whole(1))
    assert not found.unknown
    assert should_be_found(pages) <= set(found.pages)
    return found


# --- processes --------------------------------------------------------------------------------
@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_killed_child_is_told_and_comes_back_with_nothing(
    rig: Rig, owner: Path, death: signal.Signals
) -> None:
    pid, ups, downs = rig.facts.os_pid, rig.ear.ups, len(rig.ear.downs)
    os.kill(pid, death)
    with pytest.raises(DeviceFault):
        while True:
            await rig.search(owner, vector(Random(1)), whole(1))
    await rig.ear.until(lambda: len(rig.ear.downs) > downs)
    told = rig.ear.downs[-1]
    assert death.name in told.reason
    assert told.cause is (Cause.OUTSIDE if death is signal.SIGKILL else Cause.CRASH)
    assert not told.failed
    await rig.ear.until(lambda: rig.ear.ups > ups)
    assert rig.facts.os_pid != pid
    assert (await rig.search(owner, vector(Random(1)), whole(1))).unknown == [1]
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
        await rig.device.add(rig.owner(), 1, [], [])


async def test_after_a_restart_chroma_gets_the_difference(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        owner = rig.owner()
        await rig.hand_over(owner, {1: vectors(500), 2: vectors(40)})
        assert await rig.stored(owner, 1) == 500
    async with Rig(tmp_path) as rig:
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


def chroma_of(pid: int) -> int:
    """The process of Chroma that a child has."""
    told = Path(f"/proc/{pid}/task").glob("*/children")
    [found] = [int(one) for path in told for one in path.read_text().split()]
    return found


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


# --- files ------------------------------------------------------------------------------------
def garbled(name: str) -> Callable[[Path], None]:
    def garble(chroma: Path) -> None:
        for path in chroma.rglob(name):
            path.write_bytes(b"\xff" * 4096)

    return garble


def cut_short(chroma: Path) -> None:
    """This one kills the process that opens it."""
    for path in chroma.rglob("header.bin"):
        os.truncate(path, 50)


def newer(chroma: Path) -> None:
    mark = chroma / "llmasos.json"
    mark.write_text(json.dumps({**json.loads(mark.read_text()), "chroma": "99.1.0"}))


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "a database that is none": (garbled("chroma.sqlite3"), "not a database"),
    "an index that is none": (garbled("header.bin"), "hnsw"),
    "an index that kills": (cut_short, "SIGSEGV"),
}


@pytest.fixture(scope="module")
async def files(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Directories of owners who had so many pages: nobody uses them, they are copied."""
    made: dict[int, Path] = {}
    async with Rig(tmp_path_factory.mktemp("files")) as rig:
        for pages in (FEW, PAGES):
            made[pages] = rig.owner()
            await rig.hand_over(made[pages], {1: vectors(pages)})
            assert await rig.stored(made[pages], 1) == pages
    return made


def spoilt(files: Path, folder: Path, spoil: Callable[[Path], None]) -> Path:
    """An owner whose files were spoilt while no process had them."""
    owner = shutil.copytree(files, folder / "owner")
    spoil(owner / "chroma")
    return owner


@pytest.mark.parametrize("case", BROKEN)
async def test_broken_files_are_reported_and_made_anew_after_some_tries(
    tmp_path: Path, files: dict[int, Path], case: str
) -> None:
    spoil, words = BROKEN[case]
    owner = spoilt(files[PAGES], tmp_path, spoil)
    async with Rig(tmp_path) as rig:
        await rig.hand_over(owner, {1: vectors(PAGES)})
        assert await rig.stored(owner, 1) == -1
        note = (await check(rig, owner)).note
        assert words in note
        assert HINT in note

        async def usable() -> bool:
            return not (await check(rig, owner)).note

        await until(usable)
        assert await rig.stored(owner, 1) == PAGES
        assert not rig.ear.downs


def unmarked(chroma: Path) -> None:
    (chroma / "llmasos.json").unlink()


def cut_mark(chroma: Path) -> None:
    os.truncate(chroma / "llmasos.json", 5)


def empty(chroma: Path) -> None:
    shutil.rmtree(chroma)
    chroma.mkdir()


def half_made(chroma: Path) -> None:
    """Killed while it was made, before its mark was written."""
    shutil.rmtree(chroma)
    chroma.with_name("chroma.new").mkdir()


@pytest.mark.parametrize("spoil", [unmarked, cut_mark, empty, half_made])
async def test_files_without_a_mark_are_made_anew(
    tmp_path: Path, files: dict[int, Path], spoil: Callable[[Path], None]
) -> None:
    owner = spoilt(files[PAGES], tmp_path, spoil)
    async with Rig(tmp_path) as rig:
        await rig.hand_over(owner, {1: vectors(PAGES)})
        assert await rig.stored(owner, 1) == PAGES
        assert not (await check(rig, owner)).note


async def test_files_of_a_newer_version_stay_until_a_renewal(
    tmp_path: Path, files: dict[int, Path]
) -> None:
    owner, words = spoilt(files[PAGES], tmp_path, newer), "written by Chroma 99.1.0"
    async with Rig(tmp_path) as rig:
        healthy = tmp_path / "healthy"
        healthy.mkdir()
        await rig.hand_over(owner, {1: vectors(PAGES)})
        for _ in range(5):  # more tries than it takes to make other files anew
            assert await rig.stored(owner, 1) == -1
        found = await check(rig, owner)
        assert words in found.note
        assert HINT in found.note
        await rig.hand_over(healthy, {1: vectors(5)})
        assert await rig.stored(healthy, 1) == 5
        await rig.renew(owner)
        assert await rig.stored(owner, 1) == PAGES
        assert not (await check(rig, owner)).note
        assert not rig.ear.downs


async def test_files_that_another_process_has_are_left_alone(rig: Rig) -> None:
    owner = rig.owner()
    with (owner / "chroma.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        await rig.hand_over(owner, {1: vectors(FEW)})
        assert await rig.stored(owner, 1) == -1
        found = await check(rig, owner, FEW)
        assert "another process has its files open" in found.note
        assert not (owner / "chroma").exists()
        with pytest.raises(DeviceFault, match="another process"):
            await rig.renew(owner)
    assert await rig.stored(owner, 1) == FEW
    assert not (await check(rig, owner, FEW)).note


async def test_two_devices_do_not_share_files(rig: Rig, owner: Path, tmp_path: Path) -> None:
    async with Rig(tmp_path) as other:
        await other.hand_over(owner, {1: vectors(FEW)})
        assert await other.stored(owner, 1) == -1
    assert await rig.stored(owner, 1) == PAGES


async def test_an_owner_without_a_directory_is_searched_all_the_same(rig: Rig) -> None:
    owner = rig.folder / "nowhere"
    await rig.hand_over(owner, {1: vectors(FEW)})
    assert await rig.stored(owner, 1) == -1
    assert "No such file" in (await check(rig, owner, FEW)).note
    assert not owner.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=DEADLINE_S)
    except OSError as error:
        pytest.skip(f"no disk of 4 MB can be made: {error}")
    if done.returncode:
        pytest.skip(f"no disk of 4 MB can be made: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=DEADLINE_S)


async def test_a_full_disk_costs_nothing_but_speed(rig: Rig, small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 3_600_000)
    owner = small_disk / "owner"
    owner.mkdir()
    await rig.hand_over(owner, {1: vectors(400, width=512)})
    assert await rig.stored(owner, 1) == -1
    question = vectors(400, width=512)[17]
    found = await rig.search(owner, question, whole(1))
    assert found.pages[0] == page(1, 17)
    assert "full" in found.note or "No space" in found.note
    ballast.unlink()
    assert await rig.stored(owner, 1) == FEW
    assert not (await rig.search(owner, question, whole(1))).note


async def test_files_that_may_not_grow_are_made_anew(rig: Rig) -> None:
    owner = rig.owner()
    await rig.hand_over(owner, {1: vectors(5, width=512)})
    assert await rig.stored(owner, 1) == 5
    chroma = chroma_of(rig.facts.os_pid)
    before = resource.prlimit(chroma, resource.RLIMIT_FSIZE)
    resource.prlimit(chroma, resource.RLIMIT_FSIZE, (200_000, before[1]))
    await rig.hand_over(owner, {1: vectors(400, width=512)})
    found = await rig.search(owner, vectors(400, width=512)[17], whole(1))
    assert found.pages[0] == page(1, 17)  # without Chroma, or with a new one already

    async def usable() -> bool:  # the limit goes with the process, which ends at the second try
        note = (await rig.search(owner, vectors(5, width=512)[1], whole(1))).note
        return not note and await rig.stored(owner, 1) == FEW

    await until(usable)
    assert chroma_of(rig.facts.os_pid) != chroma


async def test_what_failed_is_tried_again_by_itself(rig: Rig) -> None:
    owner = rig.folder / "late"
    await rig.hand_over(owner, {1: vectors(5)})

    async def healthy() -> bool:
        return not (await check(rig, owner, 5)).note

    async def troubled() -> bool:
        return not await healthy()

    await until(troubled)
    owner.mkdir()
    await until(healthy)
    assert (owner / "chroma").is_dir()


# --- removal ----------------------------------------------------------------------------------
def holding(owner: Path, needles: list[bytes]) -> dict[bytes, list[str]]:
    """The files that hold the bytes."""
    files = {path: path.read_bytes() for path in owner.rglob("*") if path.is_file()}
    found = {one: [path.name for path, data in files.items() if one in data] for one in needles}
    return {one: names for one, names in found.items() if names}


def plain_vectors(count: int) -> list[bytes]:
    """Different ones, whose length is 1 to the last bit: Chroma stores them as they are."""
    signs = Random(4).sample(range(2**WIDTH), count)
    return [pack([(bits >> n & 1) / 2 - 0.25 for n in range(WIDTH)]) for bits in signs]


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
    assert holding(owner, gone) == {}
    kept = [data for place, data in held.items() if place not in places]
    assert len(holding(owner, kept)) == len(kept)
    assert await rig.stored(owner, 1) == len(kept)
    assert (await rig.search(owner, held[0], whole(2))).unknown == [2]
    assert holding(owner, gone) == {}
    assert not deleted_and_open(chroma_of(rig.facts.os_pid), owner)
    assert not deleted_and_open(rig.facts.os_pid, owner)


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


async def test_searches_go_on_while_files_are_renewed(rig: Rig, owner: Path) -> None:
    searches = 0
    async with anyio.create_task_group() as tasks:
        done = anyio.Event()

        async def renew() -> None:
            await rig.renew(owner)
            done.set()

        tasks.start_soon(renew)
        while not done.is_set():
            assert not (await check(rig, owner)).note
            searches += 1
    assert searches > 1
    assert await rig.stored(owner, 1) == PAGES


async def test_an_owner_who_holds_nothing_keeps_no_files(rig: Rig, owner: Path) -> None:
    await rig.device.remove(owner, 1)
    await rig.renew(owner)
    assert [path.name for path in owner.iterdir()] == ["chroma.lock"]
    assert not deleted_and_open(rig.facts.os_pid, owner)
    shutil.rmtree(owner)
    owner.mkdir()
    await rig.hand_over(owner, {1: vectors(3)})
    assert await rig.stored(owner, 1) == 3


# Where a renewal can be cut short, as the names of what is then in the owner's directory.
STAGES = {
    "begun": ("chroma", "chroma.new"),
    "written": ("chroma", "chroma.new", "chroma.new/chroma.sqlite3"),
    "between the two renames": ("chroma.old", "chroma.new"),
    "before the old is removed": ("chroma", "chroma.old"),
}


@pytest.mark.parametrize("stage", STAGES)
async def test_a_renewal_that_was_cut_short_is_made_good(
    tmp_path: Path, files: dict[int, Path], stage: str
) -> None:
    owner = shutil.copytree(files[FEW], tmp_path / "owner")
    if stage in ("begun", "written"):
        await _kill_at(owner, [owner / name for name in STAGES[stage]])
    else:
        for name in set(STAGES[stage]) - {"chroma"}:
            shutil.copytree(owner / "chroma", owner / name)
        if "chroma" not in STAGES[stage]:
            shutil.rmtree(owner / "chroma")
    async with Rig(tmp_path) as rig:
        await rig.hand_over(owner, {1: vectors(FEW)})
        assert await rig.stored(owner, 1) == FEW
        assert not (await check(rig, owner, FEW)).note
    assert {path.name for path in owner.iterdir()} == {"chroma", "chroma.lock"}


async def _kill_at(owner: Path, there: list[Path]) -> None:
    """Begin a renewal, and kill everything when these are there."""

    async def all_there() -> bool:
        return all(path.exists() for path in there)

    async with Rig(owner.parent) as rig:
        await rig.hand_over(owner, {1: vectors(FEW)})
        assert await rig.stored(owner, 1) == FEW
        with contextlib.suppress(DeviceFault):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_renew, rig, owner)
                await until(all_there)
                os.kill(rig.facts.os_pid, signal.SIGKILL)


async def _renew(rig: Rig, owner: Path) -> None:
    with contextlib.suppress(DeviceFault):
        await rig.renew(owner)


# --- a server ---------------------------------------------------------------------------------
class Server:
    """Chroma's own server on this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port: int = one.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> "Server":
        command = [str(Path(sys.executable).with_name("chroma")), "run", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--path", str(self._folder)]
        environment = {**os.environ, "HOME": str(self._folder)}
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        await until(self._listens)
        return self

    async def _listens(self) -> bool:
        assert self._process.poll() is None
        with contextlib.suppress(OSError):
            async with await anyio.connect_tcp("127.0.0.1", self.port):
                return True
        return False

    async def __aexit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(DEADLINE_S)


async def test_a_server_holds_what_files_would(tmp_path: Path) -> None:
    server = Server(tmp_path / "server")
    (tmp_path / "server").mkdir()
    async with Rig(tmp_path, url=server.url) as rig:
        owner, other = rig.owner(), rig.owner()
        await rig.hand_over(owner, {1: vectors(FEW)})
        assert await rig.stored(owner, 1) == -1
        note = (await check(rig, owner, FEW)).note
        assert server.url in note
        async with server:
            assert await rig.stored(owner, 1) == FEW
            assert not (await check(rig, owner, FEW)).note
            await rig.hand_over(other, {1: vectors(7)})
            assert await rig.stored(other, 1) == 7
            assert await rig.stored(owner, 1) == FEW
            await rig.device.remove(owner, 1, range(100))
            await rig.renew(owner)
            assert await rig.stored(owner, 1) == 300
            assert await rig.stored(other, 1) == 7
        await rig.device.add(owner, 1, [0], [vectors(1)[0]])
        assert await rig.stored(owner, 1) == -1
        assert (await rig.search(owner, vectors(1)[0], whole(1))).pages[0] == page(1, 0)
        async with server:
            assert await rig.stored(owner, 1) == 301
    assert not (owner / "chroma").exists()
