"""Recall outlives what happens to its files, its disk and its server."""

import contextlib
import fcntl
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import anyio
import pytest

from llmasos.kernel.abi.errors import DeviceFault
from tests.drivers.recall_failures import FEW, PAGES, check, chroma_of, quick, until
from tests.drivers.recall_rig import DEADLINE_S, Rig, page, vectors, whole

pytestmark = pytest.mark.anyio
HINT = "llmasos mem fsck --rebuild"


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


@pytest.fixture
async def copied(
    rig: Rig, files: dict[int, Path], tmp_path: Path
) -> AsyncIterator[Callable[[int], Path]]:
    """Copies an owner who had so many pages. The files can be spoilt: no process has them."""
    owner = tmp_path / "owner"
    yield lambda pages: shutil.copytree(files[pages], owner)
    await rig.device.remove(owner, 1)  # or Chroma opens them whenever it starts


# --- broken files -----------------------------------------------------------------------------
def garbled(name: str) -> Callable[[Path], None]:
    def garble(chroma: Path) -> None:
        for path in chroma.rglob(name):
            path.write_bytes(b"\xff" * 4096)

    return garble


def cut_short(chroma: Path) -> None:
    """This one kills the process that opens it."""
    for path in chroma.rglob("header.bin"):
        os.truncate(path, 50)


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "a database that is none": (garbled("chroma.sqlite3"), "not a database"),
    "an index that is none": (garbled("header.bin"), "hnsw"),
    "an index that kills": (cut_short, "SIGSEGV"),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_broken_files_are_reported_and_made_anew_after_some_tries(
    rig: Rig, copied: Callable[[int], Path], case: str
) -> None:
    spoil, words = BROKEN[case]
    owner = copied(PAGES)
    spoil(owner / "chroma")
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
    rig: Rig, copied: Callable[[int], Path], spoil: Callable[[Path], None]
) -> None:
    owner = copied(FEW)
    spoil(owner / "chroma")
    await rig.hand_over(owner, {1: vectors(FEW)})
    assert await rig.stored(owner, 1) == FEW
    assert not (await check(rig, owner, FEW)).note


# Where a renewal can be cut short, as the names of what is then in the owner's directory. A renewal
# that is killed while it writes is in test_recall_survival.py.
STAGES = {
    "begun": ("chroma", "chroma.new"),
    "between the two renames": ("chroma.old", "chroma.new"),
    "before the old is removed": ("chroma", "chroma.old"),
}


@pytest.mark.parametrize("stage", STAGES)
async def test_a_renewal_that_was_cut_short_is_made_good(
    rig: Rig, copied: Callable[[int], Path], stage: str
) -> None:
    owner = copied(FEW)
    for name in set(STAGES[stage]) - {"chroma"}:
        shutil.copytree(owner / "chroma", owner / name)
    if stage == "begun":
        empty(owner / "chroma.new")
    if "chroma" not in STAGES[stage]:
        shutil.rmtree(owner / "chroma")
    assert {path.name for path in owner.iterdir()} == {*STAGES[stage], "chroma.lock"}
    await rig.hand_over(owner, {1: vectors(FEW)})
    assert await rig.stored(owner, 1) == FEW
    assert not (await check(rig, owner, FEW)).note
    assert {path.name for path in owner.iterdir()} == {"chroma", "chroma.lock"}


async def test_files_of_a_newer_version_stay_until_a_renewal(
    rig: Rig, copied: Callable[[int], Path]
) -> None:
    owner = copied(FEW)
    mark = owner / "chroma" / "llmasos.json"
    mark.write_text(json.dumps({**json.loads(mark.read_text()), "chroma": "99.1.0"}))
    await rig.hand_over(owner, {1: vectors(FEW)})
    for _ in range(5):  # more tries than it takes to make other files anew
        assert await rig.stored(owner, 1) == -1
    found = await check(rig, owner, FEW)
    assert "written by Chroma 99.1.0" in found.note
    assert HINT in found.note
    healthy = rig.owner()
    await rig.hand_over(healthy, {1: vectors(5)})
    assert await rig.stored(healthy, 1) == 5
    await rig.renew(owner)
    assert await rig.stored(owner, 1) == FEW
    assert not (await check(rig, owner, FEW)).note
    assert not rig.ear.downs


# --- other processes, and no place ------------------------------------------------------------
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
    await rig.device.remove(owner, 1)


async def test_two_devices_do_not_share_files(rig: Rig, tmp_path: Path) -> None:
    owner = rig.owner()
    await rig.hand_over(owner, {1: vectors(FEW)})
    assert await rig.stored(owner, 1) == FEW
    async with Rig(tmp_path) as other:
        await other.hand_over(owner, {1: vectors(5)})
        assert await other.stored(owner, 1) == -1
    assert await rig.stored(owner, 1) == FEW
    await rig.device.remove(owner, 1)


async def test_an_owner_without_a_directory_is_searched_all_the_same(rig: Rig) -> None:
    owner = rig.folder / "nowhere"
    await rig.hand_over(owner, {1: vectors(FEW)})
    assert await rig.stored(owner, 1) == -1
    assert "No such file" in (await check(rig, owner, FEW)).note
    assert not owner.exists()
    owner.mkdir()  # or Chroma is restarted for it, again and again
    await rig.device.remove(owner, 1)


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
    await rig.hand_over(owner, {1: vectors(FEW, width=512)})
    assert await rig.stored(owner, 1) == -1
    question = vectors(FEW, width=512)[17]
    found = await rig.search(owner, question, whole(1))
    assert found.pages[0] == page(1, 17)
    assert "full" in found.note or "No space" in found.note
    ballast.unlink()
    assert await rig.stored(owner, 1) == FEW
    assert not (await rig.search(owner, question, whole(1))).note
    await rig.device.remove(owner, 1)


async def test_files_that_may_not_grow_are_made_anew(rig: Rig) -> None:
    owner = rig.owner()
    await rig.hand_over(owner, {1: vectors(5, width=512)})
    assert await rig.stored(owner, 1) == 5
    chroma = chroma_of(rig.facts.os_pid)
    before = resource.prlimit(chroma, resource.RLIMIT_FSIZE)
    resource.prlimit(chroma, resource.RLIMIT_FSIZE, (200_000, before[1]))
    await rig.hand_over(owner, {1: vectors(FEW, width=512)})
    found = await rig.search(owner, vectors(FEW, width=512)[17], whole(1))
    assert found.pages[0] == page(1, 17)  # without Chroma, or with a new one already

    async def usable() -> bool:  # the limit goes with the process, which ends at the second try
        note = (await rig.search(owner, vectors(5, width=512)[1], whole(1))).note
        return not note and await rig.stored(owner, 1) == FEW

    await until(usable)
    assert chroma_of(rig.facts.os_pid) != chroma
    await rig.device.remove(owner, 1)


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


# --- a server ---------------------------------------------------------------------------------
class Server:
    """Chroma's own server on this machine."""

    # What Chroma's command does, without what that imports first: it takes a second.
    program = "import sys, chromadb_rust_bindings as chroma; chroma.cli(['chroma', *sys.argv[1:]])"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port: int = one.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> "Server":
        command = [sys.executable, "-c", self.program, "run", "--host", "127.0.0.1"]
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
