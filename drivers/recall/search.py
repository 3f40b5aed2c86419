"""Which pages in reach are like a question.

Up to EXACT_PAGES every page in reach is scored. Above, the smallest parts of the reach are, and of
the others those that Chroma offers with their neighbours, those that it does not have yet, and
those that were asked for; mean and spread of such a part come from these, each as it is, and for
all others from 512 rows at equal steps. Child process only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmasos.kernel import limits
from llmasos.kernel.errors import Errno, SyscallError

from .held import LAST, SPACE_BITS, Owner, Space
from .rows import Places, Scores, Vectors

_SAMPLE = 512  # rows
_MOST = 5  # times CANDIDATES are asked of Chroma where only a part of a space is in reach

Ask = Callable[[int, bytes, int], Places | None]  # of Chroma: space, question, how many


@dataclass(frozen=True, slots=True)
class Part:
    """A run of rows in reach."""

    number: int  # of the space
    space: Space
    first: int
    end: int

    @property
    def count(self) -> int:
        return self.end - self.first


@dataclass(frozen=True, slots=True)
class Found:
    """What the search tells."""

    pages: NDArray[np.uint64]
    scores: Scores
    mean: float
    spread: float
    unknown: list[int]


@dataclass(frozen=True, slots=True)
class _Scored:
    """Pages of one part, with the sums over all of its pages."""

    pages: NDArray[np.uint64]
    scores: Scores
    count: int
    mean: float
    square: float  # mean of squares


def search(
    owner: Owner, question: Vectors, reaches: Sequence[tuple[int, int, int]],
    also: NDArray[np.uint64], choose: "Chooser",
) -> Found:  # fmt: skip
    parts, unknown = _parts(owner, reaches)
    scored: list[_Scored] = []
    left = choose.exact_pages
    for part in sorted(parts, key=lambda part: part.count):
        _check(part, question)
        chosen = None if part.count <= left else choose.rows(part, question, also)
        left -= part.count
        scored.append(_all(part, question) if chosen is None else _some(part, question, chosen))
    return _best(scored, also, unknown)


class Chooser:
    """Which rows of a large part are worth a score."""

    def __init__(self, exact_pages: int, ask: Ask) -> None:
        self.exact_pages, self._ask = exact_pages, ask

    def rows(
        self, part: Part, question: Vectors, also: NDArray[np.uint64]
    ) -> NDArray[np.intp] | None:
        """None: all, as Chroma did not answer."""
        if not part.space.level:
            return None
        rows = part.space.rows
        many = min(_MOST, -(-rows.count // max(1, part.count)))
        offered = self._ask(part.number, question.tobytes(), many * limits.CANDIDATES)
        if offered is None:
            return None
        at = rows.find(np.sort(offered))
        wanted = rows.find(np.sort(_places(also, part.number)))
        pending = rows.pending(part.first, part.end)
        chosen = np.unique(np.concatenate([at - 1, at, at + 1, wanted, pending]))
        return chosen[(chosen >= part.first) & (chosen < part.end)]


def _parts(owner: Owner, reaches: Sequence[tuple[int, int, int]]) -> tuple[list[Part], list[int]]:
    """Runs of rows that do not overlap, and the spaces that nothing is known of."""
    parts: list[Part] = []
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
                parts.append(Part(number, space, max(low, reached), high))
                reached = high
    return parts, unknown


def _check(part: Part, question: Vectors) -> None:
    if len(question) != part.space.rows.dimensions:
        held = part.space.rows.dimensions
        words = f"a question of {len(question)} numbers, space {part.number} has vectors of {held}"
        raise SyscallError(Errno.EINVAL, words, "embed both with the same embedder")


def _all(part: Part, question: Vectors) -> _Scored:
    scores = part.space.rows.scores(question, part.first, part.end)
    places = part.space.rows.places[part.first : part.end]
    return _Scored(_pages(part, places), scores, part.count, *_moments(scores))


def _some(part: Part, question: Vectors, chosen: NDArray[np.intp]) -> _Scored:
    """The chosen rows count as they are, so what stands out does; the sample is for the rest."""
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


def _pages(part: Part, places: Places) -> NDArray[np.uint64]:
    return (np.uint64(part.number) << np.uint64(SPACE_BITS)) | places.astype(np.uint64)


def _best(scored: Sequence[_Scored], also: NDArray[np.uint64], unknown: list[int]) -> Found:
    if not scored:
        return Found(np.empty(0, np.uint64), np.empty(0), 0.0, 0.0, unknown)
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
    return Found(pages[kept][order], scores[kept][order], mean, spread, unknown)


def _places(pages: NDArray[np.uint64], number: int) -> Places:
    """Those of one space."""
    bits = np.uint64(SPACE_BITS)
    mine = pages[(pages >> bits) == np.uint64(number)]
    places: Places = (mine & np.uint64(LAST)).astype(np.int64)
    return places
