"""What the tests of recall's failures share: pages, what is found among them, short pauses."""

import functools
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import anyio
import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.recall_driver import VectorScores
from tests.drivers.recall_rig import DEADLINE_S, Rig, best, expected, vector, vectors, whole

PAGES = 1_050  # more than Chroma keeps in its log: it writes its index, too
FEW = 400  # enough for Chroma to be asked: see `quick`
QUESTION = vector(Random(99))


@contextmanager
def quick() -> Generator[None]:
    """Short pauses, and Chroma is asked from 300 pages on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "RESTART_FIRST_S", 0.01)
        patch.setattr(limits, "CHROMA_RETRY_FIRST_S", 0.2)
        patch.setattr(limits, "EXACT_PAGES", 300)
        patch.setattr("llmasos.drivers.process.GRACE_S", 0.5)
        yield


@functools.cache
def should_be_found(pages: int) -> frozenset[int]:
    return frozenset(best(expected({1: vectors(pages)}, QUESTION, [whole(1)]), 20))


async def check(rig: Rig, owner: Path, pages: int = PAGES) -> VectorScores:
    """A search finds what it should among the first so many of `vectors`, in space 1."""
    found = await rig.search(owner, QUESTION, whole(1))
    assert not found.unknown
    assert should_be_found(pages) <= set(found.pages)
    return found


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Look again and again: files, notes and other programs do not call."""
    with anyio.fail_after(DEADLINE_S):
        while not await true():  # noqa: ASYNC110
            await anyio.sleep(0.02)


def chroma_of(pid: int) -> int:
    """The process of Chroma that a recall process has."""
    told = Path(f"/proc/{pid}/task").glob("*/children")
    [found] = [int(one) for path in told for one in path.read_text().split()]
    return found
