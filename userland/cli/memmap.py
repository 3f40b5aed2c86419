"""A map of the pages of a process, one character per page. It is readable without colour."""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from llmasos.kernel.abi import values as v

from .show import columns, paint

_GROUP = 10  # pages between two blanks
_MISSING = " "
_LEGEND = {
    "in the window": {"#": "", "R": "recalled", "D": "document", "M": "mapped", "P": "pinned"},
    "in the store": {".": "", "d": "document", "m": "mapped", "p": "pinned"},
}
_COLOURS = {"P": "33", "p": "33", "#": "32", "R": "36", "D": "36", "M": "36"}


def show(pages: Sequence[v.Page]) -> None:
    """Print the map, with the first page number of each line, and a legend."""
    signs = {page.number: sign(page) for page in pages}
    width, terminal = columns(), sys.stdout.isatty()
    for line in lines(signs, width):
        print("".join(_painted(letter, run, terminal) for letter, run in _runs(line)))
    if signs:
        print()
    for line in legend(signs):
        print(line)


def sign(page: v.Page) -> str:
    """The character of a page; capital letters and # mean in the window."""
    here = page.where is v.Where.WINDOW
    letter = _letter(page)
    if not letter:
        return "#" if here else "."
    return letter.upper() if here else letter


def _letter(page: v.Page) -> str:
    if page.pinned:
        return "p"
    if page.kind is v.Kind.DOCUMENT:
        return "d"
    if page.source:
        return "m"
    # An evicted page returns to the window only by recall.
    return "r" if page.uses and page.where is v.Where.WINDOW else ""


def lines(signs: Mapping[int, str], width: int) -> Iterator[str]:
    """Groups of ten pages, as many as fit; lines without pages are omitted."""
    digits = len(str(max(signs, default=0)))
    tens = max(1, (width - digits - 1) // (_GROUP + 1))
    for first in sorted({number - number % (tens * _GROUP) for number in signs}):
        groups = [
            "".join(signs.get(number, _MISSING) for number in range(start, start + _GROUP))
            for start in range(first, first + tens * _GROUP, _GROUP)
        ]
        yield f"{first:{digits}}  {' '.join(groups)}".rstrip()


def legend(signs: Mapping[int, str]) -> Iterator[str]:
    """The characters that occur, with their counts."""
    counts = Counter(signs.values())
    for place, letters in _LEGEND.items():
        there = [
            " ".join(filter(None, (letter, word, str(counts[letter]))))
            for letter, word in letters.items()
            if counts[letter]
        ]
        if there:
            yield f"{place + ':':15}{'   '.join(there)}"


def _runs(line: str) -> Iterator[tuple[str, str]]:
    for letter, run in groupby(line):
        yield letter, "".join(run)


def _painted(letter: str, run: str, terminal: bool) -> str:
    colour = _COLOURS.get(letter)
    return paint(run, colour, terminal) if colour else run
