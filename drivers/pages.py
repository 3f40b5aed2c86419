"""Splits texts into pages: pieces of at most PAGE_TOKENS tokens whose concatenation is the text.

Pieces are strings, so a boundary never splits a character. A message is split before a word, so
that its pieces tokenize as the whole does; an answer is split where its tokens end.
"""

from collections.abc import Callable, Sequence

from llmasos.kernel.abi import limits
from llmasos.kernel.driver import Cut

_WORD_CHARS = 64  # a boundary moves back at most so far to the beginning of a word
_CHARS_A_TOKEN = 4.0  # the first estimate


def cut_text(text: str, count: Callable[[str], int]) -> list[Cut]:
    """Split a message; `count` returns the number of tokens of a piece by itself."""
    if not text:
        return []
    cuts: list[Cut] = []
    at, ratio = 0, _CHARS_A_TOKEN
    while at < len(text):
        size = max(1, int(limits.PAGE_TOKENS * ratio))
        piece = _piece(text, at, size)
        tokens = count(piece)
        while tokens > limits.PAGE_TOKENS and len(piece) > 1:
            # 2 % under the proportion, so that the next attempt fits.
            size = min(len(piece) - 1, int(len(piece) * limits.PAGE_TOKENS / tokens * 0.98))
            piece = _piece(text, at, max(1, size))
            tokens = count(piece)
        cuts.append(Cut(piece, tokens))
        at += len(piece)
        ratio = max(0.25, len(piece) / max(1, tokens))
    return cuts


def _piece(text: str, at: int, size: int) -> str:
    """At most `size` characters from `at`, ending before a space if one is near."""
    end = at + size
    if end >= len(text):
        return text[at:]
    space = text.rfind(" ", max(at + 1, end - _WORD_CHARS), end + 1)
    return text[at : space if space > at else end]


def cut_answer(text: str, ends: Sequence[int]) -> list[Cut]:
    """Split an answer. `ends[i]`: complete characters after its token i.

    Tokens whose characters were removed with a stop string are not counted.
    """
    cuts: list[Cut] = []
    begin = tokens = 0
    for index, end in enumerate(ends):
        tokens += 1
        shown = min(end, len(text))
        full = tokens == limits.PAGE_TOKENS or index == len(ends) - 1 or end >= len(text)
        if full and shown > begin:
            cuts.append(Cut(text[begin:shown], min(tokens, limits.PAGE_TOKENS)))
            begin, tokens = shown, 0
        if end >= len(text):
            break
    return cuts
