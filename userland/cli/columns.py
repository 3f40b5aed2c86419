"""Tables that fit the terminal: the least important columns go first, and one text takes the rest.

Where output is piped or COLUMNS is not known, nothing is left out.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from .show import cell, clip, columns, table

T = TypeVar("T")
_APART = 2  # blanks between two columns
_LEAST = 20  # columns of the terminal for the text


@dataclass(frozen=True)  # a generic one with slots cannot be made as Column[T](...) on Python 3.11
class Column(Generic[T]):
    head: str
    value: Callable[[T], object]
    rank: int = 0  # 0: always shown; the highest goes first


def fitted(all_of: Sequence[Column[T]], items: Sequence[T], *, whole: bool = False) -> None:
    """Print items. The last column is a text; `whole`: nothing is dropped or cut."""
    room = None if whole else _room()
    cells = {one.head: [cell(one.value(item)) for item in items] for one in all_of}
    widths = {head: max(map(len, (head, *texts))) for head, texts in cells.items()}
    shown = list(all_of)
    text = all_of[-1].head
    while room is not None and _taken(shown, widths) + min(_LEAST, widths[text]) > room:
        last = max(shown, key=lambda one: one.rank)
        if not last.rank:
            break
        shown.remove(last)
    if room is not None:
        left = max(_LEAST // 2, room - _taken(shown, widths))
        cells[text] = [clip(one, left) for one in cells[text]]
    heads = [one.head for one in shown]
    table(heads, list(zip(*(cells[head] for head in heads), strict=True)), ends_in_text=True)


def _taken(shown: Sequence[Column[T]], widths: dict[str, int]) -> int:
    """By all but the text, with what is between them."""
    return sum(widths[one.head] + _APART for one in shown[:-1])


def _room() -> int | None:
    """Columns of the terminal. None: it is none, and nobody has said how wide it would be."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit():
        return columns()
    return None
