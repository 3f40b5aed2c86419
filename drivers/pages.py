"""Texts cut into pages: pieces of at most PAGE_TOKENS tokens that join to the text again.

Pieces are strings, so a border never splits a character. A message is cut where a word begins,
so that its pieces tokenize as the whole does; an answer is cut as it was generated.
"""

from collections.abc import Callable, Sequence

from llmasos.kernel import limits
from llmasos.kernel.driver import Cut

_WORD_CHARS = 64  # how far back a border looks for the beginning of a word
_CHARS_A_TOKEN = 4.0


def cut_text(text: str, count: Callable[[str], int]) -> list[Cut]:
    """`text` in pieces; `count` says how many tokens a piece is, by itself."""
    if not text:
        return []
    cuts: list[Cut] = []
    at, ratio = 0, _CHARS_A_TOKEN
    while at < len(text):
        size = max(1, int(limits.PAGE_TOKENS * ratio))
        piece = _piece(text, at, size)
        tokens = count(piece)
        while tokens > limits.PAGE_TOKENS and len(piece) > 1:
            # A little under the proportion: the next try should fit.
            size = min(len(piece) - 1, int(len(piece) * limits.PAGE_TOKENS / tokens * 0.98))
            piece = _piece(text, at, max(1, size))
            tokens = count(piece)
        cuts.append(Cut(piece, tokens))
        at += len(piece)
        ratio = max(0.25, len(piece) / max(1, tokens))
    return cuts


def _piece(text: str, at: int, size: int) -> str:
    """About `size` characters from `at`, ended before a space where one is near."""
    end = at + size
    if end >= len(text):
        return text[at:]
    space = text.rfind(" ", max(at + 1, end - _WORD_CHARS), end + 1)
    return text[at : space if space > at else end]


def cut_answer(text: str, ends: Sequence[int]) -> list[Cut]:
    """An answer in pieces. `ends[i]`: characters that were whole after its token i.

    A token whose characters a stop string took away is not counted.
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
