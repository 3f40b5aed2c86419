"""Finds the pages in some ranges that are most similar to a question.

Up to EXACT_PAGES pages in the ranges, every page is scored. Above that, the smallest ranges are
scored completely. Of each other range these rows are scored: those that Chroma returns with their
neighbours, those that Chroma does not have yet, and those requested in `also`. Mean and spread of
such a range are computed from the scored rows and, for the rest, from a sample of up to 512 rows at
equal steps. Recall process only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError

from .rows import Places, Scores, Vectors
from .store import LAST, SPACE_BITS, OwnerVectors, Space

_SAMPLE = 512  # rows
_MOST = 5  # times CANDIDATES are requested when a range is only a part of a space

Query = Callable[[int, bytes, int], Places | None]  # Chroma's: space, question, count


@dataclass(frozen=True, slots=True)
class SpacePart:
    """A range of rows that is searched."""

    number: int  # of the space
    space: Space
    first: int
    end: int

    @property
    def count(self) -> int:
        return self.end - self.first


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The result of a search, best page first."""

    pages: NDArray[np.uint64]
    scores: Scores
    mean: float  # of the scores of all pages in the ranges
    spread: float  # their standard deviation
    unknown: list[int]  # spaces that are not stored


@dataclass(frozen=True, slots=True)
class _Scored:
    """The scored pages of one part, with moments over all of its pages."""

    pages: NDArray[np.uint64]
    scores: Scores
    count: int
    mean: float
    square: float  # mean of squares


def search(
    owner: OwnerVectors, question: Vectors, reaches: Sequence[tuple[int, int, int]],
    also: NDArray[np.uint64], choose: "Chooser",
) -> SearchResult:  # fmt: skip
    parts, unknown = _parts(owner, reaches)
    scored: list[_Scored] = []
    left = choose.exact_pages  # pages that may still be scored completely
    for part in sorted(parts, key=lambda part: part.count):
        _check(part, question)
        chosen = None if part.count <= left else choose.rows(part, question, also)
        left -= part.count
        if chosen is None:
            scored.append(_score_all(part, question))
        else:
            scored.append(_score_chosen(part, question, chosen))
    return _best(scored, also, unknown)


class Chooser:
    """Selects the rows of a large part to score."""

    def __init__(self, exact_pages: int, query: Query) -> None:
        self.exact_pages, self._query = exact_pages, query

    def rows(
        self, part: SpacePart, question: Vectors, also: NDArray[np.uint64]
    ) -> NDArray[np.intp] | None:
        """The indexes to score; None: all, because Chroma did not answer."""
        if not part.space.synchronized:
            return None
        rows = part.space.rows
        factor = min(_MOST, -(-rows.count // max(1, part.count)))
        candidates = self._query(part.number, question.tobytes(), factor * limits.CANDIDATES)
        if candidates is None:
            return None
        at = rows.find(np.sort(candidates))
        wanted = rows.find(np.sort(_places(also, part.number)))
        pending = rows.pending(part.first, part.end)
        chosen = np.unique(np.concatenate([at - 1, at, at + 1, wanted, pending]))
        return chosen[(chosen >= part.first) & (chosen < part.end)]


def _parts(
    owner: OwnerVectors, reaches: Sequence[tuple[int, int, int]]
) -> tuple[list[SpacePart], list[int]]:
    """Ranges of rows that do not overlap, and the spaces that are not stored."""
    parts: list[SpacePart] = []
    unknown: list[int] = []
    by_space: dict[int, list[tuple[int, int]]] = {}
    for number, first, last in reaches:
        by_space.setdefault(number, []).append((min(first, LAST), min(last, LAST)))
    for number, spans in by_space.items():
        space = owner.spaces.get(number)
        if space is None:
            unknown.append(number)
            continue
        reached = 0
        for low, high in sorted(space.rows.span(*span) for span in spans):
            if high > max(low, reached):
                parts.append(SpacePart(number, space, max(low, reached), high))
                reached = high
    return parts, unknown


def _check(part: SpacePart, question: Vectors) -> None:
    if len(question) != part.space.rows.dimensions:
        dimensions = part.space.rows.dimensions
        message = (
            f"a question of {len(question)} dimensions, but space {part.number} has {dimensions}"
        )
        raise SyscallError(Errno.EINVAL, message, "embed both with the same embedder")


def _score_all(part: SpacePart, question: Vectors) -> _Scored:
    scores = part.space.rows.scores(question, part.first, part.end)
    places = part.space.rows.places[part.first : part.end]
    return _Scored(_pages(part, places), scores, part.count, *_moments(scores))


def _score_chosen(part: SpacePart, question: Vectors, chosen: NDArray[np.intp]) -> _Scored:
    """Score the chosen rows, and a sample of the others for the moments.

    The chosen rows enter the moments with their own weight, so outliers are not extrapolated.
    """
    rows = part.space.rows
    steps = np.arange(part.first, part.end, -(-part.count // _SAMPLE))
    scores = rows.scores_at(question, chosen)
    rest = rows.scores_at(question, np.setdiff1d(steps, chosen))
    share = len(chosen) / part.count
    moments = [
        share * one + (1 - share) * other
        for one, other in zip(_moments(scores), _moments(rest), strict=True)
    ]
    return _Scored(_pages(part, rows.places[chosen]), scores, part.count, *moments)


def _moments(scores: Scores) -> tuple[float, float]:
    if not len(scores):
        return 0.0, 0.0
    return float(scores.mean()), float(np.square(scores).mean())


def _pages(part: SpacePart, places: Places) -> NDArray[np.uint64]:
    return (np.uint64(part.number) << np.uint64(SPACE_BITS)) | places.astype(np.uint64)


def _best(scored: Sequence[_Scored], also: NDArray[np.uint64], unknown: list[int]) -> SearchResult:
    if not scored:
        return SearchResult(np.empty(0, np.uint64), np.empty(0), 0.0, 0.0, unknown)
    pages = np.concatenate([one.pages for one in scored])
    scores = np.concatenate([one.scores for one in scored])
    total = sum(one.count for one in scored)
    mean = sum(one.count * one.mean for one in scored) / total
    square = sum(one.count * one.square for one in scored) / total
    kept = np.isin(pages, also)
    if len(scores) > limits.CANDIDATES:
        kept[np.argpartition(-scores, limits.CANDIDATES)[: limits.CANDIDATES]] = True
    else:
        kept[:] = True
    order = np.argsort(-scores[kept], kind="stable")
    spread = max(0.0, square - mean * mean) ** 0.5
    return SearchResult(pages[kept][order], scores[kept][order], mean, spread, unknown)


def _places(pages: NDArray[np.uint64], number: int) -> Places:
    """The places of the pages of one space."""
    bits = np.uint64(SPACE_BITS)
    mine = pages[(pages >> bits) == np.uint64(number)]
    places: Places = (mine & np.uint64(LAST)).astype(np.int64)
    return places
