"""A process's pages as a map: one character each. It is read without colour, too."""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from llmasos.kernel import values as v

from .show import columns, paint

_GROUP = 10  # pages between two blanks
_GONE = " "
_LEGEND = {
    "in the window": {"#": "", "R": "recalled", "D": "document", "M": "mapped", "P": "pinned"},
    "in the store": {".": "", "d": "document", "m": "mapped", "p": "pinned"},
}
_COLOURS = {"P": "33", "p": "33", "#": "32", "R": "36", "D": "36", "M": "36"}


def show(pages: Sequence[v.Page]) -> None:
    """Lines of pages, each with its first number, and what the characters mean."""
    signs = {page.number: sign(page) for page in pages}
    width, terminal = columns(), sys.stdout.isatty()
    for line in lines(signs, width):
        print("".join(_painted(letter, run, terminal) for letter, run in _runs(line)))
    if signs:
        print()
    for line in legend(signs):
        print(line)


def sign(page: v.Page) -> str:
    """Capitals are in the window."""
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
    # A page leaves the window only to come back as a recalled one.
    return "r" if page.uses and page.where is v.Where.WINDOW else ""


def lines(signs: Mapping[int, str], width: int) -> Iterator[str]:
    """Pages in tens, as many tens as fit; a line without any page is left out."""
    digits = len(str(max(signs, default=0)))
    tens = max(1, (width - digits - 1) // (_GROUP + 1))
    for first in sorted({number - number % (tens * _GROUP) for number in signs}):
        groups = [
            "".join(signs.get(number, _GONE) for number in range(start, start + _GROUP))
            for start in range(first, first + tens * _GROUP, _GROUP)
        ]
        yield f"{first:{digits}}  {' '.join(groups)}".rstrip()


def legend(signs: Mapping[int, str]) -> Iterator[str]:
    """The characters that are there, with how many."""
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
