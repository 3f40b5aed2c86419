"""Tables that fit the terminal: the least important columns are dropped, the last text is cut.

If the output is piped and COLUMNS is not set, nothing is dropped or cut.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from .show import cell, clip, columns, table

T = TypeVar("T")
_GAP = 2  # blanks between two columns
_MIN_TEXT = 20  # terminal columns for the text


@dataclass(frozen=True)  # with slots, Column[T](...) fails on Python 3.11
class Column(Generic[T]):
    head: str
    value: Callable[[T], object]
    rank: int = 0  # 0: always shown; the highest is dropped first


def fitted(all_of: Sequence[Column[T]], items: Sequence[T], *, whole: bool = False) -> None:
    """Print items. The last column is a text. With `whole` nothing is dropped or cut."""
    room = None if whole else _room()
    cells = {one.head: [cell(one.value(item)) for item in items] for one in all_of}
    widths = {head: max(map(len, (head, *texts))) for head, texts in cells.items()}
    shown = list(all_of)
    text = all_of[-1].head
    while room is not None and _width(shown, widths) + min(_MIN_TEXT, widths[text]) > room:
        last = max(shown, key=lambda one: one.rank)
        if not last.rank:
            break
        shown.remove(last)
    if room is not None:
        left = max(_MIN_TEXT // 2, room - _width(shown, widths))
        cells[text] = [clip(one, left) for one in cells[text]]
    heads = [one.head for one in shown]
    table(heads, list(zip(*(cells[head] for head in heads), strict=True)), ends_in_text=True)


def _width(shown: Sequence[Column[T]], widths: dict[str, int]) -> int:
    """Width of all columns except the text, with the gaps."""
    return sum(widths[one.head] + _GAP for one in shown[:-1])


def _room() -> int | None:
    """Columns of the terminal. None: no terminal and COLUMNS is not set."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit():
        return columns()
    return None
