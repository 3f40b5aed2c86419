"""Texts of pages become vectors, and a page that its embedder refuses does not keep the others.

A batch that fails is tried again in smaller ones, until a page stands alone. Whether that page or
the embedder is at fault is found out with a short text that every embedder takes. A page that was
alone when the embedder stopped answering is refused the second time. Pure, apart from the embedder
that is handed over; knows no database.
"""

import math
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import anyio

from .. import limits
from ..errors import DeviceFault, SyscallError

Embed = Callable[[Sequence[str]], Awaitable[Sequence[bytes]]]
_PROBE = "a"
_LENGTH_ERROR = 0.01  # of a vector, whose length is 1


@dataclass(slots=True)
class Pace:
    """How many pages are embedded at once."""

    pages: int = limits.INDEX_PAGES
    strikes: Counter[int] = field(default_factory=Counter[int])  # of pages, by id

    def faster(self) -> None:
        self.pages = min(limits.INDEX_PAGES, 2 * self.pages)


@dataclass(slots=True)
class Indexer:
    """What is known of one owner's vectors."""

    loaded: set[int] = field(default_factory=set[int])  # spaces that the device holds
    lock: anyio.Lock = field(default_factory=anyio.Lock)
    news: anyio.Event = field(default_factory=anyio.Event)
    pace: Pace = field(default_factory=Pace)
    coming: int = 0  # pages whose vectors are being kept and handed over
    running: bool = False
    other: str = ""  # that the vectors are of another embedder
    misfit: str = ""  # why new vectors cannot stand beside those that are there
    stuck: str = ""  # why the last try made no vectors
    looked: str = ""  # the embedder for which refused pages were looked at again


@dataclass(frozen=True, slots=True)
class Made:
    """Of a batch. Neither: a smaller one is to be tried."""

    vectors: Mapping[int, bytes]  # by page
    refused: Mapping[int, str]  # why, by page


async def embedded(embed: Embed, texts: Mapping[int, str], pace: Pace) -> Made:
    """Vectors of pages. SyscallError: the embedder makes none at all now."""
    if len(texts) == 1:
        return await _alone(embed, *next(iter(texts.items())), pace)
    try:
        vectors = await embed(list(texts.values()))
    except SyscallError:
        if await _answers(embed):
            pace.pages = max(1, len(texts) // 2)
            return Made({}, {})
        pace.pages = 1  # one of these pages may end it again
        raise
    return await _sound(embed, dict(zip(texts, vectors, strict=True)), pace)


async def _alone(embed: Embed, page: int, text: str, pace: Pace) -> Made:
    await embed([_PROBE])
    try:
        vectors = await embed([text])
    except SyscallError as error:
        if not await _answers(embed):
            pace.strikes[page] += 1
            if pace.strikes[page] < limits.INDEX_STRIKES:
                raise
        del pace.strikes[page]
        pace.faster()
        return Made({}, {page: error.message[: limits.NOTE_CHARS]})
    return await _sound(embed, {page: vectors[0]}, pace)


async def _answers(embed: Embed) -> bool:
    try:
        await embed([_PROBE])
    except SyscallError:
        return False
    return True


async def _sound(embed: Embed, vectors: Mapping[int, bytes], pace: Pace) -> Made:
    """Those that can be searched among. DeviceFault: the embedder makes no others."""
    [probe] = await embed([_PROBE]) if not all(map(_is_unit, vectors.values())) else [b""]
    if probe and not _is_unit(probe):
        raise DeviceFault("the embedder makes vectors that are not of length 1")
    pace.faster()
    good = {page: vector for page, vector in vectors.items() if _is_unit(vector)}
    why = "its vector is not of length 1"
    return Made(good, {page: why for page in vectors if page not in good})


def _is_unit(vector: bytes) -> bool:
    numbers = array("f")
    numbers.frombytes(vector)
    return abs(math.hypot(*numbers) - 1) < _LENGTH_ERROR  # also False for what is no number
