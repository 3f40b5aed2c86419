"""The regular expressions of schemas: unsupported features, and translation to Lark.

A pattern becomes an automaton, which supports no look-ahead, look-behind or backreference. A
look-ahead at the beginning is a condition on the whole text and can be enforced:
`^(?=.*[0-9]).{8,}$` is two patterns, and `^(?!a)b` is one pattern and one that must not match.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

_GROUPS = {
    "(?=": "look-ahead (?=", "(?!": "look-ahead (?!", "(?<=": "look-behind (?<=",
    "(?<!": "look-behind (?<!", "(?P=": "backreference (?P=", "(?>": "atomic group (?>",
    "(?(": "condition (?(",
}  # fmt: skip
_OUTSIDE = {"d": "[0-9]", "D": "[^0-9]", "w": "[0-9A-Za-z_]", "W": "[^0-9A-Za-z_]", "/": r"\/"}
_INSIDE = {"d": "0-9", "w": "0-9A-Za-z_", "/": r"\/"}
_PIECE = re.compile(r"\\(?:[uxpP]\{[^}]*\}|.)|\(\?(?:<[=!]|P=|[=!>(])|[^\\]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Pattern:
    """Expressions that a text must contain a match of, and expressions that it must not."""

    required: tuple[str, ...]
    excluded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Piece:
    """An element of a pattern: a character, an escape or an opening of a group."""

    text: str
    at: int
    inside: bool  # in a set in brackets
    depth: int  # of nested groups


@lru_cache(maxsize=256)
def read(pattern: str) -> Pattern:
    """Parse a pattern. ValueError with the unsupported feature and its position."""
    pieces = _pieces(pattern)
    required: list[str] = []
    excluded: list[str] = []
    at = 1 if pattern.startswith("^") else 0
    while at and pattern.startswith(("(?=", "(?!"), at) and not _alternative(pieces):
        end = _end(pieces, at)
        (required if pattern[at + 2] == "=" else excluded).append(pattern[at + 3 : end])
        at = end + 1
    for piece in pieces:
        if piece.at >= at and not piece.inside:
            _check(piece)
    parsed = [read(inner if inner.startswith("^") else f"^(?:{inner})")
              for inner in required + excluded]  # fmt: skip
    if any(one.excluded or len(one.required) > 1 for one in parsed):
        raise ValueError("nested look-ahead is not supported")
    if at <= 1:
        return Pattern((pattern,))
    conditions = [one.required[0] for one in parsed]
    kept = (*conditions[: len(required)], f"^{pattern[at:]}")
    return Pattern(kept, tuple(conditions[len(required) :]))


def _alternative(pieces: list[_Piece]) -> bool:
    return any(one.text == "|" and not one.inside and not one.depth for one in pieces)


def _check(piece: _Piece) -> None:
    what = _GROUPS.get(piece.text, "")
    if re.fullmatch(r"\\[1-9k]", piece.text):
        what = f"backreference {piece.text}"
    if what:
        raise ValueError(f"{what} at character {piece.at + 1} is not supported")


def _pieces(pattern: str) -> list[_Piece]:
    pieces: list[_Piece] = []
    inside, depth = False, 0
    for found in _PIECE.finditer(pattern):
        text = found[0]
        if inside:
            inside = text != "]"
            pieces.append(_Piece(text, found.start(), inside, depth))
            continue
        depth -= text == ")"
        pieces.append(_Piece(text, found.start(), False, depth))
        depth += text.startswith("(")
        inside = text == "["
    return pieces


def _end(pieces: list[_Piece], at: int) -> int:
    """The offset of the end of the group that begins at `at`."""
    depth = next(piece.depth for piece in pieces if piece.at == at)
    for piece in pieces:
        if piece.at > at and piece.text == ")" and not piece.inside and piece.depth == depth:
            return piece.at
    raise ValueError("a group has no closing parenthesis")


def whole(pattern: str) -> str:
    """The Lark expression that matches whole texts. ValueError when there is none."""
    pieces = _pieces(pattern)
    if _alternative(pieces) and pieces[0].text == "^":
        raise ValueError("an alternative after ^ is not supported here; put it in parentheses")
    begins = bool(pieces) and pieces[0].text == "^"
    ends = bool(pieces) and pieces[-1].text == "$" and not pieces[-1].inside
    body = pieces[begins : len(pieces) - ends]
    if any(piece.text in ("^", "$") and not piece.inside for piece in body):
        raise ValueError("^ and $ are supported here at the beginning and the end only")
    inner = "".join(map(_lark, body))
    return f"{'' if begins else '(?s:.*)'}(?:{inner}){'' if ends else '(?s:.*)'}"


def _lark(piece: _Piece) -> str:
    if piece.text == "/":
        return r"\/"
    if len(piece.text) == 2 and piece.text[0] == "\\":
        return (_INSIDE if piece.inside else _OUTSIDE).get(piece.text[1], piece.text)
    return piece.text
