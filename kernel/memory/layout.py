"""What stands in the window, and what leaves it: pure decisions.

A window only grows at its end, so that only new tokens are computed, until a call does not fit.
Then one compaction takes at least a part of the window (COMPACT_SHARE) away in one step, the least
valuable pages first; what stays moves to the front and is computed anew. A page's value is
Greedy-Dual-Size-Frequency's (Cherkasova 1998): how often it was used, times what bringing it back
costs for each token that it holds, less with each message since its last use.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from .. import limits
from ..driver import Cut
from ..values import Message, Role
from .lexical import indexed, match
from .table import Piece

GAP = "\n[...]\n"  # where pages of a message are not in the window
_WORD = re.compile(r"\w+")
_BREAK = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])|\n+")
_ASKED = 3  # sentences that ask, at most
LINE_TOKENS = 8  # what a page that is brought back takes beside its text, about
MESSAGE_TOKENS = 8  # what a template adds to a message, about


@dataclass(frozen=True, slots=True)
class Stored:
    """A page as it is stored, under its number."""

    number: int
    id: int
    message: int
    kind: str
    author: str
    time: float
    session: str
    key: str
    tokens: int
    text: str
    labels: list[str]
    signs: int = 0  # see schema.signs
    speaker: str = ""  # who said it; "": its author
    created: float = 0.0  # Unix seconds: when it was written first

    @property
    def said_by(self) -> str:
        """Whom it is shown as a text of."""
        return self.speaker or self.author


@dataclass(frozen=True, slots=True)
class Use:
    """What speaks for a page: when it was last used, in messages ago, and how often."""

    age: int
    uses: int


# --- compaction -----------------------------------------------------------------------------------
def value(tokens: int, use: Use) -> float:
    size = max(tokens, limits.FAULT_TOKENS)
    return (1 + use.uses) * (1 + limits.FAULT_TOKENS / size) / (1 + use.age)


def victims(
    window: Sequence[Piece],
    sizes: Mapping[int, int],
    uses: Mapping[int, Use],
    kept: set[int],
    least: int,
) -> list[int]:
    """Pages that leave, until `least` tokens are free: fewer when no more may go.

    `kept` stay whatever happens; the newest message stays unless all else is not enough.
    """  # fmt: skip
    newest = set(window[-1].numbers()) if window else set[int]()
    loose = [n for piece in window for n in piece.numbers() if n not in kept]
    order = sorted(loose, key=lambda n: (n in newest, value(sizes[n], uses[n])))
    chosen: list[int] = []
    for number in order:
        if least <= 0:
            break
        chosen.append(number)
        least -= sizes[number]
    return chosen


# --- a request that is larger than the window -----------------------------------------------------
def kept_cuts(cuts: Sequence[Sequence[Cut]], fixed: set[int], room: int) -> list[list[int]]:
    """Which pieces of the new messages stand in the window; the others are stored only.

    The last piece says what is wanted, most often; the first one of its message, too. Of the rest
    those that share its words. `fixed` are messages that stay whole.
    """
    kept: list[list[int]] = [list(range(len(c))) if i in fixed else [] for i, c in enumerate(cuts)]
    room -= sum(cut.tokens for i in fixed for cut in cuts[i])
    last = len(cuts) - 1
    pieces = [(i, j) for i, c in enumerate(cuts) if i not in fixed for j in range(len(c))]
    first = [(last, len(cuts[last]) - 1), (last, 0)] if cuts[last] and last not in fixed else []
    question = cuts[last][-1].text if cuts[last] else ""
    scores = dict(
        zip(pieces, relevance(question, [cuts[i][j].text for i, j in pieces]), strict=True)
    )
    rest = sorted((p for p in pieces if p not in first), key=lambda p: (-scores[p], -p[0], -p[1]))
    for i, j in dict.fromkeys([*first, *rest]):
        tokens = cuts[i][j].tokens + MESSAGE_TOKENS
        if tokens <= room:
            kept[i].append(j)
            room -= tokens
    return [sorted(indexes) for indexes in kept]


def relevance(question: str, texts: Sequence[str]) -> list[float]:
    """Words that each text shares with the question, rare ones for more."""
    terms = re.findall(r'"([^"]+)"', match(question))
    held = [" ".join(["", *_WORD.findall(indexed(text).lower()), ""]) for text in texts]
    counts = [[text.count(f" {term} ") for term in terms] for text in held]
    weights = [
        math.log(1 + len(texts) / (1 + sum(1 for row in counts if row[at])))
        for at in range(len(terms))
    ]
    return [
        sum(weight * count / (count + 1.2) for weight, count in zip(weights, row, strict=True))
        for row in counts
    ]


# --- messages -------------------------------------------------------------------------------------
def messages(window: Sequence[Piece], held: Mapping[int, Stored]) -> list[Message]:
    """The window as a conversation."""
    said: list[Message] = []
    for piece in window:
        own = joined([(number, held[number].text) for number in piece.pages])
        back = recalled([held[number] for number in piece.recalled])
        said.append(Message(piece.role, f"{back}\n{own}" if back and own else back or own))
    return said


def joined(pieces: Sequence[tuple[int, str]]) -> str:
    """Pages of one message, with a mark where some between them are missing."""
    parts: list[str] = []
    before: int | None = None
    for number, text in pieces:
        if before is not None and number != before + 1:
            parts.append(GAP)
        parts.append(text)
        before = number
    return "".join(parts)


def recalled(pages: Sequence[Stored]) -> str:
    """Pages that were brought back, as the model reads them: by day, with who wrote them.

    Plain lines and an empty one: a small model takes marks for a form that it has to go on with.
    """
    lines: list[str] = []
    day: str | None = None
    for page in sorted(pages, key=lambda page: page.number):
        on = datetime.fromtimestamp(page.time, UTC).strftime("%Y-%m-%d") if page.time else ""
        if on != day:
            first = "From earlier" if day is None else "Then"
            lines.append(f"{first}, on {on}:" if on else f"{first}:")
            day = on
        mark = " (summary)" if page.kind == "summary" else ""
        lines.append(f"{page.said_by}{mark}: {page.text.strip()}")
    return "\n".join([*lines, ""]) if lines else ""


def trimmed(
    messages: Sequence[Message], cuts: Sequence[Sequence[Cut]], kept: Sequence[Sequence[int]]
) -> list[Message]:
    """New messages with the pieces that stay."""
    return [
        Message(message.role, joined([(j, pieces[j].text) for j in indexes]))
        for message, pieces, indexes in zip(messages, cuts, kept, strict=True)
        if indexes or not pieces
    ]


def questions_of(messages: Sequence[Message]) -> list[str]:
    """What pages are looked for with: what is asked, and all that is said.

    A question among much else would drown in it, so its sentence stands alone, too.
    """
    text = next((m.content for m in reversed(messages) if m.role is Role.USER), "")
    text = (text or messages[-1].content).strip()
    half = limits.QUESTION_CHARS // 2
    if len(text) > 2 * half:
        text = f"{text[:half]}\n{text[-half:]}"
    sentences = [one.strip() for one in _BREAK.split(text) if one.strip()]
    asked = [one for one in sentences if one[-1] in "?\uff1f"] or sentences[-1:]
    return list(dict.fromkeys(filter(None, [" ".join(asked[-_ASKED:]), text])))
