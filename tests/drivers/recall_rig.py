"""Recall on a bench: what a test hands over to it and asks of it, and a slow, obvious search."""

import functools
import itertools
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import anyio

from llmasos.drivers.recall import driver
from llmasos.kernel.driver import Death, Option
from llmasos.kernel.recall_driver import RecallFacts, SpaceRange, VectorScores
from tests.cache import CACHE

DEADLINE_S = 60.0  # a guard against hangs, never a timing
WIDTH = 16  # numbers of a vector, where it need not be an embedder's
ALL = 2**32 - 1  # the last place there can be
Spaces = Mapping[int, Mapping[int, bytes]]


@dataclass
class Ear:
    """A listener that keeps everything it hears."""

    facts: RecallFacts | None = None
    ups: int = 0
    downs: list[Death] = field(default_factory=list[Death])
    news: anyio.Event | None = None

    def up(self, facts: RecallFacts) -> None:
        self.facts = facts
        self.ups += 1
        self._tell()

    def down(self, death: Death) -> None:
        self.downs.append(death)
        self._tell()

    def _tell(self) -> None:
        if self.news is not None:
            self.news.set()

    async def until(self, true: Callable[[], object]) -> None:
        with anyio.fail_after(DEADLINE_S):
            while not true():
                self.news = anyio.Event()
                await self.news.wait()


class Rig:
    """A mounted recall device, owners' directories, and short words to use it."""

    def __init__(self, folder: Path, *, cache: Path = CACHE, **options: Option) -> None:
        self.ear = Ear()
        self.folder, self.log = folder, folder / "log"
        self.device = driver.recall({"embedder": "none", **options}, self.log, cache)
        self._owners = itertools.count(1)

    async def __aenter__(self) -> "Rig":
        with anyio.fail_after(DEADLINE_S):
            await self.device.start(self.ear)
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.fail_after(DEADLINE_S):
            await self.device.stop()

    @property
    def facts(self) -> RecallFacts:
        assert self.ear.facts is not None
        return self.ear.facts

    def owner(self) -> Path:
        path = self.folder / f"owner-{next(self._owners)}"
        path.mkdir()
        return path

    async def hand_over(self, owner: Path, spaces: Spaces) -> None:
        for space, pages in spaces.items():
            await self.device.add(owner, space, list(pages), list(pages.values()))

    async def search(
        self, owner: Path, question: str | bytes, *ranges: SpaceRange, also: Sequence[int] = ()
    ) -> VectorScores:
        with anyio.fail_after(DEADLINE_S):
            return await self.device.search(owner, question, ranges, also)

    async def stored(self, owner: Path, space: int) -> int:
        with anyio.fail_after(DEADLINE_S):
            return await self.device.stored(owner, space)

    async def renew(self, owner: Path) -> None:
        with anyio.fail_after(DEADLINE_S):
            await self.device.renew(owner)


def whole(space: int) -> SpaceRange:
    return SpaceRange(space, 0, ALL)


def page(space: int, place: int) -> int:
    return space << 32 | place


def vector(random: Random, width: int = WIDTH) -> bytes:
    return pack(unit([random.gauss(0, 1) for _ in range(width)]))


@functools.cache
def vectors(count: int, seed: int = 1, width: int = WIDTH) -> Mapping[int, bytes]:
    """A space full of them."""
    random = Random(seed)
    return {place: vector(random, width) for place in range(count)}


def pack(numbers: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def unpack(data: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def unit(numbers: Sequence[float]) -> list[float]:
    length = math.sqrt(sum(number * number for number in numbers))
    return [number / length for number in numbers]


def dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def expected(spaces: Spaces, question: bytes, ranges: Sequence[SpaceRange]) -> dict[int, float]:
    """The score of every page in reach, by the definition."""
    scores: dict[int, float] = {}
    asked = unit(unpack(question))
    for reach in ranges:
        pages = spaces[reach.space]
        for place, data in pages.items():
            if not reach.first <= place <= reach.last:
                continue
            smooth = unpack(data)
            for beside in (place - 1, place + 1):
                if beside in pages:
                    near = unpack(pages[beside])
                    smooth = [a + 0.3 * b for a, b in zip(smooth, near, strict=True)]
            scores[page(reach.space, place)] = dot(asked, unit(smooth))
    return scores


def best(scores: Mapping[int, float], count: int = 200) -> list[int]:
    return sorted(scores, key=lambda page: -scores[page])[:count]


def moments(scores: Sequence[float]) -> tuple[float, float]:
    mean = sum(scores) / len(scores)
    return mean, math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores))
