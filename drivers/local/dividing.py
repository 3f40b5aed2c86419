"""Finds places where a text can be divided so that both parts have the tokens of the whole. Pure.

llama.cpp first finds the names of special tokens in a text, the longest names first, and then
tokenizes what is between them, each piece by itself. So a text can be divided where the name of a
special token ends, if the tokenizer finds this name there: if no other name crosses its beginning
or its end. Not after tokens that take the spaces after them.
"""

import re
from collections.abc import Collection


class Divider:
    """The names of one vocabulary.

    `names`: of all special tokens. `dividing`: of those after which a text can be divided.
    """

    __slots__ = ("_dividing", "_firsts", "_longest", "_names")

    def __init__(self, names: Collection[str], dividing: Collection[str]) -> None:
        self._names, self._dividing = _any_of(names), _any_of(dividing)
        self._longest = max(map(len, names), default=0)
        self._firsts = frozenset(name[0] for name in names)

    def places(self, text: str) -> list[int]:
        """Where to divide a text."""
        return [
            found.end()
            for found in self._dividing.finditer(text)
            if self.divides(text, found.start()) and self.divides(text, found.end())
        ]

    def divides(self, text: str, at: int) -> bool:
        """Whether no name crosses this place."""
        for begin in range(max(0, at - self._longest + 1), at):
            if text[begin] in self._firsts:
                found = self._names.match(text, begin)
                if found is not None and found.end() > at:
                    return False
        return True


def _any_of(names: Collection[str]) -> re.Pattern[str]:
    """Matches any of these names, the longest one that fits."""
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
