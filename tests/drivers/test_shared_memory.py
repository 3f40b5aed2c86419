"""Shared memory for saved contexts: freed regions take no memory, unexpected contents are found."""

import mmap
import os
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from llmasos.drivers.local.call_state import CallState
from llmasos.drivers.local.identity import fingerprint, identity
from llmasos.drivers.local.parking import SLICE_BYTES, CopyJob
from llmasos.drivers.local.prefix import Saved
from llmasos.drivers.local.shared_memory import (
    HEADER_BYTES,
    ContextHeader,
    Region,
    SharedMemory,
    checksum,
    decoded,
    mismatch,
)
from llmasos.drivers.local.shared_state import SharedState
from llmasos.kernel.abi.errors import DeviceFault
from llmasos.kernel.abi.values import Logprob

PAGE = mmap.PAGESIZE
HEADER = ContextHeader("file", "engine 1", "settings", "tokens", 5, 3000, 0)


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    memory = SharedMemory.create()
    if memory is None:
        pytest.skip("this system has no memory files without a name")
    yield memory
    memory.close()


def test_random_regions_keep_their_bytes_and_freed_ones_take_no_memory(
    memory: SharedMemory,
) -> None:
    chance = random.Random(5)
    held: dict[Region, bytes] = {}
    for _ in range(300):
        action = chance.random()
        if action < 0.5:
            size = chance.randint(1, 5 * PAGE)
            region = memory.allocate(size)
            assert size <= region.size < size + PAGE
            data = chance.randbytes(region.size)
            with memory.map(region) as mapped:
                mapped[:] = data
            held[region] = data
        elif held and action < 0.9:
            region = chance.choice(list(held))
            memory.free(region)
            del held[region]
        else:
            held = {region: held[region] for region in held if chance.random() < 0.7}
            memory.free_others(held)
        assert memory.used_bytes == sum(map(len, held.values()))
        for region, data in held.items():
            assert os.pread(memory.fd, region.size, region.offset) == data


def test_a_region_outside_the_file_is_refused(memory: SharedMemory) -> None:
    memory.allocate(PAGE)
    for region in (Region(0, 2 * PAGE), Region(PAGE, PAGE), Region(-PAGE, PAGE), Region(0, 0)):
        with pytest.raises(DeviceFault, match="no region"):
            memory.map(region)
    with pytest.raises(DeviceFault, match="cannot map"):
        memory.map(Region(1, PAGE - 1))


def test_a_header_is_read_as_it_was_written() -> None:
    data = HEADER.encode()
    assert len(data) == HEADER_BYTES
    assert decoded(data) == HEADER
    for damaged in (b"", bytes(HEADER_BYTES), b"[]", b"{}", data.replace(b"count", b"kount")):
        assert decoded(damaged) is None


@pytest.mark.parametrize("field", sorted(set(asdict(HEADER)) - {"checksum"}))
def test_a_context_that_differs_in_anything_is_refused(field: str) -> None:
    values: dict[str, Any] = asdict(HEADER)
    values[field] = 9 if isinstance(values[field], int) else "other"
    other = ContextHeader(**values)
    assert mismatch(other, HEADER)
    assert not mismatch(replace(HEADER, checksum=7), HEADER)


def saved(memory: SharedMemory, *, trusted: bool = False) -> tuple[SharedState, bytes]:
    data = random.Random(3).randbytes(HEADER.size)
    region = memory.allocate(HEADER_BYTES + len(data))
    with memory.map(region) as mapped:
        mapped[:HEADER_BYTES] = replace(HEADER, checksum=checksum(data)).encode()
        mapped[HEADER_BYTES : HEADER_BYTES + len(data)] = data
    return SharedState(memory, region, HEADER, trusted=trusted), data


def test_any_damaged_byte_of_a_context_is_found(memory: SharedMemory) -> None:
    state, data = saved(memory)
    assert bytes(state.payload()) == data
    assert state.problem() == ""
    chance = random.Random(9)
    for _ in range(100):
        state, _ = saved(memory)
        at = state.region.offset + HEADER_BYTES + chance.randrange(HEADER.size)
        [byte] = os.pread(memory.fd, 1, at)
        os.pwrite(memory.fd, bytes([byte ^ 1 << chance.randrange(8)]), at)
        assert state.problem() == "its checksum is wrong"
        state.free()
    assert state.problem() == "its header is damaged"


@dataclass
class Pieces:
    """A saved state."""

    parts: list[bytes]

    @property
    def nbytes(self) -> int:
        return sum(map(len, self.parts))

    def pieces(self) -> Iterator[memoryview]:
        return map(memoryview, self.parts)

    def free(self) -> None:
        self.parts = []


def test_a_context_is_copied_in_slices(memory: SharedMemory) -> None:
    chance = random.Random(2)
    state, header = Pieces([]), HEADER
    for count in (1, 3, 40):
        parts = [chance.randbytes(chance.randrange(1, SLICE_BYTES // 4)) for _ in range(count)]
        state = Pieces(parts)
        header = replace(HEADER, size=state.nbytes)
        job = CopyJob(Saved(state, [1], 0), header, memory)
        copied, slices = job.slice(), 1
        while copied is None:
            copied, slices = job.slice(), slices + 1
        assert slices <= 1 + state.nbytes // SLICE_BYTES
        assert bytes(copied.payload()) == b"".join(parts)
        assert replace(copied, trusted=False).problem() == ""
        copied.free()
        assert memory.used_bytes == 0
    aborted = CopyJob(Saved(state, [1], 0), header, memory)
    assert aborted.slice() is None
    assert memory.used_bytes > 0
    aborted.abort()
    assert memory.used_bytes == 0


def test_a_context_is_checked_once(memory: SharedMemory) -> None:
    state, _ = saved(memory, trusted=True)
    state.free()
    assert state.problem() == ""


def test_a_file_with_other_contents_has_another_fingerprint(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"a" * 100)
    other.write_bytes(b"a" * 100)
    known = fingerprint(str(one))
    assert fingerprint(str(one)) == known != fingerprint(str(other))
    facts = one.stat()
    one.write_bytes(b"b" * 100)
    os.utime(one, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert fingerprint(str(one)) != known
    with pytest.raises(DeviceFault, match="cannot read"):
        fingerprint(str(tmp_path / "none"))


def test_settings_that_change_results_make_another_identity() -> None:
    settings = {"path": "a", "slots": 2, "window": 512, "threads": 2, "deterministic": False}
    one = identity("file", "engine 1", settings)
    assert identity("file", "engine 1", {**settings, "path": "b", "slots": 9}) == one
    for changed in ({"deterministic": True}, {"threads": 1}, {"window": 256}, {"flash": True}):
        assert mismatch(identity("file", "engine 1", {**settings, **changed}), one)


def test_the_state_of_a_call_is_read_as_it_was_sent() -> None:
    likely = Logprob(5, "x", -0.5, [], [1, 2])
    state = CallState([1, 2, 3], 5, 7, True, 12, 14, 10, 8, False, 1000, [likely])
    assert CallState.decode(state.encode()) == state
    assert CallState.decode(replace(state, pending=None).encode()).pending is None
