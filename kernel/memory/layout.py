"""Decides which pages are in the window and which leave it, and renders them. Pure.

A window only grows at its end, so only new tokens are computed, until a call does not fit. Then one
compaction evicts at least COMPACT_SHARE of the window in one step, the least valuable pages first;
the remaining pages move to the front and are computed again. A page's value is that of
Greedy-Dual-Size-Frequency (Cherkasova 1998): the number of its uses times the cost of recalling it
per token, divided by its age in messages.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ..abi import limits
from ..abi.values import Message, Role
from ..driver import Cut
from ..recall.lexical import indexed, match
from .table import Piece

GAP = "\n[...]\n"  # replaces pages of a message that are not in the window
_WORD = re.compile(r"\w+")
_BREAK = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])|\n+")
_QUESTION_SENTENCES = 3  # sentences of a question, at most
LINE_TOKENS = 8  # tokens that a recalled page takes besides its text, approximately
MESSAGE_TOKENS = 8  # tokens that a template adds to a message, approximately


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored page with its number in a process."""

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
    speaker: str = ""  # whose words these are; "": the author's
    created: float = 0.0  # Unix seconds: when it was first written

    @property
    def said_by(self) -> str:
        """The name shown with the text."""
        return self.speaker or self.author


@dataclass(frozen=True, slots=True)
class Use:
    """The use of a page: messages since its last use, and the number of recalls."""

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
    """Pages to evict to free `least` tokens; fewer when no more may leave.

    `kept` never leave; pages of the newest message leave only after all others.
    """  # fmt: skip
    newest = set(window[-1].numbers()) if window else set[int]()
    evictable = [n for piece in window for n in piece.numbers() if n not in kept]
    order = sorted(evictable, key=lambda n: (n in newest, value(sizes[n], uses[n])))
    chosen: list[int] = []
    for number in order:
        if least <= 0:
            break
        chosen.append(number)
        least -= sizes[number]
    return chosen


# --- a request that is larger than the window -----------------------------------------------------
def kept_cuts(cuts: Sequence[Sequence[Cut]], fixed: set[int], room: int) -> list[list[int]]:
    """Which pages of the new messages are in the window; the others are only stored.

    The last page most often has the question, so it comes first, then the first page of the same
    message, then those that share the most words with the last page. `fixed`: messages kept whole.
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
    """Score of each text by the words it shares with the question, weighted by their rarity."""
    terms = re.findall(r'"([^"]+)"', match(question))
    folded = [" ".join(["", *_WORD.findall(indexed(text).lower()), ""]) for text in texts]
    counts = [[text.count(f" {term} ") for term in terms] for text in folded]
    weights = [
        math.log(1 + len(texts) / (1 + sum(1 for row in counts if row[at])))
        for at in range(len(terms))
    ]
    return [
        sum(weight * count / (count + 1.2) for weight, count in zip(weights, row, strict=True))
        for row in counts
    ]


# --- messages -------------------------------------------------------------------------------------
def messages(window: Sequence[Piece], stored: Mapping[int, Stored]) -> list[Message]:
    """The window as a conversation."""
    conversation: list[Message] = []
    for piece in window:
        own = joined([(number, stored[number].text) for number in piece.pages])
        back = recalled([stored[number] for number in piece.recalled])
        conversation.append(Message(piece.role, f"{back}\n{own}" if back and own else back or own))
    return conversation


def joined(pieces: Sequence[tuple[int, str]]) -> str:
    """Join pages of one message, with GAP where pages between them are missing."""
    parts: list[str] = []
    before: int | None = None
    for number, text in pieces:
        if before is not None and number != before + 1:
            parts.append(GAP)
        parts.append(text)
        before = number
    return "".join(parts)


def recalled(pages: Sequence[Stored]) -> str:
    """Recalled pages as the model reads them: grouped by day, each with its speaker.

    Plain lines, then an empty one: a small model continues a markup as if it were a form.
    """
    lines: list[str] = []
    day: str | None = None
    for page in sorted(pages, key=lambda page: page.number):
        date = datetime.fromtimestamp(page.time, UTC).strftime("%Y-%m-%d") if page.time else ""
        if date != day:
            first = "From earlier" if day is None else "Then"
            lines.append(f"{first}, on {date}:" if date else f"{first}:")
            day = date
        mark = " (summary)" if page.kind == "summary" else ""
        lines.append(f"{page.said_by}{mark}: {page.text.strip()}")
    return "\n".join([*lines, ""]) if lines else ""


def trimmed(
    messages: Sequence[Message], cuts: Sequence[Sequence[Cut]], kept: Sequence[Sequence[int]]
) -> list[Message]:
    """The new messages with the pages that are kept."""
    return [
        Message(message.role, joined([(j, pieces[j].text) for j in indexes]))
        for message, pieces, indexes in zip(messages, cuts, kept, strict=True)
        if indexes or not pieces
    ]


def questions_of(messages: Sequence[Message]) -> list[str]:
    """The queries of a recall: the sentences that ask, and the whole text.

    In a long text the question has little weight, so it is searched for separately as well.
    """
    text = next((m.content for m in reversed(messages) if m.role is Role.USER), "")
    text = (text or messages[-1].content).strip()
    half = limits.QUESTION_CHARS // 2
    if len(text) > 2 * half:
        text = f"{text[:half]}\n{text[-half:]}"
    sentences = [one.strip() for one in _BREAK.split(text) if one.strip()]
    questions = [one for one in sentences if one[-1] in "?\uff1f"] or sentences[-1:]
    return list(dict.fromkeys(filter(None, [" ".join(questions[-_QUESTION_SENTENCES:]), text])))
