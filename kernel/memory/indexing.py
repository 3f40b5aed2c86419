"""Embeds batches of pages. A page that the embedder refuses does not block the others.

A batch that fails is retried in halves, down to one page. A short probe text that every embedder
accepts then shows whether the page or the embedder is at fault. A single page during which the
embedder stops answering INDEX_STRIKES times is refused. Pure, apart from the embedder that is
passed in; it must not know the database.
"""

import math
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..abi import limits
from ..abi.errors import DeviceFault, SyscallError

Embed = Callable[[Sequence[str]], Awaitable[Sequence[bytes]]]
_PROBE = "a"
_LENGTH_ERROR = 0.01  # of a vector, whose length is 1


@dataclass(slots=True)
class BatchSize:
    """How many pages are embedded in one call."""

    pages: int = limits.INDEX_PAGES
    # By page id: how often the embedder stopped answering while it embedded the page alone.
    strikes: Counter[int] = field(default_factory=Counter[int])

    def grow(self) -> None:
        self.pages = min(limits.INDEX_PAGES, 2 * self.pages)


@dataclass(frozen=True, slots=True)
class EmbeddedPages:
    """The result of a batch. Both empty: retry with the smaller batch size."""

    vectors: Mapping[int, bytes]  # by page
    refused: Mapping[int, str]  # the reason by page


async def embedded(embed: Embed, texts: Mapping[int, str], batch: BatchSize) -> EmbeddedPages:
    """Vectors of pages. SyscallError: the embedder does not work at all now."""
    if len(texts) == 1:
        return await _embed_one(embed, *next(iter(texts.items())), batch)
    try:
        vectors = await embed(list(texts.values()))
    except SyscallError:
        if await _answers(embed):
            batch.pages = max(1, len(texts) // 2)
            return EmbeddedPages({}, {})
        batch.pages = 1  # one of these pages may have crashed the embedder
        raise
    return await _checked(embed, dict(zip(texts, vectors, strict=True)), batch)


async def _embed_one(embed: Embed, page: int, text: str, batch: BatchSize) -> EmbeddedPages:
    await embed([_PROBE])
    try:
        vectors = await embed([text])
    except SyscallError as error:
        if not await _answers(embed):
            batch.strikes[page] += 1
            if batch.strikes[page] < limits.INDEX_STRIKES:
                raise
        del batch.strikes[page]
        batch.grow()
        return EmbeddedPages({}, {page: error.message[: limits.NOTE_CHARS]})
    return await _checked(embed, {page: vectors[0]}, batch)


async def _answers(embed: Embed) -> bool:
    try:
        await embed([_PROBE])
    except SyscallError:
        return False
    return True


async def _checked(embed: Embed, vectors: Mapping[int, bytes], batch: BatchSize) -> EmbeddedPages:
    """Keep the vectors of length 1. DeviceFault: the embedder makes no vectors of length 1."""
    good = {page: vector for page, vector in vectors.items() if _is_unit(vector)}
    if len(good) < len(vectors):
        [probe] = await embed([_PROBE])
        if not _is_unit(probe):
            raise DeviceFault("the embedder makes vectors that are not of length 1")
    batch.grow()
    why = "its vector is not of length 1"
    return EmbeddedPages(good, {page: why for page in vectors if page not in good})


def _is_unit(vector: bytes) -> bool:
    numbers = array("f")
    numbers.frombytes(vector)
    return abs(math.hypot(*numbers) - 1) < _LENGTH_ERROR  # also False for NaN
