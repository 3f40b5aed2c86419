"""P-08: indexes always catch up, wherever between page and vector the daemon was killed.

One crash for each point always runs; `-m long --crashes N` does N at each point of the index (10 by
default), every one on a machine without files, so that a kill may also meet what is made for the
first time.
"""

import shutil
from collections.abc import Callable

import pytest

from llmasos.kernel import points
from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.client import BlockingClient
from tests.files import containing
from tests.system.daemon import Machine
from tests.waiting import until

DEAD = (Errno.EPIPE, Errno.ECONNREFUSED)
START = ("--mount", "false", "--window", "512")
TEXTS = ["The dog is called Bello.", "The vault opens with tangerine.", "Bread needs time."]
DEADLINE_S = 120.0  # a guard against hangs
pytestmark = pytest.mark.usefixtures("meaning")


def eventually(look: Callable[[], object]) -> None:
    """Until `look` has nothing to report."""
    until(lambda: not look(), DEADLINE_S)


def crash(machine: Machine, point: str) -> tuple[int, list[str]]:
    """A process and the texts of its pages that were acknowledged before the crash."""
    kept: list[str] = []
    machine.environment["LLMASOS_DIE_AT"] = point
    machine.start(*START)
    with BlockingClient(machine.paths.socket) as line:
        pid = line.call("spawn", v.Spawn("echo"), v.Spawned).pid
        with pytest.raises(SyscallError) as caught:
            for text in TEXTS:
                line.call("write_mem", v.WriteMem(pid, text), v.Written)
                kept.append(text)
            eventually(lambda: line.call("search_mem", v.SearchMem(pid, "pets"), v.Hits).note)
            line.call("forget", v.Forget(pid, 0), v.Forgotten)
    assert caught.value.errno in DEAD
    assert machine.reap() == -9
    del machine.environment["LLMASOS_DIE_AT"]
    return pid, kept


def catches_up(machine: Machine, pid: int, kept: list[str]) -> None:
    """The next run has all of these pages, by meaning too, and no index lacks any."""
    machine.start(*START)
    with BlockingClient(machine.paths.socket) as line:
        pages = line.call("read_mem", v.ReadMem(pid), v.Pages).pages
        assert [page.text for page in pages] == kept
        asked = v.SearchMem(pid, "Which fruit opens it?")
        eventually(lambda: line.call("search_mem", asked, v.Hits).note)
        hits = line.call("search_mem", asked, v.Hits).hits
        assert {hit.page.text for hit in hits} >= set(kept)
        assert all("meaning" in hit.parts for hit in hits)
        # Chroma's files are held for a moment by the process that was left over.
        eventually(lambda: line.call("fsck", v.Fsck(), v.Checked).faults)
        stat = line.call("stat", v.Nothing(), v.Stat)
        assert (stat.pages_waiting, stat.indexing) == (0, "current")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("point", [p for p in points.POINTS if p.startswith(("index", "forget"))])
def test_indexes_catch_up_after_a_crash_at_a_point(machine: Machine, point: str) -> None:
    pid, kept = crash(machine, point)
    if point.startswith("forget"):
        kept.remove(TEXTS[0])
    catches_up(machine, pid, kept)
    machine.stop()
    if point.startswith("forget"):
        assert not containing(machine.paths.state, b"Bello")


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("point", [p for p in points.POINTS if p.startswith("index")])
def test_indexes_catch_up_after_many_crashes_at_a_point(
    machine: Machine, point: str, request: pytest.FixtureRequest
) -> None:
    crashes = int(request.config.getoption("--crashes") or 0)
    failed: list[str] = []
    for number in range(crashes):
        try:
            catches_up(machine, *crash(machine, point))
        except AssertionError as error:
            failed.append(f"run {number}: {error}")
        machine.shoot()
        shutil.rmtree(machine.paths.state)
    print(f"index.catch_up at {point}: {len(failed)} of {crashes}")
    assert failed == []
